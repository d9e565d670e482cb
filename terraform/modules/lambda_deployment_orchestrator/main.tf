# What sets the deployment orchestrator apart. ../lambda_function has what all functions share, ../../functions.tf composes the environment.

module "function" {
  source = "../lambda_function"

  common            = var.common
  description       = "Deploys approved models and reports what became of it"
  environment       = var.environment
  failure_queue_arn = var.failure_queue_arn
  memory_mb         = 512
  name              = var.name
  package_name      = "deployment_orchestrator.zip"
  role_arn          = var.role_arn
  timeout_seconds   = var.timeout_seconds
}
