# The stack as a whole: names, tags, images, composed settings, the key policy.

provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "111122223333" }
}

run "defaults" {
  command = plan

  assert {
    condition     = output.bucket_name == "atml-models-111122223333-eu-west-1" && output.region_name == "eu-west-1"
    error_message = "The default bucket name must contain account and region, and the region must be the provider's."
  }

  assert {
    condition = output.rule_names == {
      approved       = "mlops-approved-atml-models-111122223333-eu-west-1"
      endpoint       = "mlops-endpoint-atml-models-111122223333-eu-west-1"
      sweep          = "mlops-sweep-atml-models-111122223333-eu-west-1"
      training_ended = "mlops-training-ended-atml-models-111122223333-eu-west-1"
      uploads        = "mlops-uploads-atml-models-111122223333-eu-west-1"
    }
    error_message = "Every name must end with the bucket's."
  }

  assert {
    condition     = output.topic_arn == "arn:aws:sns:eu-west-1:111122223333:mlops-notifications-atml-models-111122223333-eu-west-1"
    error_message = "The plan must know the topic's ARN."
  }

  assert {
    condition     = local.tags == { Project = "atml", Stack = "atml-models-111122223333-eu-west-1" }
    error_message = "Everything must have the Project and Stack tags."
  }

  assert {
    condition = [local.training_image, local.inference_image] == [
      "763104351884.dkr.ecr.eu-west-1.amazonaws.com/${local.training_images.cpu}",
      "763104351884.dkr.ecr.eu-west-1.amazonaws.com/${local.inference_images.cpu}",
    ]
    error_message = "CPU instances must train and serve in the region's CPU images."
  }

  # A young account has a concurrency of 10 over all its serverless endpoints, and four hours train a normal CSV on a CPU.
  assert {
    condition     = [var.serverless_max_concurrency, var.training_max_runtime_seconds] == [2, 14400]
    error_message = "The defaults must do for a young account and a normal CSV."
  }

  assert {
    condition     = local.timeouts == { deployment_orchestrator = 300, model_evaluator = 300, training_orchestrator = 900 }
    error_message = "The timeouts must be those of the design."
  }

  assert {
    condition     = local.deployment_policy == "{}" && length(local.alarmed_endpoints) == 0
    error_message = "Serverless endpoints must get no deployment settings."
  }

  # The account is not limited: its IAM decides. The services are limited to this stack's resources.
  assert {
    condition = [for statement in jsondecode(output.kms_key_policy).Statement : [statement.Sid, jsonencode(statement.Principal), jsonencode(statement.Action), jsonencode(try(statement.Condition, {}))]] == [
      ["Account", jsonencode({ AWS = "arn:aws:iam::111122223333:root" }), jsonencode("kms:*"), "{}"],
      [
        "UndeliveredEvents",
        jsonencode({ Service = "events.amazonaws.com" }),
        jsonencode(["kms:GenerateDataKey", "kms:Decrypt"]),
        jsonencode({ StringEquals = { "kms:EncryptionContext:aws:sqs:arn" = "arn:aws:sqs:eu-west-1:111122223333:mlops-failures-atml-models-111122223333-eu-west-1" } }),
      ],
      [
        "Alarms",
        jsonencode({ Service = "cloudwatch.amazonaws.com" }),
        jsonencode(["kms:GenerateDataKey", "kms:Decrypt"]),
        jsonencode({ StringEquals = { "kms:EncryptionContext:aws:sns:topicArn" = "arn:aws:sns:eu-west-1:111122223333:mlops-notifications-atml-models-111122223333-eu-west-1" } }),
      ],
      [
        "FunctionLogs",
        jsonencode({ Service = "logs.eu-west-1.amazonaws.com" }),
        jsonencode(["kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:Encrypt", "kms:Describe*", "kms:Decrypt"]),
        jsonencode({ ArnEquals = { "kms:EncryptionContext:aws:logs:arn" = [for name in ["deployment-orchestrator", "model-evaluator", "training-orchestrator"] : "arn:aws:logs:eu-west-1:111122223333:log-group:/aws/lambda/mlops-${name}-atml-models-111122223333-eu-west-1"] } }),
      ],
    ]
    error_message = "A key policy must allow the account and the three services that use the key on their own behalf."
  }
}

run "the_default_models_are_pinned" {
  command = plan

  assert {
    condition     = var.base_model == "auto" && alltrue([for model in values(local.auto_base_models) : can(regex("^[a-z-]+/[A-Za-z0-9-]+@[0-9a-f]{40}$", model))])
    error_message = "Without a setting, every job must train the same commit of the default models."
  }
}

run "a_spot_job_may_wait_as_long_as_it_runs" {
  command = plan

  variables {
    training_max_runtime_seconds = 3600
    training_use_spot            = true
  }

  assert {
    condition     = local.training_max_wait_seconds == 7200
    error_message = "Without a setting, a spot job must have twice its running time."
  }
}

run "a_spot_job_waits_no_longer_than_sagemaker_does" {
  command = plan

  variables {
    training_max_runtime_seconds = 2419200
    training_use_spot            = true
  }

  assert {
    condition     = local.training_max_wait_seconds == 2419200
    error_message = "28 days is the most."
  }
}

run "own_names_and_settings" {
  command = plan

  variables {
    bucket_name            = "team.models.with.a.name.that.is.as.long.as.s3.allows.it.to.be.x"
    hyperparameters        = { epochs = "5", weight_decay = "0.1" }
    project                = "reviews"
    tags                   = { CostCenter = "1234", Project = "mine" }
    training_instance_type = "ml.g5.xlarge"
  }

  assert {
    condition     = alltrue([for name in values(local.names) : length(name) <= 64 && !strcontains(name, ".")]) && length(distinct(values(local.names))) == length(local.names)
    error_message = "Names must be cut to 64 characters, have no dots, and stay distinct."
  }

  assert {
    condition     = local.tags == { CostCenter = "1234", Project = "reviews", Stack = var.bucket_name }
    error_message = "Your own tags must be added without replacing the stack's."
  }

  assert {
    condition = local.hyperparameters == {
      batch_size       = "16"
      epochs           = "5"
      holdout_fraction = "0.2"
      learning_rate    = "5e-5"
      max_length       = "128"
      seed             = "42"
      weight_decay     = "0.1"
    }
    error_message = "Overriding one hyperparameter must keep the others."
  }

  assert {
    condition     = strcontains(local.training_image, "huggingface-pytorch-training:") && strcontains(local.inference_image, "-cpu-")
    error_message = "A GPU instance must train in a GPU image, and serverless must serve from a CPU image."
  }
}

run "canary_on_instances" {
  command = plan

  variables {
    deployment_alarm_models = ["default", "reviews"]
    deployment_step_percent = 25
    deployment_strategy     = "canary"
    endpoint_instance_count = 4
    endpoint_instance_type  = "ml.g4dn.xlarge"
    endpoint_type           = "instance"
  }

  assert {
    condition = jsondecode(local.deployment_policy) == {
      AutoRollbackConfiguration = {
        Alarms = [
          for name in sort(flatten([for endpoint in ["mlops-endpoint", "mlops-endpoint-reviews"] : [for check in ["4xx-errors", "5xx-errors", "latency"] : "${endpoint}/${check}"]])) :
          { AlarmName = name }
        ]
      }
      BlueGreenUpdatePolicy = {
        MaximumExecutionTimeoutInSeconds = 4500
        TerminationWaitInSeconds         = 300
        TrafficRoutingConfiguration = {
          CanarySize            = { Type = "CAPACITY_PERCENT", Value = 25 }
          Type                  = "CANARY"
          WaitIntervalInSeconds = 300
        }
      }
    }
    error_message = "A canary must be watched by the alarms of its endpoint."
  }

  assert {
    condition     = strcontains(local.inference_image, "-gpu-")
    error_message = "A GPU instance must serve from a GPU image."
  }
}

run "another_region_has_its_own_images" {
  command = plan

  override_data {
    target = data.aws_region.current
    values = { endpoint = "ec2.cn-north-1.amazonaws.com.cn" }
  }

  override_data {
    target = data.aws_partition.current
    values = { partition = "aws-cn", dns_suffix = "amazonaws.com.cn" }
  }

  assert {
    condition     = startswith(local.training_image, "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/pytorch:")
    error_message = "The images must come from the region's own account."
  }

  assert {
    condition     = output.topic_arn == "arn:aws-cn:sns:cn-north-1:111122223333:mlops-notifications-atml-models-111122223333-cn-north-1"
    error_message = "ARNs must be of the region's partition."
  }
}

run "govcloud_east_has_its_own_images" {
  command = plan

  override_data {
    target = data.aws_region.current
    values = { endpoint = "ec2.us-gov-east-1.amazonaws.com" }
  }

  override_data {
    target = data.aws_partition.current
    values = { partition = "aws-us-gov", dns_suffix = "amazonaws.com" }
  }

  assert {
    condition     = local.image_registry == "446045086412.dkr.ecr.us-gov-east-1.amazonaws.com"
    error_message = "GovCloud (US-East) has an account of its own."
  }
}

# --- regions that lack an image: refused in the plan, not when the first model is deployed ---

run "a_region_without_the_serving_image_is_refused" {
  command = plan

  override_data {
    target = data.aws_region.current
    values = { endpoint = "ec2.mx-central-1.amazonaws.com" }
  }

  expect_failures = [var.inference_image]
}

run "a_region_without_the_serving_image_takes_your_own" {
  command = plan

  variables {
    inference_image = "111122223333.dkr.ecr.mx-central-1.amazonaws.com/serve:1"
  }

  override_data {
    target = data.aws_region.current
    values = { endpoint = "ec2.mx-central-1.amazonaws.com" }
  }

  # PyTorch's image is there: only HuggingFace's are not.
  assert {
    condition = [local.training_image, local.inference_image] == [
      "637423239942.dkr.ecr.mx-central-1.amazonaws.com/${local.training_images.cpu}",
      "111122223333.dkr.ecr.mx-central-1.amazonaws.com/serve:1",
    ]
    error_message = "With a serving image of your own, the region must do."
  }
}

run "a_region_without_the_gpu_training_image_is_refused_for_gpus" {
  command = plan

  variables {
    training_instance_type = "ml.g5.xlarge"
  }

  override_data {
    target = data.aws_region.current
    values = { endpoint = "ec2.eu-south-2.amazonaws.com" }
  }

  expect_failures = [var.training_instance_type]
}

run "a_region_without_the_gpu_training_image_trains_on_gpus_in_your_own" {
  command = plan

  variables {
    training_image         = "111122223333.dkr.ecr.eu-south-2.amazonaws.com/train:1"
    training_instance_type = "ml.g5.xlarge"
  }

  override_data {
    target = data.aws_region.current
    values = { endpoint = "ec2.eu-south-2.amazonaws.com" }
  }

  assert {
    condition     = local.training_image == "111122223333.dkr.ecr.eu-south-2.amazonaws.com/train:1"
    error_message = "With a training image of your own, the region must do."
  }
}

run "a_region_without_the_gpu_training_image_trains_on_cpus" {
  command = plan

  override_data {
    target = data.aws_region.current
    values = { endpoint = "ec2.eu-south-2.amazonaws.com" }
  }

  assert {
    condition     = startswith(local.training_image, "503227376785.dkr.ecr.eu-south-2.amazonaws.com/pytorch:")
    error_message = "CPU instances train in PyTorch's image, which is there."
  }
}

run "the_regions_without_an_image_are_those_that_aws_does_not_list" {
  command = plan

  assert {
    condition = local.regions_without_image == {
      inference    = ["ap-east-2", "ap-southeast-5", "ap-southeast-6", "ap-southeast-7", "mx-central-1"]
      training_gpu = ["ap-east-2", "ap-south-2", "ap-southeast-4", "ap-southeast-5", "ap-southeast-6", "ap-southeast-7", "eu-central-2", "eu-south-2", "mx-central-1"]
    }
    error_message = "Every region that AWS's list of images leaves out must be refused."
  }
}

run "a_key_can_be_made_in_the_same_apply" {
  command = plan

  module {
    source = "./tests/own_key"
  }

  override_data {
    target = module.pipeline.data.aws_caller_identity.current
    values = { account_id = "111122223333" }
  }

  assert {
    condition     = length(jsondecode(aws_kms_key.pipeline.policy).Statement) == 4
    error_message = "The key policy must not depend on the key."
  }
}
