# What a team with real users would set: instances with a canary, its own thresholds and encryption key, uploads from
# GitHub.

locals {
  bucket_name = "my-team-models"
  tags        = { CostCenter = "1234", Team = "ml" }
}

# The module outputs the policy that the key needs, and builds it without anything that the key encrypts.
resource "aws_kms_key" "pipeline" {
  description         = "Data, models and messages of ${local.bucket_name}"
  enable_key_rotation = true
  policy              = module.pipeline.kms_key_policy
  tags                = local.tags

  # Without the key the data is lost, even if the bucket is kept.
  lifecycle {
    prevent_destroy = true
  }
}

module "pipeline" {
  # From another repository: "git::https://github.com/<org>/<repo>.git//terraform?ref=v1.0.0"
  source = "../.."

  bucket_name = local.bucket_name
  kms_key_arn = aws_kms_key.pipeline.arn
  project     = "support-texts"
  tags        = local.tags

  # From another repository: the folder of the release's packages.
  # package_dir = "${path.root}/packages"

  # --- notifications ---
  notification_emails = ["ml-team@example.com", "on-call@example.com"]

  # --- training ---
  base_model                   = "intfloat/multilingual-e5-small" # for texts that are never English alone
  base_model_revision          = "c007d7ef6fd86656326059b28395a7a03a7c5846"
  hyperparameters              = { epochs = 5 }
  max_concurrent_training_jobs = 3
  max_training_jobs_per_day    = 10
  models                       = ["default", "spam"]
  training_instance_type       = "ml.g5.xlarge" # needs a quota: Service Quotas, Amazon SageMaker
  training_max_runtime_seconds = 3600
  training_use_spot            = true

  # --- the gate ---
  thresholds = {
    accuracy = { min = 0.85 }
    macro_f1 = { min = 0.8 }
  }
  model_thresholds = {
    spam = {
      accuracy  = { min = 0.97 }
      eval_loss = { max = 0.2 }
    }
  }
  champion_margin   = 0.01
  accept_uncompared = ["spam"]

  # --- serving: half of the instances first, rolled back automatically when an alarm goes off ---
  endpoint_type              = "instance"
  endpoint_instance_type     = "ml.m5.large"
  endpoint_instance_count    = 2
  deployment_strategy        = "canary"
  deployment_step_percent    = 50
  deployment_wait_seconds    = 600
  deployment_alarm_models    = ["default", "spam"]
  latency_alarm_milliseconds = 500
  keep_models                = 5

  # --- retention, in days ---
  log_retention_days                = 90
  noncurrent_version_retention_days = 90
  raw_model_retention_days          = 14
  snapshot_retention_days           = 730
}

# Lets the upload-data.yml workflow of one repository upload CSVs to the bucket.
module "github_upload_role" {
  # From another repository: "git::https://github.com/<org>/<repo>.git//terraform/github_upload_role?ref=v1.0.0"
  source = "../../github_upload_role"

  bucket_name  = module.pipeline.bucket_name
  branches     = []
  environments = ["production"]
  kms_key_arn  = aws_kms_key.pipeline.arn
  models       = ["default", "spam"]
  repository   = "my-org/my-data"
  tags         = local.tags
}
