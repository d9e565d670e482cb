provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

variables {
  bucket_name                = "team-models"
  deployment_policy          = "{}"
  endpoint_instance_count    = 2
  endpoint_instance_type     = "ml.m5.large"
  endpoint_name              = "reviews"
  endpoint_type              = "instance"
  failure_queue_arn          = "arn:aws:sqs:eu-west-1:111122223333:failures"
  inference_image            = "763104351884.dkr.ecr.eu-west-1.amazonaws.com/serve:x"
  keep_models                = 3
  kms_key_arn                = null
  log_level                  = "DEBUG"
  log_retention_days         = 14
  model_role_arn             = "arn:aws:iam::111122223333:role/model"
  name                       = "deployer"
  package                    = "main.tf" # any file
  project                    = "p"
  role_arn                   = "arn:aws:iam::111122223333:role/deployer"
  serverless_max_concurrency = 5
  serverless_memory_mb       = 3072
  tags                       = { Project = "p", Stack = "team-models" }
  timeout_seconds            = 300
  topic_arn                  = "arn:aws:sns:eu-west-1:111122223333:topic"
}

run "the_function_is_as_designed" {
  command = plan

  assert {
    condition = aws_lambda_function.this.environment[0].variables == tomap({
      BUCKET                     = "team-models"
      DEPLOYMENT_POLICY          = "{}"
      ENDPOINT_INSTANCE_COUNT    = "2"
      ENDPOINT_INSTANCE_TYPE     = "ml.m5.large"
      ENDPOINT_NAME              = "reviews"
      ENDPOINT_TYPE              = "instance"
      INFERENCE_IMAGE            = "763104351884.dkr.ecr.eu-west-1.amazonaws.com/serve:x"
      KEEP_MODELS                = "3"
      MODEL_ROLE_ARN             = "arn:aws:iam::111122223333:role/model"
      PROJECT                    = "p"
      SERVERLESS_MAX_CONCURRENCY = "5"
      SERVERLESS_MEMORY_MB       = "3072"
      TOPIC_ARN                  = "arn:aws:sns:eu-west-1:111122223333:topic"
    })
    error_message = "The environment must be exactly what the handler reads."
  }

  assert {
    condition     = [aws_lambda_function.this.function_name, aws_lambda_function.this.role] == [var.name, var.role_arn]
    error_message = "Name and role are the given ones."
  }

  assert {
    condition = [
      aws_lambda_function.this.handler, aws_lambda_function.this.runtime, aws_lambda_function.this.architectures[0],
    ] == ["handler.lambda_handler", "python3.13", "arm64"]
    error_message = "The handler runs on a runtime that both providers know."
  }

  assert {
    condition     = aws_lambda_function.this.timeout == 300
    error_message = "The timeout is the given one."
  }

  assert {
    condition     = aws_lambda_function.this.source_code_hash == filebase64sha256("main.tf")
    error_message = "Another zip is another deployment."
  }

  assert {
    condition     = aws_lambda_function.this.tags == tomap(var.tags) && aws_cloudwatch_log_group.this.tags == tomap(var.tags)
    error_message = "Function and log carry the tags."
  }

  assert {
    condition     = [aws_cloudwatch_log_group.this.name, aws_cloudwatch_log_group.this.retention_in_days] == ["/aws/lambda/${var.name}", 14]
    error_message = "The log is the function's own, and is kept for the days that were set."
  }

  assert {
    condition = aws_lambda_function.this.logging_config[0] == {
      application_log_level = "DEBUG"
      log_format            = "JSON"
      log_group             = "/aws/lambda/${var.name}"
      system_log_level      = "INFO"
    }
    error_message = "The function logs as JSON, on the level that was set, into that group."
  }

  assert {
    condition     = aws_cloudwatch_log_group.this.kms_key_id == null
    error_message = "Without a key of one's own, AWS's encrypts."
  }

  assert {
    condition = [
      aws_lambda_function_event_invoke_config.this.function_name,
      aws_lambda_function_event_invoke_config.this.maximum_retry_attempts,
      aws_lambda_function_event_invoke_config.this.maximum_event_age_in_seconds,
    ] == [var.name, 2, 21600]
    error_message = "A failed event is tried twice more, for six hours at most."
  }

  assert {
    condition     = aws_lambda_function_event_invoke_config.this.destination_config[0].on_failure[0].destination == var.failure_queue_arn
    error_message = "Then it goes to the queue."
  }

  # Beside a failure destination, a dead-letter queue would tell everything twice.
  assert {
    condition     = length(aws_lambda_function.this.dead_letter_config) == 0
    error_message = "It goes there once."
  }
}

run "an_own_key_encrypts_the_log" {
  command = plan

  variables {
    kms_key_arn = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
  }

  assert {
    condition     = aws_cloudwatch_log_group.this.kms_key_id == var.kms_key_arn
    error_message = "The log is encrypted by the key."
  }
}

run "without_the_package_it_says_what_to_run" {
  command = plan

  variables {
    package = "no-such-file.zip"
  }

  expect_failures = [aws_lambda_function.this]
}
