provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

variables {
  common = {
    kms_key_arn        = null
    log_level          = "DEBUG"
    log_retention_days = 14
    package_dir        = "."
    tags               = { Project = "p", Stack = "team-models" }
  }
  description       = "Does its work"
  environment       = { BUCKET = "team-models", LIMIT = 5 }
  failure_queue_arn = "arn:aws:sqs:eu-west-1:111122223333:failures"
  memory_mb         = 384
  name              = "worker"
  package_name      = "main.tf" # any file
  role_arn          = "arn:aws:iam::111122223333:role/worker"
  timeout_seconds   = 300
}

run "the_function_is_as_designed" {
  command = plan

  assert {
    condition     = aws_lambda_function.this.environment[0].variables == tomap({ BUCKET = "team-models", LIMIT = "5" })
    error_message = "The environment must be exactly what was passed."
  }

  assert {
    condition     = [aws_lambda_function.this.function_name, aws_lambda_function.this.role] == [var.name, var.role_arn]
    error_message = "Name and role must be those that were passed."
  }

  assert {
    condition = [
      aws_lambda_function.this.handler, aws_lambda_function.this.runtime, aws_lambda_function.this.architectures[0],
    ] == ["handler.lambda_handler", "python3.13", "arm64"]
    error_message = "The handler must run on a runtime that both provider versions know."
  }

  assert {
    condition     = [aws_lambda_function.this.timeout, aws_lambda_function.this.memory_size, aws_lambda_function.this.description] == [300, 384, "Does its work"]
    error_message = "Timeout, memory and description must be those that were passed."
  }

  assert {
    condition     = aws_lambda_function.this.source_code_hash == filebase64sha256("main.tf")
    error_message = "A changed zip must be deployed."
  }

  assert {
    condition     = aws_lambda_function.this.tags == tomap(var.common.tags) && aws_cloudwatch_log_group.this.tags == tomap(var.common.tags)
    error_message = "The function and its log group must carry the tags."
  }

  assert {
    condition     = [aws_cloudwatch_log_group.this.name, aws_cloudwatch_log_group.this.retention_in_days] == ["/aws/lambda/${var.name}", 14]
    error_message = "The function must have a log group of its own, kept for log_retention_days."
  }

  assert {
    condition = aws_lambda_function.this.logging_config[0] == {
      application_log_level = "DEBUG"
      log_format            = "JSON"
      log_group             = "/aws/lambda/${var.name}"
      system_log_level      = "INFO"
    }
    error_message = "The function must log JSON at log_level to that log group."
  }

  assert {
    condition     = aws_cloudwatch_log_group.this.kms_key_id == null
    error_message = "Without kms_key_arn, AWS's own key must encrypt the log group."
  }

  assert {
    condition = [
      aws_lambda_function_event_invoke_config.this.function_name,
      aws_lambda_function_event_invoke_config.this.maximum_retry_attempts,
      aws_lambda_function_event_invoke_config.this.maximum_event_age_in_seconds,
    ] == [var.name, 2, 21600]
    error_message = "A failed event must be retried twice, for six hours at most."
  }

  assert {
    condition     = aws_lambda_function_event_invoke_config.this.destination_config[0].on_failure[0].destination == var.failure_queue_arn
    error_message = "After the retries, the event must go to the queue."
  }

  # With a dead-letter queue as well, every failed event would arrive twice.
  assert {
    condition     = length(aws_lambda_function.this.dead_letter_config) == 0
    error_message = "There must be no dead-letter queue as well."
  }
}

run "an_own_key_encrypts_the_log" {
  command = plan

  variables {
    common = {
      kms_key_arn        = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
      log_level          = "DEBUG"
      log_retention_days = 14
      package_dir        = "."
      tags               = {}
    }
  }

  assert {
    condition     = aws_cloudwatch_log_group.this.kms_key_id == var.common.kms_key_arn
    error_message = "The key must encrypt the log group."
  }
}

run "without_the_package_it_says_what_to_run" {
  command = plan

  variables {
    package_name = "no-such-file.zip"
  }

  expect_failures = [aws_lambda_function.this]
}
