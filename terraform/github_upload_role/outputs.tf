output "oidc_provider_arn" {
  description = "The OIDC provider that the role trusts, for further roles."
  # By name, so that the plan of another role knows it before this one is made.
  value      = coalesce(var.oidc_provider_arn, "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:oidc-provider/${local.issuer}")
  depends_on = [aws_iam_openid_connect_provider.github]
}

output "role_arn" {
  description = "The role: the variable UPLOAD_ROLE_ARN of the workflow."
  value       = aws_iam_role.upload.arn
}
