locals {
  bucket_arn = "arn:${var.partition}:s3:::${var.bucket_name}"

  training_package_exists = fileexists(var.training_package)
}

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_18: who read what is a matter of the account's CloudTrail; a bucket of logs per stack would be one more to guard
  #checkov:skip=CKV_AWS_144: old versions are kept, and models can be trained again; a copy in another region is for the data's owner to decide
  count = var.create_bucket ? 1 : 0

  bucket        = var.bucket_name
  force_destroy = var.force_destroy

  tags = var.tags
}

resource "aws_s3_bucket_public_access_block" "this" {
  count = var.create_bucket ? 1 : 0

  bucket                  = aws_s3_bucket.this[0].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  count = var.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  count = var.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  rule {
    # One call to KMS for many objects, not one for each.
    bucket_key_enabled = var.kms_key_arn == null ? null : true

    apply_server_side_encryption_by_default {
      kms_master_key_id = var.kms_key_arn
      sse_algorithm     = var.kms_key_arn == null ? "AES256" : "aws:kms"
    }
  }
}

# Versions let a job train on the upload that started it, even when the key is overwritten meanwhile.
resource "aws_s3_bucket_versioning" "this" {
  count = var.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  count = var.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  rule {
    id     = "raw-models"
    status = "Enabled"

    filter {
      prefix = "models/raw/"
    }

    expiration {
      days = var.raw_model_retention_days
    }
  }

  rule {
    id     = "snapshots"
    status = "Enabled"

    filter {
      prefix = "data/snapshots/"
    }

    expiration {
      days = var.snapshot_retention_days
    }
  }

  # Leases of the functions, worthless once their step is over.
  rule {
    id     = "claims"
    status = "Enabled"

    filter {
      prefix = "claims/"
    }

    expiration {
      days = 7
    }
  }

  rule {
    id     = "noncurrent-versions"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_version_retention_days
    }
  }

  # Delete markers without a version behind them would slow every listing down.
  rule {
    id     = "delete-markers"
    status = "Enabled"

    filter {}

    expiration {
      expired_object_delete_marker = true
    }
  }

  rule {
    id     = "incomplete-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [local.bucket_arn, "${local.bucket_arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  count = var.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id
  policy = data.aws_iam_policy_document.bucket.json

  # S3 refuses two changes of a bucket's access at the same time.
  depends_on = [aws_s3_bucket_public_access_block.this]
}

# Sends every event of the bucket to the default bus; the rules choose. It replaces whatever notifications the bucket has.
resource "aws_s3_bucket_notification" "this" {
  count = var.create_bucket || var.manage_bucket_notification ? 1 : 0

  bucket      = var.create_bucket ? aws_s3_bucket.this[0].id : var.bucket_name
  eventbridge = true
}

# One key for good, overwritten in place: with a key per release, a change would delete the source of a job that still
# waits for its instance.
resource "aws_s3_object" "training_source" {
  bucket      = var.create_bucket ? aws_s3_bucket.this[0].id : var.bucket_name
  key         = "code/training.tar.gz"
  source      = var.training_package
  source_hash = local.training_package_exists ? filesha256(var.training_package) : null

  # So that it, too, is under the bucket's key and has a version.
  depends_on = [aws_s3_bucket_server_side_encryption_configuration.this, aws_s3_bucket_versioning.this]

  # Objects take ten tags at most, so they get none.
  override_provider {
    default_tags {
      tags = {}
    }
  }

  lifecycle {
    precondition {
      condition     = local.training_package_exists
      error_message = "${var.training_package} does not exist: run `make package`, or set package_dir to the folder of a release's packages."
    }
  }
}
