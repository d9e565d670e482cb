module "s3" {
  source = "./modules/s3"

  bucket_name = local.bucket_name
  # A job may still be waiting to go on.
  checkpoint_retention_days         = max(7, ceil(local.training_max_wait_seconds / 86400) + 1)
  create_bucket                     = var.create_bucket
  data_retention_days               = var.data_retention_days
  force_destroy                     = var.force_destroy
  kms_key_arn                       = var.kms_key_arn
  manage_bucket_notification        = var.manage_bucket_notification
  noncurrent_version_retention_days = var.noncurrent_version_retention_days
  partition                         = local.partition
  raw_model_retention_days          = var.raw_model_retention_days
  snapshot_retention_days           = var.snapshot_retention_days
  tags                              = local.tags
  training_package                  = "${local.package_dir}/training.tar.gz"
}

module "iam" {
  source = "./modules/iam"

  account_id        = local.account_id
  alarmed_endpoints = values(local.alarmed_endpoints)
  base_model        = var.base_model
  bucket_name       = local.bucket_name
  endpoint_name     = var.endpoint_name
  function_names = {
    deployment_orchestrator = local.names.deployment_orchestrator
    model_evaluator         = local.names.model_evaluator
    training_orchestrator   = local.names.training_orchestrator
  }
  hub_token_secret_arn = var.hub_token_secret_arn
  inference_image      = local.inference_image
  kms_key_arn          = var.kms_key_arn
  model_role_name      = local.names.model_role
  partition            = local.partition
  queue_arn            = local.queue_arn
  region               = local.region
  tags                 = local.tags
  topic_arn            = local.topic_arn
  training_image       = local.training_image
  training_role_name   = local.names.training_role
  training_use_spot    = var.training_use_spot
}

module "monitoring" {
  source = "./modules/monitoring"

  account_id        = local.account_id
  alarmed_endpoints = values(local.alarmed_endpoints)
  functions = {
    for key, timeout in local.timeouts : key => { name = local.names[key], timeout_seconds = timeout }
  }
  kms_key_arn                = var.kms_key_arn
  latency_alarm_milliseconds = var.latency_alarm_milliseconds
  notification_emails        = var.notification_emails
  partition                  = local.partition
  queue_name                 = local.names.failure_queue
  region                     = local.region
  rule_names = [
    local.names.approved_rule,
    local.names.endpoint_rule,
    local.names.sweep_rule,
    local.names.training_ended_rule,
    local.names.uploads_rule,
  ]
  tags       = local.tags
  topic_name = local.names.topic
}

module "eventbridge" {
  source = "./modules/eventbridge"

  account_id    = local.account_id
  bucket_name   = local.bucket_name
  endpoint_name = var.endpoint_name
  functions = {
    deployment_orchestrator = {
      arn  = module.lambda_deployment_orchestrator.function_arn
      name = module.lambda_deployment_orchestrator.function_name
    }
    model_evaluator = {
      arn  = module.lambda_model_evaluator.function_arn
      name = module.lambda_model_evaluator.function_name
    }
    training_orchestrator = {
      arn  = module.lambda_training_orchestrator.function_arn
      name = module.lambda_training_orchestrator.function_name
    }
  }
  queue_arn = module.monitoring.queue_arn
  rule_names = {
    approved       = local.names.approved_rule
    endpoint       = local.names.endpoint_rule
    sweep          = local.names.sweep_rule
    training_ended = local.names.training_ended_rule
    uploads        = local.names.uploads_rule
  }
  sweep_schedule = var.sweep_schedule
  tags           = local.tags
}
