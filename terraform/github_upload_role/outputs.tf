output "oidc_provider_arn" {
  description = "OIDC provider that the role trusts, for further roles."
  # Built from the name, so that another role can be planned before this one is applied.
  value      = coalesce(var.oidc_provider_arn, "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:oidc-provider/${local.issuer}")
  depends_on = [aws_iam_openid_connect_provider.github]
}

output "role_arn" {
  description = "ARN of the role: the value of the workflow's variable UPLOAD_ROLE_ARN."
  value       = aws_iam_role.upload.arn
}
