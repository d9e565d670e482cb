output "bucket_name" {
  description = "Value of the variable BUCKET of upload-data.yml."
  value       = module.pipeline.bucket_name
}

output "endpoint_name" {
  description = "Endpoint of the model 'default'; spam's is <endpoint_name>-spam."
  value       = module.pipeline.endpoint_name
}

output "topic_arn" {
  description = "Notification topic, for further subscriptions."
  value       = module.pipeline.topic_arn
}

output "upload_role_arn" {
  description = "Value of the variable UPLOAD_ROLE_ARN of upload-data.yml."
  value       = module.github_upload_role.role_arn
}
