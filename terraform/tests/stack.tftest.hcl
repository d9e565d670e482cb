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
