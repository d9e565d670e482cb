# What every function is: its log group, its code and settings, and where its failed events go.

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_338: log_retention_days decides; the record of every decision, which must outlast the log, is in the bucket
  name              = "/aws/lambda/${var.name}"
  retention_in_days = var.common.log_retention_days
  kms_key_id        = var.common.kms_key_arn

  tags = var.common.tags
}

resource "aws_lambda_function" "this" {
  #checkov:skip=CKV_AWS_50: S3 and SageMaker events link the functions, and no trace passes through those; the logs carry the job's name
  #checkov:skip=CKV_AWS_115: new accounts have no concurrency to reserve; slots in the bucket bound what costs money
  #checkov:skip=CKV_AWS_116: failures go to the on-failure destination below; with a dead-letter queue as well, each would be sent twice
  #checkov:skip=CKV_AWS_117: it only calls AWS's public APIs and accepts no connections; in a VPC it would need a way out, one more thing to guard
  #checkov:skip=CKV_AWS_173: the environment holds names and limits, never a secret; AWS encrypts it with its own key
  #checkov:skip=CKV_AWS_272: whoever can apply this can also sign it; the plan shows the zip's hash, and anyone can rebuild the zip
  function_name    = var.name
  description      = var.description
  role             = var.role_arn
  filename         = local.package
  source_code_hash = local.package_exists ? filebase64sha256(local.package) : null
  handler          = "handler.lambda_handler"
  runtime          = "python3.13"
  # The code is plain Python, which runs anywhere, and arm64 costs less.
  architectures = ["arm64"]
  memory_size   = var.memory_mb
  timeout       = var.timeout_seconds

  environment {
    variables = var.environment
  }

  # Without an explicit level, Lambda's Python runtime leaves the root logger at WARNING.
  logging_config {
    log_format            = "JSON"
    application_log_level = var.common.log_level
    system_log_level      = "INFO"
    # A reference, so that the log group exists first: Lambda would create one that keeps logs forever.
    log_group = aws_cloudwatch_log_group.this.name
  }

  tags = var.common.tags

  lifecycle {
    precondition {
      condition     = local.package_exists
      error_message = "${local.package} does not exist: run `make package`, or set package_dir to the folder of a release's packages."
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

locals {
  package        = "${var.common.package_dir}/${var.package_name}"
  package_exists = fileexists(local.package)
}
