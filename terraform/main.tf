locals {
  # Seconds. An upload may be gigabytes to copy; the others only talk to AWS. None of them waits for SageMaker.
  timeouts = {
    deployment_orchestrator = 300
    model_evaluator         = 300
    training_orchestrator   = 900
  }
}

module "s3" {
  source = "./modules/s3"

  bucket_name                       = local.bucket_name
  create_bucket                     = var.create_bucket
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

module "lambda_training_orchestrator" {
  source = "./modules/lambda_training_orchestrator"

  base_model                   = var.base_model
  base_model_revision          = var.base_model_revision
  bucket_name                  = local.bucket_name
  failure_queue_arn            = module.monitoring.queue_arn
  hub_token_secret_arn         = var.hub_token_secret_arn
  hyperparameters              = local.hyperparameters
  kms_key_arn                  = var.kms_key_arn
  label_column                 = var.label_column
  log_level                    = var.log_level
  log_retention_days           = var.log_retention_days
  max_concurrent_training_jobs = var.max_concurrent_training_jobs
  max_training_jobs_per_day    = var.max_training_jobs_per_day
  name                         = local.names.training_orchestrator
  package                      = "${local.package_dir}/training_orchestrator.zip"
  project                      = var.project
  role_arn                     = module.iam.function_role_arns.training_orchestrator
  tags                         = local.tags
  text_column                  = var.text_column
  timeout_seconds              = local.timeouts.training_orchestrator
  topic_arn                    = module.monitoring.topic_arn
  training_image               = local.training_image
  training_instance_type       = var.training_instance_type
  training_max_runtime_seconds = var.training_max_runtime_seconds
  training_role_arn            = module.iam.training_role_arn
  training_source_uri          = module.s3.training_source_uri
  training_volume_gb           = var.training_volume_gb
}

module "lambda_model_evaluator" {
  source = "./modules/lambda_model_evaluator"

  bucket_name        = local.bucket_name
  champion_margin    = var.champion_margin
  failure_queue_arn  = module.monitoring.queue_arn
  kms_key_arn        = var.kms_key_arn
  log_level          = var.log_level
  log_retention_days = var.log_retention_days
  model_thresholds   = var.model_thresholds
  name               = local.names.model_evaluator
  package            = "${local.package_dir}/model_evaluator.zip"
  project            = var.project
  role_arn           = module.iam.function_role_arns.model_evaluator
  tags               = local.tags
  thresholds         = var.thresholds
  timeout_seconds    = local.timeouts.model_evaluator
  topic_arn          = module.monitoring.topic_arn
}

module "lambda_deployment_orchestrator" {
  source = "./modules/lambda_deployment_orchestrator"

  bucket_name                = local.bucket_name
  deployment_policy          = local.deployment_policy
  endpoint_instance_count    = var.endpoint_instance_count
  endpoint_instance_type     = var.endpoint_instance_type
  endpoint_name              = var.endpoint_name
  endpoint_type              = var.endpoint_type
  failure_queue_arn          = module.monitoring.queue_arn
  inference_image            = local.inference_image
  keep_models                = var.keep_models
  kms_key_arn                = var.kms_key_arn
  log_level                  = var.log_level
  log_retention_days         = var.log_retention_days
  model_role_arn             = module.iam.model_role_arn
  name                       = local.names.deployment_orchestrator
  package                    = "${local.package_dir}/deployment_orchestrator.zip"
  project                    = var.project
  role_arn                   = module.iam.function_role_arns.deployment_orchestrator
  serverless_max_concurrency = var.serverless_max_concurrency
  serverless_memory_mb       = var.serverless_memory_mb
  tags                       = local.tags
  timeout_seconds            = local.timeouts.deployment_orchestrator
  topic_arn                  = module.monitoring.topic_arn
}

module "eventbridge" {
  source = "./modules/eventbridge"

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
