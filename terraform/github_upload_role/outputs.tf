output "oidc_provider_arn" {
  description = "The OIDC provider that the role trusts, for further roles."
  value       = local.oidc_provider_arn
}

output "role_arn" {
  description = "The role: the variable UPLOAD_ROLE_ARN of the workflow."
  value       = aws_iam_role.upload.arn
}
