# One role per function. The roles that SageMaker assumes are in sagemaker.tf.

locals {
  bucket_arn       = "arn:${var.partition}:s3:::${var.bucket_name}"
  sagemaker_prefix = "arn:${var.partition}:sagemaker:${var.region}:${var.account_id}"
  endpoint_alarm_arns = [
    for endpoint in var.alarmed_endpoints :
    "arn:${var.partition}:cloudwatch:${var.region}:${var.account_id}:alarm:${endpoint}/*"
  ]
  # The services through which the functions use the key.
  dns_suffix   = var.partition == "aws-cn" ? "amazonaws.com.cn" : "amazonaws.com"
  kms_services = { for service in ["s3", "sns", "sqs"] : service => "${service}.${var.region}.${local.dns_suffix}" }

  logs_prefix = "arn:${var.partition}:logs:${var.region}:${var.account_id}:log-group"

  # Built from names, so that the plan shows the policies.
  role_prefix       = "arn:${var.partition}:iam::${var.account_id}:role"
  model_role_arn    = "${local.role_prefix}/${var.model_role_name}"
  training_role_arn = "${local.role_prefix}/${var.training_role_name}"

  functions = toset(["deployment_orchestrator", "model_evaluator", "training_orchestrator"])

  function_policies = {
    deployment_orchestrator = data.aws_iam_policy_document.deployment_orchestrator.json
    model_evaluator         = data.aws_iam_policy_document.model_evaluator.json
    training_orchestrator   = data.aws_iam_policy_document.training_orchestrator.json
  }
}

data "aws_iam_policy_document" "assume_function" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["lambda.amazonaws.com"]
    }

    # So that Lambda uses the role for functions of this account only. No guide says that Lambda sends the key; AWS's own
    # templates rely on it: lambda-trust-policy.json in https://github.com/aws/agent-toolkit-for-aws
    # If creating a function fails with "cannot be assumed by Lambda", it does not: remove this condition. It protects
    # little, since a role can only be passed within its account.
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [var.account_id]
    }
  }
}

resource "aws_iam_role" "function" {
  for_each = local.functions

  name               = var.function_names[each.key]
  description        = "Lambda function ${var.function_names[each.key]}"
  assume_role_policy = data.aws_iam_policy_document.assume_function.json

  tags = var.tags
}

resource "aws_iam_role_policy" "function" {
  for_each = local.functions

  name   = "function"
  role   = aws_iam_role.function[each.key].id
  policy = local.function_policies[each.key]
}

data "aws_iam_policy_document" "common" {
  for_each = local.functions

  statement {
    sid       = "WriteOwnLog"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${local.logs_prefix}:/aws/lambda/${var.function_names[each.key]}:*"]
  }

  statement {
    sid       = "Notify"
    actions   = ["sns:Publish"]
    resources = [var.topic_arn]
  }

  # Lambda's on-failure destination uses the function's own role.
  statement {
    sid       = "SendFailures"
    actions   = ["sqs:SendMessage"]
    resources = [var.queue_arn]
  }

  # Without it, or with a condition on the prefix, S3 answers 403 instead of 404 for a missing object.
  statement {
    sid       = "TellMissingFromForbidden"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn]
  }

  # For reading and writing objects, publishing, and the failure destination.
  dynamic "statement" {
    for_each = var.kms_key_arn[*]

    content {
      sid       = "UseKey"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [statement.value]

      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = values(local.kms_services)
      }
    }
  }
}

data "aws_iam_policy_document" "training_orchestrator" {
  source_policy_documents = [data.aws_iam_policy_document.common["training_orchestrator"].json]

  # The event names a version, and exactly that version is copied.
  statement {
    sid       = "ReadUploads"
    actions   = ["s3:GetObject", "s3:GetObjectVersion"]
    resources = ["${local.bucket_arn}/data/train/*"]
  }

  statement {
    sid       = "CopyTrainingSource"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/code/training.tar.gz"]
  }

  statement {
    sid     = "KeepRecords"
    actions = ["s3:GetObject", "s3:PutObject"]
    resources = [
      "${local.bucket_arn}/claims/give-up/*",
      "${local.bucket_arn}/claims/snapshot/*",
      "${local.bucket_arn}/data/claims/*",
      "${local.bucket_arn}/data/rejected/*",
      "${local.bucket_arn}/data/snapshots/*",
      "${local.bucket_arn}/slots/*",
    ]
  }

  statement {
    sid       = "SeePause"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/control/paused.json"]
  }

  statement {
    sid       = "FindLiveModel"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/models/deployments/*"]
  }

  statement {
    sid       = "AbortSnapshotCopy"
    actions   = ["s3:AbortMultipartUpload"]
    resources = ["${local.bucket_arn}/data/snapshots/*"]
  }

  statement {
    sid       = "StartTrainingAndSeeItsEnd"
    actions   = ["sagemaker:AddTags", "sagemaker:CreateTrainingJob", "sagemaker:DescribeTrainingJob"]
    resources = ["${local.sagemaker_prefix}:training-job/training-job-*"]
  }

  statement {
    sid       = "PassTrainingRole"
    actions   = ["iam:PassRole"]
    resources = [local.training_role_arn]

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["sagemaker.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "model_evaluator" {
  source_policy_documents = [data.aws_iam_policy_document.common["model_evaluator"].json]

  statement {
    sid       = "ReadJob"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/data/snapshots/*", "${local.bucket_arn}/models/raw/*"]
  }

  statement {
    sid     = "KeepRecordsAndApprove"
    actions = ["s3:GetObject", "s3:PutObject"]
    resources = [
      "${local.bucket_arn}/claims/evaluate/*",
      "${local.bucket_arn}/claims/tries/*",
      "${local.bucket_arn}/models/approved/*",
      "${local.bucket_arn}/models/decisions/*",
    ]
  }

  statement {
    sid       = "SeePause"
    actions   = ["s3:GetObject"]
    resources = ["${local.bucket_arn}/control/paused.json"]
  }

  statement {
    sid       = "AbortApprovalCopy"
    actions   = ["s3:AbortMultipartUpload"]
    resources = ["${local.bucket_arn}/models/approved/*"]
  }

  statement {
    sid       = "ReadTraining"
    actions   = ["sagemaker:DescribeTrainingJob"]
    resources = ["${local.sagemaker_prefix}:training-job/training-job-*"]
  }
}

data "aws_iam_policy_document" "deployment_orchestrator" {
  source_policy_documents = [data.aws_iam_policy_document.common["deployment_orchestrator"].json]

  statement {
    sid     = "ReadModelAndItsSource"
    actions = ["s3:GetObject"]
    resources = [
      "${local.bucket_arn}/control/paused.json",
      "${local.bucket_arn}/data/snapshots/*",
      "${local.bucket_arn}/models/approved/*",
      "${local.bucket_arn}/models/decisions/*",
    ]
  }

  statement {
    sid       = "KeepRecords"
    actions   = ["s3:GetObject", "s3:PutObject"]
    resources = ["${local.bucket_arn}/models/deployments/*"]
  }

  # DescribeModel and ListTags: the function checks a model before it deletes it.
  statement {
    sid       = "CreateModel"
    actions   = ["sagemaker:AddTags", "sagemaker:CreateModel", "sagemaker:DescribeModel", "sagemaker:ListTags"]
    resources = ["${local.sagemaker_prefix}:model/training-job-*"]
  }

  statement {
    sid = "CreateEndpointConfig"
    actions = [
      "sagemaker:AddTags",
      "sagemaker:CreateEndpointConfig",
      "sagemaker:ListTags",
    ]
    resources = ["${local.sagemaker_prefix}:endpoint-config/training-job-*"]
  }

  # An endpoint may serve a config that a person created, under any name.
  statement {
    sid       = "SeeServedConfig"
    actions   = ["sagemaker:DescribeEndpointConfig"]
    resources = ["${local.sagemaker_prefix}:endpoint-config/*"]
  }

  # IAM checks these on the endpoint and on the configuration that it gets.
  statement {
    sid     = "ChangeEndpoint"
    actions = ["sagemaker:CreateEndpoint", "sagemaker:UpdateEndpoint"]
    resources = [
      "${local.sagemaker_prefix}:endpoint-config/training-job-*",
      "${local.sagemaker_prefix}:endpoint/${var.endpoint_name}",
      "${local.sagemaker_prefix}:endpoint/${var.endpoint_name}-*",
    ]
  }

  statement {
    sid = "FollowEndpoint"
    actions = [
      "sagemaker:AddTags",
      "sagemaker:DescribeEndpoint",
      "sagemaker:InvokeEndpoint",
      "sagemaker:ListTags",
    ]
    resources = [
      "${local.sagemaker_prefix}:endpoint/${var.endpoint_name}",
      "${local.sagemaker_prefix}:endpoint/${var.endpoint_name}-*",
    ]
  }

  # Only what has this stack's tag, because other stacks may use the same names. Deleting is the only way out of Failed.
  dynamic "statement" {
    for_each = {
      DeleteEndpoint       = ["endpoint/${var.endpoint_name}", "endpoint/${var.endpoint_name}-*"]
      DeleteEndpointConfig = ["endpoint-config/training-job-*"]
      DeleteModel          = ["model/training-job-*"]
    }

    content {
      sid       = statement.key
      actions   = ["sagemaker:${statement.key}"]
      resources = [for name in statement.value : "${local.sagemaker_prefix}:${name}"]

      condition {
        test     = "StringEquals"
        variable = "aws:ResourceTag/Stack"
        values   = [var.bucket_name]
      }
    }
  }

  # Somebody may have registered an endpoint's variant for autoscaling. SageMaker then deletes the endpoint only for a
  # caller who may deregister that: https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-delete-with-scaling.html
  # The ids of scalable targets are random and nobody tags them with the stack, so the limit is what they scale.
  statement {
    sid       = "EndAutoscaling"
    actions   = ["application-autoscaling:DeregisterScalableTarget"]
    resources = ["arn:${var.partition}:application-autoscaling:${var.region}:${var.account_id}:scalable-target/*"]

    condition {
      test     = "StringEquals"
      variable = "application-autoscaling:scalable-dimension"
      values   = ["sagemaker:variant:DesiredInstanceCount", "sagemaker:variant:DesiredProvisionedConcurrency"]
    }
  }

  # SageMaker's guide asks for it on "your IAM execution role" without saying whether that is the caller's or the model's,
  # so both have it. https://docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails-configuration.html
  dynamic "statement" {
    for_each = length(var.alarmed_endpoints) > 0 ? [true] : []

    content {
      sid       = "SeeRollbackAlarms"
      actions   = ["cloudwatch:DescribeAlarms"]
      resources = local.endpoint_alarm_arns
    }
  }

  statement {
    sid       = "PassModelRole"
    actions   = ["iam:PassRole"]
    resources = [local.model_role_arn]

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["sagemaker.amazonaws.com"]
    }
  }
}
