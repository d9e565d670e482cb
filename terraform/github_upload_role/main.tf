# The role of .github/workflows/upload-data.yml: one repository may upload training data to one bucket, and nothing else.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

locals {
  issuer            = "token.actions.githubusercontent.com"
  oidc_provider_arn = var.oidc_provider_arn != null ? var.oidc_provider_arn : aws_iam_openid_connect_provider.github[0].arn
  upload_prefix     = "arn:${data.aws_partition.current.partition}:s3:::${var.bucket_name}/data/train"

  # A folder for each model, the model "default" included: IAM's * also stands for slashes, so no resource means the
  # files directly in data/train/ and leaves the folders out.
  # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_resource.html
  upload_arns = length(var.models) == 0 ? ["${local.upload_prefix}/*"] : [for model in var.models : "${local.upload_prefix}/${model}/*"]

  # The token's subject names either the branch or the environment of a job, never both.
  # https://docs.github.com/en/actions/reference/openid-connect-reference#example-subject-claims
  subjects = concat(
    [for branch in var.branches : "repo:${var.repository}:ref:refs/heads/${branch}"],
    [for environment in var.environments : "repo:${var.repository}:environment:${environment}"],
  )

  # IAM allows 64 characters: 55 + "-" + 8 of a hash.
  full_name = "mlops-upload-${replace(var.bucket_name, ".", "-")}"
  name      = length(local.full_name) <= 64 ? local.full_name : "${substr(local.full_name, 0, 55)}-${substr(md5(local.full_name), 0, 8)}"
}

# AWS allows one per account and issuer.
resource "aws_iam_openid_connect_provider" "github" {
  count = var.oidc_provider_arn == null ? 1 : 0

  url            = "https://${local.issuer}"
  client_id_list = ["sts.amazonaws.com"]
  tags           = var.tags
}

data "aws_iam_policy_document" "trust" {
  statement {
    sid     = "OneRepository"
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [local.oidc_provider_arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:sub"
      values   = local.subjects
    }
  }
}

data "aws_iam_policy_document" "upload" {
  # A large file is uploaded in parts; AbortMultipartUpload removes the parts of an upload that failed.
  statement {
    sid       = "PutTrainingData"
    actions   = ["s3:AbortMultipartUpload", "s3:PutObject"]
    resources = local.upload_arns
  }

  # Decrypt, because S3 reads the parts when it assembles them.
  # https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html
  dynamic "statement" {
    for_each = var.kms_key_arn == null ? [] : [var.kms_key_arn]

    content {
      sid       = "Encrypt"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [statement.value]

      # The bucket is in its key's region.
      condition {
        test     = "StringEquals"
        variable = "kms:ViaService"
        values   = ["s3.${split(":", statement.value)[3]}.${data.aws_partition.current.dns_suffix}"]
      }
    }
  }
}

resource "aws_iam_role" "upload" {
  name                 = local.name
  description          = "Uploads of ${var.repository} to ${var.bucket_name}"
  assume_role_policy   = data.aws_iam_policy_document.trust.json
  max_session_duration = 3600
  tags                 = var.tags
}

resource "aws_iam_role_policy" "upload" {
  name   = "upload"
  role   = aws_iam_role.upload.id
  policy = data.aws_iam_policy_document.upload.json
}
