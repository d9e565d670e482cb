# The roles that SageMaker assumes: for training jobs, and for the models behind endpoints.

locals {
  # <account>.dkr.ecr.<region>.<suffix>/<repository>:<tag> or @<digest>
  image_pattern   = "^(?P<account>[0-9]{12})\\.dkr\\.ecr\\.(?P<region>[a-z0-9-]+)\\.[a-z.]+/(?P<repository>[^:@]+)"
  training_image  = regex(local.image_pattern, var.training_image)
  inference_image = regex(local.image_pattern, var.inference_image)

  training_repository_arn = "arn:${var.partition}:ecr:${local.training_image.region}:${local.training_image.account}:repository/${local.training_image.repository}"
  model_repository_arn    = "arn:${var.partition}:ecr:${local.inference_image.region}:${local.inference_image.account}:repository/${local.inference_image.repository}"

  # Below a job's whole name: nothing lists what other jobs there are.
  checkpoints = "models/checkpoints/training-job-????????-??????-????????*"

  base_model_in_s3  = startswith(var.base_model, "s3://")
  base_model_bucket = local.base_model_in_s3 ? split("/", trimprefix(var.base_model, "s3://"))[0] : ""
  base_model_prefix = trimprefix(var.base_model, "s3://${local.base_model_bucket}/")
}

data "aws_iam_policy_document" "assume_sagemaker" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["sagemaker.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [var.account_id]
    }
  }
}

data "aws_iam_policy_document" "image" {
  for_each = { training = local.training_repository_arn, model = local.model_repository_arn }

  # The token is for the whole registry: ECR has no narrower resource for it.
  statement {
    sid       = "LogInToRegistry"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }

  statement {
    sid       = "PullImage"
    actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = [each.value]
  }

  # CloudWatch metrics have no ARNs, so the namespace is the limit.
  statement {
    sid       = "WriteMetrics"
    actions   = ["cloudwatch:PutMetricData"]
    resources = ["*"]

    condition {
      test     = "StringLike"
      variable = "cloudwatch:namespace"
      values   = ["/aws/sagemaker/*"]
    }
  }
}

resource "aws_iam_role" "training" {
  name               = var.training_role_name
  description        = "SageMaker training jobs of ${var.bucket_name}"
  assume_role_policy = data.aws_iam_policy_document.assume_sagemaker.json

  tags = var.tags
}

resource "aws_iam_role_policy" "training" {
  name   = "training"
  role   = aws_iam_role.training.id
  policy = data.aws_iam_policy_document.training.json
}

# Every job of the stack runs under this one role, which does not know whose job it is: SageMaker gives it neither the
# job's name nor a tag to compare with. So hostile code in a job (of a base model or a package) could, for every model:
# - read snapshots and approved archives whose names it knows, the base model, and the Hub token. It cannot list them;
#   but the streams of the account's log group for training jobs have the names of jobs.
# - write archives below models/raw/. What is written after the job of that name has ended, the model evaluator refuses;
#   what was begun before and replaces the job's own in its last seconds, it does not see. The bucket keeps the versions.
# - with training_use_spot, read, change and delete the checkpoints of jobs whose names it knows. So the training program
#   takes them for data: nothing in them is run.
# - write lines into other jobs' logs, and metrics under /aws/sagemaker/. No alarm of the stack watches those.
# It cannot delete anything else, approve or deploy anything, change a record, an upload or the training program, start a job, or send
# an email. Network isolation would leave it no credentials at all, but also no packages from PyPI and no model from the Hub.
data "aws_iam_policy_document" "training" {
  source_policy_documents = [data.aws_iam_policy_document.image["training"].json]

  statement {
    sid     = "ReadDataSourceAndLiveModel"
    actions = ["s3:GetObject"]
    resources = [
      "${local.bucket_arn}/data/snapshots/*/data.csv",
      "${local.bucket_arn}/data/snapshots/*/training.tar.gz",
      "${local.bucket_arn}/models/approved/*/model.tar.gz",
    ]
  }

  statement {
    sid       = "WriteModel"
    actions   = ["s3:AbortMultipartUpload", "s3:PutObject"]
    resources = ["${local.bucket_arn}/models/raw/*"]
  }

  # Only the prefixes of the channels, which are names of files: nothing lists what other jobs there are.
  # https://docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-roles.html
  statement {
    sid       = "ListChannels"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["data/snapshots/*/data.csv", "models/approved/*/model.tar.gz"]
    }
  }

  # SageMaker copies the checkpoints of a job under this role; what the job deletes, it deletes in S3, too:
  # https://docs.aws.amazon.com/sagemaker/latest/dg/model-checkpoints.html
  dynamic "statement" {
    for_each = var.training_use_spot ? [true] : []

    content {
      sid       = "KeepCheckpoints"
      actions   = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"]
      resources = ["${local.bucket_arn}/${local.checkpoints}"]
    }
  }

  dynamic "statement" {
    for_each = var.training_use_spot ? [true] : []

    content {
      sid       = "ListCheckpoints"
      actions   = ["s3:ListBucket"]
      resources = [local.bucket_arn]

      condition {
        test     = "StringLike"
        variable = "s3:prefix"
        values   = [local.checkpoints]
      }
    }
  }

  # A log group has two ARNs, and AWS does not document for each call which one it checks:
  # https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/iam-access-control-overview-cwl.html
  statement {
    sid     = "FindLog"
    actions = ["logs:CreateLogGroup", "logs:DescribeLogStreams"]
    resources = [
      "${local.logs_prefix}:/aws/sagemaker/TrainingJobs",
      "${local.logs_prefix}:/aws/sagemaker/TrainingJobs:*",
    ]
  }

  statement {
    sid       = "WriteLog"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${local.logs_prefix}:/aws/sagemaker/TrainingJobs:*"]
  }

  dynamic "statement" {
    for_each = local.base_model_in_s3 ? [true] : []

    content {
      sid       = "ReadBaseModel"
      actions   = ["s3:GetObject"]
      resources = ["arn:${var.partition}:s3:::${local.base_model_bucket}/${local.base_model_prefix}*"]
    }
  }

  dynamic "statement" {
    for_each = local.base_model_in_s3 ? [true] : []

    content {
      sid       = "ListBaseModel"
      actions   = ["s3:ListBucket"]
      resources = ["arn:${var.partition}:s3:::${local.base_model_bucket}"]

      condition {
        test     = "StringLike"
        variable = "s3:prefix"
        values   = ["${local.base_model_prefix}*"]
      }
    }
  }

  dynamic "statement" {
    for_each = var.hub_token_secret_arn != null ? [true] : []

    content {
      sid       = "ReadHubToken"
      actions   = ["secretsmanager:GetSecretValue"]
      resources = [var.hub_token_secret_arn]
    }
  }

  dynamic "statement" {
    for_each = var.kms_key_arn[*]

    content {
      sid       = "UseKey"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [statement.value]

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = [local.kms_services.s3]
      }
    }
  }

  # CreateTrainingJob requires this as well, without saying which service uses it:
  # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_OutputDataConfig.html
  dynamic "statement" {
    for_each = var.kms_key_arn[*]

    content {
      sid       = "EncryptModel"
      actions   = ["kms:Encrypt"]
      resources = [statement.value]
    }
  }
}

resource "aws_iam_role" "model" {
  name               = var.model_role_name
  description        = "SageMaker models and endpoints of ${var.bucket_name}"
  assume_role_policy = data.aws_iam_policy_document.assume_sagemaker.json

  tags = var.tags
}

resource "aws_iam_role_policy" "model" {
  name   = "model"
  role   = aws_iam_role.model.id
  policy = data.aws_iam_policy_document.model.json
}

data "aws_iam_policy_document" "model" {
  source_policy_documents = [data.aws_iam_policy_document.image["model"].json]

  statement {
    sid       = "ReadModel"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/models/approved/*"]
  }

  # See the deployment orchestrator's statement of this name.
  dynamic "statement" {
    for_each = length(var.alarmed_endpoints) > 0 ? [true] : []

    content {
      sid       = "SeeRollbackAlarms"
      actions   = ["cloudwatch:DescribeAlarms"]
      resources = local.endpoint_alarm_arns
    }
  }

  # See the training role's statement of this name.
  statement {
    sid     = "FindLog"
    actions = ["logs:CreateLogGroup", "logs:DescribeLogStreams"]
    resources = [
      "${local.logs_prefix}:/aws/sagemaker/Endpoints/${var.endpoint_name}",
      "${local.logs_prefix}:/aws/sagemaker/Endpoints/${var.endpoint_name}:*",
      "${local.logs_prefix}:/aws/sagemaker/Endpoints/${var.endpoint_name}-*",
    ]
  }

  statement {
    sid     = "WriteLog"
    actions = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = [
      "${local.logs_prefix}:/aws/sagemaker/Endpoints/${var.endpoint_name}:*",
      "${local.logs_prefix}:/aws/sagemaker/Endpoints/${var.endpoint_name}-*",
    ]
  }

  dynamic "statement" {
    for_each = var.kms_key_arn[*]

    content {
      sid       = "UseKey"
      actions   = ["kms:Decrypt"]
      resources = [statement.value]

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = [local.kms_services.s3]
      }
    }
  }
}
