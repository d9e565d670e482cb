# Built from names, so that the plan shows them, and available once the policy is attached: Lambda checks the policy when
# it gets a failure destination.

output "function_role_arns" {
  description = "ARNs of the functions' roles, by function."
  value       = { for key in local.functions : key => "${local.role_prefix}/${var.function_names[key]}" }
  depends_on  = [aws_iam_role_policy.function]
}

output "model_role_arn" {
  description = "ARN of the role of models and endpoints."
  value       = local.model_role_arn
  depends_on  = [aws_iam_role_policy.model]
}

output "training_role_arn" {
  description = "ARN of the role of training jobs."
  value       = local.training_role_arn
  depends_on  = [aws_iam_role_policy.training]
}
