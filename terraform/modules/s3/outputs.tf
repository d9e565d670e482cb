# Of the object, so that whoever gets the hash is changed after it.
output "training_source_hash" {
  description = "SHA-256 of the training jobs' source code, in hexadecimal."
  value       = aws_s3_object.training_source.source_hash
}

output "training_source_uri" {
  description = "S3 URI of the training jobs' source code."
  value       = "s3://${var.bucket_name}/${aws_s3_object.training_source.key}"
}
