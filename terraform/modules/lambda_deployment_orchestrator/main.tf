resource "aws_cloudwatch_log_group" "this" {
  name              = "/aws/lambda/${var.name}"
  retention_in_days = var.log_retention_days

  tags = var.tags
}

resource "aws_lambda_function" "this" {
  function_name    = var.name
  description      = "Deploys approved models and reports what became of it"
  role             = var.role_arn
  filename         = var.package
  source_code_hash = fileexists(var.package) ? filebase64sha256(var.package) : null
  handler          = "handler.lambda_handler"
  runtime          = "python3.13"
  # The code is plain Python: it runs anywhere, and arm64 costs less.
  architectures = ["arm64"]
  memory_size   = 512
  timeout       = var.timeout_seconds

  environment {
    variables = {
      BUCKET                     = var.bucket_name
      DEPLOYMENT_POLICY          = var.deployment_policy
      ENDPOINT_INSTANCE_COUNT    = tostring(var.endpoint_instance_count)
      ENDPOINT_INSTANCE_TYPE     = var.endpoint_instance_type
      ENDPOINT_NAME              = var.endpoint_name
      ENDPOINT_TYPE              = var.endpoint_type
      INFERENCE_IMAGE            = var.inference_image
      KEEP_MODELS                = tostring(var.keep_models)
      MODEL_ROLE_ARN             = var.model_role_arn
      PROJECT                    = var.project
      SERVERLESS_MAX_CONCURRENCY = tostring(var.serverless_max_concurrency)
      SERVERLESS_MEMORY_MB       = tostring(var.serverless_memory_mb)
      TOPIC_ARN                  = var.topic_arn
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
