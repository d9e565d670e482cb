# Earlier versions had the resources of each function directly in its module. These blocks let a stack of such a version be
# updated without touching a resource. Delete them once no such stack is left.

moved {
  from = module.lambda_training_orchestrator.aws_cloudwatch_log_group.this
  to   = module.lambda_training_orchestrator.module.function.aws_cloudwatch_log_group.this
}

moved {
  from = module.lambda_training_orchestrator.aws_lambda_function.this
  to   = module.lambda_training_orchestrator.module.function.aws_lambda_function.this
}

moved {
  from = module.lambda_training_orchestrator.aws_lambda_function_event_invoke_config.this
  to   = module.lambda_training_orchestrator.module.function.aws_lambda_function_event_invoke_config.this
}

moved {
  from = module.lambda_model_evaluator.aws_cloudwatch_log_group.this
  to   = module.lambda_model_evaluator.module.function.aws_cloudwatch_log_group.this
}

moved {
  from = module.lambda_model_evaluator.aws_lambda_function.this
  to   = module.lambda_model_evaluator.module.function.aws_lambda_function.this
}

moved {
  from = module.lambda_model_evaluator.aws_lambda_function_event_invoke_config.this
  to   = module.lambda_model_evaluator.module.function.aws_lambda_function_event_invoke_config.this
}

moved {
  from = module.lambda_deployment_orchestrator.aws_cloudwatch_log_group.this
  to   = module.lambda_deployment_orchestrator.module.function.aws_cloudwatch_log_group.this
}

moved {
  from = module.lambda_deployment_orchestrator.aws_lambda_function.this
  to   = module.lambda_deployment_orchestrator.module.function.aws_lambda_function.this
}

moved {
  from = module.lambda_deployment_orchestrator.aws_lambda_function_event_invoke_config.this
  to   = module.lambda_deployment_orchestrator.module.function.aws_lambda_function_event_invoke_config.this
}
