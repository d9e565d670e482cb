resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_338: log_retention_days decides; what must outlast it, the record of every decision, is in the bucket
  name              = "/aws/lambda/${var.name}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn

  tags = var.tags
}

resource "aws_lambda_function" "this" {
  #checkov:skip=CKV_AWS_50: events of S3 and SageMaker join the functions, and no trace passes through those; the logs carry the job
  #checkov:skip=CKV_AWS_115: new accounts have no concurrency to reserve; what costs money is bounded by slots in the bucket
  #checkov:skip=CKV_AWS_116: failures go to the on-failure destination below; a dead-letter queue beside it would get them twice
  #checkov:skip=CKV_AWS_117: it calls AWS's public APIs alone and listens to nobody; a VPC would add a way out to be guarded
  #checkov:skip=CKV_AWS_173: the environment holds names and limits, never a secret; AWS encrypts it with its own key
  #checkov:skip=CKV_AWS_272: whoever may apply this may also sign it; the hash of the zip stands in the plan and the zip can be rebuilt
  function_name    = var.name
  description      = "Checks uploads and starts training jobs"
  role             = var.role_arn
  filename         = var.package
  source_code_hash = fileexists(var.package) ? filebase64sha256(var.package) : null
  handler          = "handler.lambda_handler"
  runtime          = "python3.13"
  # The code is plain Python: it runs anywhere, and arm64 costs less.
  architectures = ["arm64"]
  memory_size   = 256
  timeout       = var.timeout_seconds

  environment {
    variables = {
      BASE_MODEL                   = var.base_model
      BASE_MODEL_REVISION          = var.base_model_revision == null ? "" : var.base_model_revision
      BUCKET                       = var.bucket_name
      HUB_TOKEN_SECRET_ARN         = var.hub_token_secret_arn == null ? "" : var.hub_token_secret_arn
      HYPERPARAMETERS              = jsonencode(var.hyperparameters)
      KMS_KEY_ARN                  = var.kms_key_arn == null ? "" : var.kms_key_arn
      LABEL_COLUMN                 = var.label_column
      MAX_CONCURRENT_TRAINING_JOBS = tostring(var.max_concurrent_training_jobs)
      MAX_TRAINING_JOBS_PER_DAY    = tostring(var.max_training_jobs_per_day)
      PROJECT                      = var.project
      TEXT_COLUMN                  = var.text_column
      TOPIC_ARN                    = var.topic_arn
      TRAINING_IMAGE               = var.training_image
      TRAINING_INSTANCE_TYPE       = var.training_instance_type
      TRAINING_MAX_RUNTIME_SECONDS = tostring(var.training_max_runtime_seconds)
      TRAINING_ROLE_ARN            = var.training_role_arn
      TRAINING_SOURCE_URI          = var.training_source_uri
      TRAINING_VOLUME_GB           = tostring(var.training_volume_gb)
    }
  }

  # The level must be set: Lambda's Python runtime leaves the root logger at WARNING without it.
  logging_config {
    log_format            = "JSON"
    application_log_level = var.log_level
    system_log_level      = "INFO"
    # By reference, so that the group is there first: Lambda would make one without a retention.
    log_group = aws_cloudwatch_log_group.this.name
  }

  tags = var.tags

  lifecycle {
    precondition {
      condition     = fileexists(var.package)
      error_message = "${var.package} does not exist: run `make package` first."
    }
  }
}

resource "aws_lambda_function_event_invoke_config" "this" {
  function_name                = aws_lambda_function.this.function_name
  maximum_event_age_in_seconds = 21600
  maximum_retry_attempts       = 2

  destination_config {
    on_failure {
      destination = var.failure_queue_arn
    }
  }
}
