# What sets the training orchestrator apart. ../lambda_function has what all functions share, ../../functions.tf composes the environment.

module "function" {
  source = "../lambda_function"

  common            = var.common
  description       = "Checks uploads and starts training jobs"
  environment       = var.environment
  failure_queue_arn = var.failure_queue_arn
  # From here on a function has a whole processor, and the time for reading an upload is limited.
  # https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html
  memory_mb       = 1769
  name            = var.name
  package_name    = "training_orchestrator.zip"
  role_arn        = var.role_arn
  timeout_seconds = var.timeout_seconds
}
