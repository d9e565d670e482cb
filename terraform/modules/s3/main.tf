locals {
  bucket_arn = "arn:${var.partition}:s3:::${var.bucket_name}"

  # What is deleted after some days; null: never.
  expiring = {
    approved-models  = { prefix = "models/approved/", days = var.data_retention_days.approved_models }
    checkpoints      = { prefix = "models/checkpoints/", days = var.checkpoint_retention_days }
    claims           = { prefix = "claims/", days = 7 }                                # leases of the functions, useless once their step is done
    data-claims      = { prefix = "data/claims/", days = var.snapshot_retention_days } # which snapshots have which data
    decisions        = { prefix = "models/decisions/", days = var.data_retention_days.decisions }
    raw-models       = { prefix = "models/raw/", days = var.raw_model_retention_days }
    rejected-uploads = { prefix = "data/rejected/", days = var.data_retention_days.rejected_uploads }
    snapshots        = { prefix = "data/snapshots/", days = var.snapshot_retention_days }
    uploads          = { prefix = "data/train/", days = var.data_retention_days.uploads }
  }

  training_package_exists = fileexists(var.training_package)
}

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_18: the account's CloudTrail records who read what; a log bucket per stack would be one more to secure
  #checkov:skip=CKV_AWS_144: old versions are kept and models can be retrained; replication to another region is up to the data's owner
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
    # One KMS call for many objects instead of one for each.
    bucket_key_enabled = var.kms_key_arn == null ? null : true

    apply_server_side_encryption_by_default {
      kms_master_key_id = var.kms_key_arn
      sse_algorithm     = var.kms_key_arn == null ? "AES256" : "aws:kms"
    }
  }
}

# Versions let a job train on the upload that started it, even if the key is overwritten in the meantime.
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

  dynamic "rule" {
    for_each = { for id, what in local.expiring : id => what if what.days != null }

    content {
      id     = rule.key
      status = "Enabled"

      filter {
        prefix = rule.value.prefix
      }

      expiration {
        days = rule.value.days
      }
    }
  }

  # A job overwrites its checkpoints all the time, and nobody asks for an older one.
  rule {
    id     = "checkpoint-versions"
    status = "Enabled"

    filter {
      prefix = local.expiring.checkpoints.prefix
    }

    noncurrent_version_expiration {
      noncurrent_days = 1
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

  # Delete markers without an older version would slow down every listing.
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

  # S3 refuses concurrent changes of a bucket's access settings.
  depends_on = [aws_s3_bucket_public_access_block.this]
}

# Sends every event of the bucket to the default event bus, where the rules filter. Replaces all other notifications.
resource "aws_s3_bucket_notification" "this" {
  count = var.create_bucket || var.manage_bucket_notification ? 1 : 0

  bucket      = var.create_bucket ? aws_s3_bucket.this[0].id : var.bucket_name
  eventbridge = true
}

# Always the same key, overwritten in place. With a key per package, Terraform would delete the previous object in the same
# apply, and the provider all its versions with it (tried: 5.100.0, create_before_destroy, a versioned bucket). A job that
# still waits for its instance would then find no source; as it is, that job runs the new one.
resource "aws_s3_object" "training_source" {
  bucket      = var.create_bucket ? aws_s3_bucket.this[0].id : var.bucket_name
  key         = "code/training.tar.gz"
  source      = var.training_package
  source_hash = local.training_package_exists ? filesha256(var.training_package) : null

  # So that it is encrypted with the bucket's key, and versioned, too.
  depends_on = [aws_s3_bucket_server_side_encryption_configuration.this, aws_s3_bucket_versioning.this]

  # Objects can have at most ten tags, which the caller's default tags might exceed, so they get none.
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
