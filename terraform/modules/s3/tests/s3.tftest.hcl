provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

variables {
  bucket_name                       = "team-models"
  checkpoint_retention_days         = 8
  create_bucket                     = true
  data_retention_days               = {}
  force_destroy                     = false
  kms_key_arn                       = null
  manage_bucket_notification        = false
  noncurrent_version_retention_days = 30
  partition                         = "aws"
  raw_model_retention_days          = 31
  snapshot_retention_days           = 365
  tags                              = { Project = "p", Stack = "team-models" }
  training_package                  = "main.tf" # any file
}

run "a_new_bucket_is_closed_keeps_versions_and_forgets_in_time" {
  command = plan

  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this[0].block_public_acls,
      aws_s3_bucket_public_access_block.this[0].block_public_policy,
      aws_s3_bucket_public_access_block.this[0].ignore_public_acls,
      aws_s3_bucket_public_access_block.this[0].restrict_public_buckets,
    ])
    error_message = "Nothing in the bucket may be public."
  }

  assert {
    condition     = one(aws_s3_bucket_ownership_controls.this[0].rule).object_ownership == "BucketOwnerEnforced"
    error_message = "ACLs must be disabled."
  }

  assert {
    condition = jsondecode(data.aws_iam_policy_document.bucket.json).Statement == [{
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = ["arn:aws:s3:::team-models/*", "arn:aws:s3:::team-models"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
    error_message = "The bucket must only be reachable with TLS, and its policy must allow nobody."
  }

  assert {
    condition     = jsondecode(aws_s3_bucket_policy.this[0].policy) == jsondecode(data.aws_iam_policy_document.bucket.json)
    error_message = "The bucket must have that policy."
  }

  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this[0].rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "Without kms_key_arn, S3's own keys must encrypt."
  }

  assert {
    condition     = aws_s3_bucket_versioning.this[0].versioning_configuration[0].status == "Enabled"
    error_message = "The bucket must be versioned, so that a job trains on the upload that started it."
  }

  assert {
    condition = { for rule in aws_s3_bucket_lifecycle_configuration.this[0].rule : rule.id => one(rule.filter).prefix if length(rule.expiration) == 1 && try(one(rule.expiration).days, 0) > 0 } == {
      checkpoints = "models/checkpoints/"
      claims      = "claims/"
      data-claims = "data/claims/"
      raw-models  = "models/raw/"
      snapshots   = "data/snapshots/"
    }
    error_message = "Only leases, checkpoints, raw models, snapshots and what names them may expire; uploads, approved models and records must stay."
  }

  assert {
    condition = { for rule in aws_s3_bucket_lifecycle_configuration.this[0].rule : rule.id => one(rule.expiration).days if length(rule.expiration) == 1 && try(one(rule.expiration).days, 0) > 0 } == {
      checkpoints = 8
      claims      = 7
      data-claims = 365
      raw-models  = 31
      snapshots   = 365
    }
    error_message = "They must expire after the configured days."
  }

  assert {
    condition = { for rule in aws_s3_bucket_lifecycle_configuration.this[0].rule : coalesce(one(rule.filter).prefix, "all") => one(rule.noncurrent_version_expiration).noncurrent_days if length(rule.noncurrent_version_expiration) == 1 } == {
      "all"                 = 30
      "models/checkpoints/" = 1
    }
    error_message = "Old versions must expire, and those of checkpoints soon."
  }

  assert {
    condition     = alltrue([for rule in aws_s3_bucket_lifecycle_configuration.this[0].rule : rule.status == "Enabled"])
    error_message = "Every rule must be enabled."
  }

  assert {
    condition     = aws_s3_bucket_notification.this[0].eventbridge
    error_message = "The bucket must send its events to EventBridge."
  }

  assert {
    condition     = aws_s3_bucket.this[0].force_destroy == false && aws_s3_bucket.this[0].tags == tomap(var.tags)
    error_message = "The bucket must not be destroyed with data in it, and must have the tags."
  }

  assert {
    condition     = aws_s3_object.training_source.key == "code/training.tar.gz" && aws_s3_object.training_source.source_hash == filesha256("main.tf")
    error_message = "A changed source must become a new version of the same object, where a waiting job finds it."
  }

  assert {
    condition     = output.training_source_hash == filesha256("main.tf")
    error_message = "The training orchestrator must learn which source new jobs run."
  }
}

run "every_prefix_with_texts_expires_when_asked" {
  command = plan

  variables {
    data_retention_days = { approved_models = 700, decisions = 701, rejected_uploads = 90, uploads = 91 }
  }

  assert {
    condition = { for rule in aws_s3_bucket_lifecycle_configuration.this[0].rule : one(rule.filter).prefix => one(rule.expiration).days if length(rule.expiration) == 1 && try(one(rule.expiration).days, 0) > 0 } == {
      "claims/"             = 7
      "data/claims/"        = 365
      "data/rejected/"      = 90
      "data/snapshots/"     = 365
      "data/train/"         = 91
      "models/approved/"    = 700
      "models/checkpoints/" = 8
      "models/decisions/"   = 701
      "models/raw/"         = 31
    }
    error_message = "Each prefix must expire after its own days."
  }

  assert {
    condition     = [for rule in aws_s3_bucket_lifecycle_configuration.this[0].rule : rule.id if length(rule.noncurrent_version_expiration) == 1 || try(one(rule.expiration).expired_object_delete_marker, false)] == ["checkpoint-versions", "noncurrent-versions", "delete-markers"]
    error_message = "Their old versions and delete markers must go, too."
  }
}

run "an_own_key_encrypts_the_bucket" {
  command = plan

  variables {
    kms_key_arn = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
  }

  assert {
    condition = one(aws_s3_bucket_server_side_encryption_configuration.this[0].rule).apply_server_side_encryption_by_default[0] == {
      kms_master_key_id = var.kms_key_arn
      sse_algorithm     = "aws:kms"
    }
    error_message = "The key must encrypt every object."
  }

  assert {
    condition     = one(aws_s3_bucket_server_side_encryption_configuration.this[0].rule).bucket_key_enabled
    error_message = "A bucket key must spare a KMS call for each object."
  }
}

run "an_existing_bucket_keeps_its_settings" {
  command = plan

  variables {
    create_bucket = false
  }

  assert {
    condition = alltrue([
      for resource in [
        aws_s3_bucket.this,
        aws_s3_bucket_lifecycle_configuration.this,
        aws_s3_bucket_notification.this,
        aws_s3_bucket_ownership_controls.this,
        aws_s3_bucket_policy.this,
        aws_s3_bucket_public_access_block.this,
        aws_s3_bucket_server_side_encryption_configuration.this,
        aws_s3_bucket_versioning.this,
      ] : length(resource) == 0
    ])
    error_message = "No setting of an existing bucket may be managed."
  }

  assert {
    condition     = aws_s3_object.training_source.bucket == "team-models"
    error_message = "The training source must go into the existing bucket."
  }
}

run "an_existing_bucket_sends_its_events_by_terraform_when_asked" {
  command = plan

  variables {
    create_bucket              = false
    manage_bucket_notification = true
  }

  assert {
    condition     = aws_s3_bucket_notification.this[0].eventbridge && aws_s3_bucket_notification.this[0].bucket == "team-models"
    error_message = "Its events must go to EventBridge."
  }

  assert {
    condition     = length(aws_s3_bucket.this) == 0 && length(aws_s3_bucket_versioning.this) == 0
    error_message = "No other setting may be managed."
  }
}

run "without_the_package_it_says_what_to_run" {
  command = plan

  variables {
    training_package = "no-such-file.tar.gz"
  }

  expect_failures = [aws_s3_object.training_source]
}
