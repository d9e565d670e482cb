output "bucket_name" {
  description = "The stack's bucket. Upload CSVs to s3://<bucket>/data/train/."
  value       = local.bucket_name
}

output "deployment_orchestrator_name" {
  description = "Name of the deployment orchestrator function."
  value       = module.lambda_deployment_orchestrator.function_name
}

output "endpoint_name" {
  description = "Endpoint of the model 'default'; every other model has <endpoint_name>-<model>."
  value       = var.endpoint_name
}

output "failure_queue_url" {
  description = "URL of the queue with events that could not be processed."
  value       = module.monitoring.queue_url
}

output "kms_key_policy" {
  description = "Policy that the KMS key in kms_key_arn needs, as JSON."
  value       = data.aws_iam_policy_document.kms_key.json
}

output "max_models" {
  description = "How many different models may be trained while the list of models is empty."
  value       = var.max_models
}

output "model_evaluator_name" {
  description = "Name of the model evaluator function."
  value       = module.lambda_model_evaluator.function_name
}

output "models" {
  description = "Models that may be trained; empty: any, up to max_models."
  value       = var.models
}

output "project_name" {
  description = "Value of the Project tag."
  value       = var.project
}

output "region_name" {
  description = "AWS region of the stack."
  value       = local.region
}

output "rule_names" {
  description = "Names of the EventBridge rules, by key."
  value       = module.eventbridge.rule_names
}

output "topic_arn" {
  description = "ARN of the notification topic."
  value       = module.monitoring.topic_arn
}

output "training_orchestrator_name" {
  description = "Name of the training orchestrator function."
  value       = module.lambda_training_orchestrator.function_name
}

output "training_source_uri" {
  description = "S3 URI of the source code that new training jobs run."
  value       = module.s3.training_source_uri
}
