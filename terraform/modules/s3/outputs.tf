output "training_source_uri" {
  description = "S3 URI of the training jobs' source code."
  value       = "s3://${var.bucket_name}/${aws_s3_object.training_source.key}"
}
