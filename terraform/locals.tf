data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

locals {
  account_id = data.aws_caller_identity.current.account_id
  partition  = data.aws_partition.current.partition
  # From ec2.<region>.<suffix>: provider 6 deprecates id and name, and provider 5 has no region attribute.
  region = split(".", data.aws_region.current.endpoint)[1]

  # S3 names are global, so the default contains the account and the region.
  bucket_name = coalesce(var.bucket_name, "atml-models-${local.account_id}-${local.region}")

  package_dir = coalesce(var.package_dir, "${path.module}/../build")

  # On everything that can have tags, whether or not the caller's provider sets default tags.
  tags = merge(var.tags, { Project = var.project, Stack = local.bucket_name })

  name_bases = {
    approved_rule           = "mlops-approved"
    deployment_orchestrator = "mlops-deployment-orchestrator"
    endpoint_rule           = "mlops-endpoint"
    failure_queue           = "mlops-failures"
    model_evaluator         = "mlops-model-evaluator"
    model_role              = "mlops-model"
    sweep_rule              = "mlops-sweep"
    topic                   = "mlops-notifications"
    training_ended_rule     = "mlops-training-ended"
    training_orchestrator   = "mlops-training-orchestrator"
    training_role           = "mlops-training"
    uploads_rule            = "mlops-uploads"
  }

  # Every name contains the bucket's, so that two stacks in one account never collide. Dots are allowed in bucket names but
  # not in function names. Functions, roles and rules are limited to 64 characters: 55 + "-" + 8 of a hash.
  full_names = { for key, base in local.name_bases : key => "${base}-${replace(local.bucket_name, ".", "-")}" }
  names = {
    for key, name in local.full_names :
    key => length(name) <= 64 ? name : "${substr(name, 0, 55)}-${substr(md5(name), 0, 8)}"
  }

  # Built from names, so that roles and the key's policy don't wait for the queue, which takes the provider half a minute.
  queue_arn = "arn:${local.partition}:sqs:${local.region}:${local.account_id}:${local.names.failure_queue}"
  topic_arn = "arn:${local.partition}:sns:${local.region}:${local.account_id}:${local.names.topic}"

  # Endpoints with alarms: {model: endpoint}. Serverless endpoints have no deployment settings.
  alarmed_endpoints = {
    for model in toset(var.deployment_alarm_models) :
    model => model == "default" ? var.endpoint_name : "${var.endpoint_name}-${model}"
    if var.endpoint_type == "instance"
  }
  deployment_steps = var.deployment_strategy == "linear" ? ceil(100 / var.deployment_step_percent) : 2
  step_size        = { Type = "CAPACITY_PERCENT", Value = var.deployment_step_percent }
  # DeploymentConfig of UpdateEndpoint, as JSON. The function picks each endpoint's own alarms by name.
  deployment_policy = var.endpoint_type != "instance" || (var.deployment_strategy == "all_at_once" && length(local.alarmed_endpoints) == 0) ? "{}" : jsonencode(merge(
    {
      BlueGreenUpdatePolicy = {
        TrafficRoutingConfiguration = merge(
          { Type = upper(var.deployment_strategy), WaitIntervalInSeconds = var.deployment_wait_seconds },
          var.deployment_strategy == "canary" ? { CanarySize = local.step_size } : {},
          var.deployment_strategy == "linear" ? { LinearStepSize = local.step_size } : {},
        )
        TerminationWaitInSeconds         = var.deployment_wait_seconds
        MaximumExecutionTimeoutInSeconds = min(28800, 3600 + var.deployment_wait_seconds * (local.deployment_steps + 1))
      }
    },
    length(local.alarmed_endpoints) == 0 ? {} : {
      AutoRollbackConfiguration = { Alarms = [for name in module.monitoring.deployment_alarm_names : { AlarmName = name }] }
    },
  ))

  # What base_model = "auto" means: the training program measures which of them fits the texts. At a commit, since a job
  # would otherwise train whatever the Hub has on that day. Model cards of others name these commits; `make doctor` and
  # `make verify-aws` ask the Hub whether it has them.
  auto_base_models = {
    english      = "sentence-transformers/all-MiniLM-L6-v2@c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
    multilingual = "intfloat/multilingual-e5-small@c007d7ef6fd86656326059b28395a7a03a7c5846"
  }

  # SageMaker stops what runs longer than 28 days.
  training_max_wait_seconds = coalesce(var.training_max_wait_seconds, min(2 * var.training_max_runtime_seconds, 2419200))

  # Merged, so that overriding one hyperparameter keeps the others.
  hyperparameters = merge({
    batch_size       = "16"
    epochs           = "2"
    holdout_fraction = "0.2"
    learning_rate    = "5e-5"
    max_length       = "128"
    seed             = "42"
  }, var.hyperparameters)
}
