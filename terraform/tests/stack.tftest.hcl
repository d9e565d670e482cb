# What the modules become together: names, tags, images, settings as the functions get them, the key's policy.

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
    error_message = "Unnamed, the bucket carries account and region; the region is the provider's."
  }

  assert {
    condition = output.rule_names == {
      approved       = "mlops-approved-atml-models-111122223333-eu-west-1"
      endpoint       = "mlops-endpoint-atml-models-111122223333-eu-west-1"
      sweep          = "mlops-sweep-atml-models-111122223333-eu-west-1"
      training_ended = "mlops-training-ended-atml-models-111122223333-eu-west-1"
      uploads        = "mlops-uploads-atml-models-111122223333-eu-west-1"
    }
    error_message = "Every name carries the bucket's."
  }

  assert {
    condition     = output.topic_arn == "arn:aws:sns:eu-west-1:111122223333:mlops-notifications-atml-models-111122223333-eu-west-1"
    error_message = "The topic is known in the plan."
  }

  assert {
    condition     = local.tags == { Project = "atml", Stack = "atml-models-111122223333-eu-west-1" }
    error_message = "Everything carries project and stack."
  }

  assert {
    condition = [local.training_image, local.inference_image] == [
      "763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch:2.13.0-cpu-amzn2023-sagemaker",
      "763104351884.dkr.ecr.eu-west-1.amazonaws.com/huggingface-pytorch-inference:2.6.0-transformers5.5.3-cpu-py312-ubuntu22.04",
    ]
    error_message = "CPU instances train and serve in CPU images of the region."
  }

  assert {
    condition     = local.timeouts == { deployment_orchestrator = 300, model_evaluator = 300, training_orchestrator = 900 }
    error_message = "The timeouts are those of the design."
  }

  assert {
    condition     = local.deployment_policy == "{}" && length(local.alarmed_endpoints) == 0
    error_message = "Serverless endpoints take no deployment settings."
  }

  # Not limited to somebody: the account's IAM decides. The services are limited to this stack's things.
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
    error_message = "A key's policy lets in the account and the three services that use the key by themselves."
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
    error_message = "Names are cut to 64 characters, without dots, and stay apart."
  }

  assert {
    condition     = local.tags == { CostCenter = "1234", Project = "reviews", Stack = var.bucket_name }
    error_message = "Own tags are added, and do not replace the stack's."
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
    error_message = "Changing one hyperparameter keeps the others."
  }

  assert {
    condition     = strcontains(local.training_image, "huggingface-pytorch-training:") && strcontains(local.inference_image, "-cpu-")
    error_message = "A GPU instance trains in a GPU image; serverless serves on CPUs."
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
    error_message = "A canary is watched by the alarms of its endpoint."
  }

  assert {
    condition     = strcontains(local.inference_image, "-gpu-")
    error_message = "A GPU instance serves from a GPU image."
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
    error_message = "The images come from the region's own account."
  }

  assert {
    condition     = output.topic_arn == "arn:aws-cn:sns:cn-north-1:111122223333:mlops-notifications-atml-models-111122223333-cn-north-1"
    error_message = "ARNs are those of the partition."
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
    error_message = "The key's policy needs nothing of the key."
  }
}
