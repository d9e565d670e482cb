# What sets the model evaluator apart. ../lambda_function has what all functions share, ../../functions.tf composes the environment.

module "function" {
  source = "../lambda_function"

  common            = var.common
  description       = "Judges trained models and approves them"
  environment       = var.environment
  failure_queue_arn = var.failure_queue_arn
  memory_mb         = 1024
  name              = var.name
  package_name      = "model_evaluator.zip"
  role_arn          = var.role_arn
  timeout_seconds   = var.timeout_seconds
}
