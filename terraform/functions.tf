# The functions. Each environment is composed here and nowhere else: exactly what the handler's Settings read.
# A new setting is a variable with its validation in variables.tf, and one line here.

locals {
  # In seconds. The training orchestrator may copy gigabytes; the others only make API calls. None waits for SageMaker.
  timeouts = {
    deployment_orchestrator = 300
    model_evaluator         = 300
    training_orchestrator   = 900
  }

  common = {
    kms_key_arn        = var.kms_key_arn
    log_level          = var.log_level
    log_retention_days = var.log_retention_days
    package_dir        = local.package_dir
    tags               = local.tags
  }

  common_environment = {
    BUCKET    = local.bucket_name
    PROJECT   = var.project
    TOPIC_ARN = module.monitoring.topic_arn
  }

  # A check without min or max has null there; the function only gets what is set.
  thresholds = {
    for metric, check in var.thresholds :
    metric => { for direction, value in check : direction => value if value != null }
  }
  model_thresholds = {
    for model, checks in var.model_thresholds : model => {
      for metric, check in checks :
      metric => { for direction, value in check : direction => value if value != null }
    }
  }
}

module "lambda_training_orchestrator" {
  source = "./modules/lambda_training_orchestrator"

  common            = local.common
  failure_queue_arn = module.monitoring.queue_arn
  name              = local.names.training_orchestrator
  role_arn          = module.iam.function_role_arns.training_orchestrator
  timeout_seconds   = local.timeouts.training_orchestrator

  environment = merge(local.common_environment, {
    BASE_MODEL                   = var.base_model
    BASE_MODELS                  = jsonencode(var.base_models)
    BASE_MODEL_ENGLISH           = local.auto_base_models.english
    BASE_MODEL_MULTILINGUAL      = local.auto_base_models.multilingual
    BASE_MODEL_REVISION          = var.base_model_revision == null ? "" : var.base_model_revision
    CANDIDATES                   = var.candidates
    HUB_TOKEN_SECRET_ARN         = var.hub_token_secret_arn == null ? "" : var.hub_token_secret_arn
    HYPERPARAMETERS              = jsonencode(local.hyperparameters)
    KMS_KEY_ARN                  = var.kms_key_arn == null ? "" : var.kms_key_arn
    LABEL_COLUMN                 = var.label_column
    MAX_CONCURRENT_TRAINING_JOBS = var.max_concurrent_training_jobs
    MAX_MODELS                   = var.max_models
    MAX_ROWS_LEFT_OUT            = var.max_rows_left_out
    MAX_TRAINING_JOBS_PER_DAY    = var.max_training_jobs_per_day
    MODELS                       = join(" ", var.models)
    TEXT_COLUMN                  = var.text_column
    TRAINING_IMAGE               = local.training_image
    TRAINING_INSTANCE_COUNT      = var.training_instance_count
    TRAINING_INSTANCE_TYPE       = var.training_instance_type
    TRAINING_MAX_RUNTIME_SECONDS = var.training_max_runtime_seconds
    TRAINING_MAX_WAIT_SECONDS    = var.training_use_spot ? local.training_max_wait_seconds : ""
    TRAINING_ROLE_ARN            = module.iam.training_role_arn
    TRAINING_SOURCE_HASH         = module.s3.training_source_hash
    TRAINING_SOURCE_URI          = module.s3.training_source_uri
    TRAINING_VOLUME_GB           = var.training_volume_gb
  })
}

module "lambda_model_evaluator" {
  source = "./modules/lambda_model_evaluator"

  common            = local.common
  failure_queue_arn = module.monitoring.queue_arn
  name              = local.names.model_evaluator
  role_arn          = module.iam.function_role_arns.model_evaluator
  timeout_seconds   = local.timeouts.model_evaluator

  environment = merge(local.common_environment, {
    ACCEPT_UNCOMPARED = join(",", var.accept_uncompared)
    CHAMPION_MARGIN   = var.champion_margin
    MODEL_THRESHOLDS  = jsonencode(local.model_thresholds)
    THRESHOLDS        = jsonencode(local.thresholds)
  })
}

module "lambda_deployment_orchestrator" {
  source = "./modules/lambda_deployment_orchestrator"

  common            = local.common
  failure_queue_arn = module.monitoring.queue_arn
  name              = local.names.deployment_orchestrator
  role_arn          = module.iam.function_role_arns.deployment_orchestrator
  timeout_seconds   = local.timeouts.deployment_orchestrator

  environment = merge(local.common_environment, {
    DEPLOYMENT_POLICY          = local.deployment_policy
    ENDPOINT_INSTANCE_COUNT    = var.endpoint_instance_count
    ENDPOINT_INSTANCE_TYPE     = var.endpoint_instance_type
    ENDPOINT_NAME              = var.endpoint_name
    ENDPOINT_TYPE              = var.endpoint_type
    INFERENCE_IMAGE            = local.inference_image
    KEEP_MODELS                = var.keep_models
    MODEL_ROLE_ARN             = module.iam.model_role_arn
    SERVERLESS_MAX_CONCURRENCY = var.serverless_max_concurrency
    SERVERLESS_MEMORY_MB       = var.serverless_memory_mb
  })
}
