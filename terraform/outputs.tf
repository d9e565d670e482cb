output "bucket_name" {
  description = "The bucket. Upload to s3://<bucket>/data/train/."
  value       = local.bucket_name
}

output "deployment_orchestrator_name" {
  description = "Name of the deployment orchestrator function."
  value       = module.lambda_deployment_orchestrator.function_name
}

output "endpoint_name" {
  description = "Endpoint of the model 'default'; the others are <endpoint_name>-<model>."
  value       = var.endpoint_name
}

output "failure_queue_url" {
  description = "URL of the queue of events that could not be processed."
  value       = module.monitoring.queue_url
}

output "kms_key_policy" {
  description = "Policy for a KMS key that is given as kms_key_arn, as JSON."
  value       = data.aws_iam_policy_document.kms_key.json
}

output "model_evaluator_name" {
  description = "Name of the model evaluator function."
  value       = module.lambda_model_evaluator.function_name
}

output "project_name" {
  description = "Value of the tag Project."
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
  description = "S3 URI of the training source that new jobs get."
  value       = module.s3.training_source_uri
}
