provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

variables {
  account_id        = "111122223333"
  alarmed_endpoints = []
  base_model        = "org/name"
  bucket_name       = "team-models"
  endpoint_name     = "reviews"
  function_names = {
    deployment_orchestrator = "deployer"
    model_evaluator         = "evaluator"
    training_orchestrator   = "trainer"
  }
  hub_token_secret_arn = null
  inference_image      = "763104351884.dkr.ecr.eu-west-1.amazonaws.com/serve:1.0-cpu"
  kms_key_arn          = null
  model_role_name      = "model"
  partition            = "aws"
  queue_arn            = "arn:aws:sqs:eu-west-1:111122223333:failures"
  region               = "eu-west-1"
  tags                 = { Project = "p", Stack = "team-models" }
  topic_arn            = "arn:aws:sns:eu-west-1:111122223333:topic"
  training_image       = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/ours/train@sha256:${join("", [for i in range(64) : "0"])}"
  training_role_name   = "training"
  training_use_spot    = false
}

# tests/contract compares each statement with the calls that the functions make; this file checks what must never be allowed.
run "no_role_reaches_beyond_the_stack" {
  command = plan

  assert {
    condition = alltrue([
      for role in aws_iam_role.function : jsondecode(role.assume_role_policy).Statement == [{
        Effect    = "Allow"
        Action    = "sts:AssumeRole"
        Principal = { Service = "lambda.amazonaws.com" }
        Condition = { StringEquals = { "aws:SourceAccount" = "111122223333" } }
      }]
    ])
    error_message = "Only Lambda, for this account, may assume a function's role."
  }

  assert {
    condition = alltrue([
      for role in [aws_iam_role.training, aws_iam_role.model] : jsondecode(role.assume_role_policy).Statement == [{
        Effect    = "Allow"
        Action    = "sts:AssumeRole"
        Principal = { Service = "sagemaker.amazonaws.com" }
        Condition = { StringEquals = { "aws:SourceAccount" = "111122223333" } }
      }]
    ])
    error_message = "Only SageMaker, for this account, may assume the roles of jobs and models."
  }

  assert {
    condition = alltrue(flatten([
      for policy in concat(values(aws_iam_role_policy.function), [aws_iam_role_policy.training, aws_iam_role_policy.model]) : [
        for statement in jsondecode(policy.policy).Statement :
        statement.Effect == "Allow" && alltrue([for action in flatten([statement.Action]) : !strcontains(action, "*")])
      ]
    ]))
    error_message = "Every action must be named."
  }

  # ECR's token and CloudWatch's metrics have no resources.
  assert {
    condition = toset(flatten([
      for policy in concat(values(aws_iam_role_policy.function), [aws_iam_role_policy.training, aws_iam_role_policy.model]) : [
        for statement in jsondecode(policy.policy).Statement : statement.Action if contains(flatten([statement.Resource]), "*")
      ]
    ])) == toset(["cloudwatch:PutMetricData", "ecr:GetAuthorizationToken"])
    error_message = "Every resource must be named, except for the two actions that AWS has no resource for."
  }

  assert {
    condition = alltrue(flatten([
      for policy in concat(values(aws_iam_role_policy.function), [aws_iam_role_policy.training, aws_iam_role_policy.model]) : [
        for statement in jsondecode(policy.policy).Statement : [
          for resource in flatten([statement.Resource]) :
          resource == "arn:aws:s3:::team-models" || startswith(resource, "arn:aws:s3:::team-models/")
        ] if anytrue([for action in flatten([statement.Action]) : startswith(action, "s3:")])
      ]
    ]))
    error_message = "Only the stack's own bucket may be accessed."
  }

  assert {
    condition = !anytrue(flatten([
      for policy in concat(values(aws_iam_role_policy.function), [aws_iam_role_policy.training, aws_iam_role_policy.model]) : [
        for statement in jsondecode(policy.policy).Statement : contains(flatten([statement.Resource]), "arn:aws:s3:::team-models/*")
      ]
    ]))
    error_message = "No role may access the whole bucket: every object permission needs a prefix."
  }

  assert {
    condition = merge([
      for function, policy in aws_iam_role_policy.function : {
        for statement in jsondecode(policy.policy).Statement : function => [statement.Action, statement.Resource, jsonencode(statement.Condition)]
        if contains(flatten([statement.Action]), "iam:PassRole")
      }
      ]...) == {
      deployment_orchestrator = ["iam:PassRole", "arn:aws:iam::111122223333:role/model", jsonencode({ StringEquals = { "iam:PassedToService" = "sagemaker.amazonaws.com" } })]
      training_orchestrator   = ["iam:PassRole", "arn:aws:iam::111122223333:role/training", jsonencode({ StringEquals = { "iam:PassedToService" = "sagemaker.amazonaws.com" } })]
    }
    error_message = "Each function may only pass the one role that it needs, and only to SageMaker."
  }

  assert {
    condition = {
      for role, policy in { model = aws_iam_role_policy.model, training = aws_iam_role_policy.training } : role => flatten([
        for statement in jsondecode(policy.policy).Statement : statement.Resource if contains(flatten([statement.Action]), "ecr:BatchGetImage")
      ])
      } == {
      model    = ["arn:aws:ecr:eu-west-1:763104351884:repository/serve"]
      training = ["arn:aws:ecr:eu-west-1:111122223333:repository/ours/train"]
    }
    error_message = "Each role must pull its own image, by tag or by digest."
  }

  assert {
    condition = !anytrue(flatten([
      for policy in concat(values(aws_iam_role_policy.function), [aws_iam_role_policy.training, aws_iam_role_policy.model]) : [
        for statement in jsondecode(policy.policy).Statement : [
          for action in flatten([statement.Action]) : startswith(action, "kms:") || startswith(action, "secretsmanager:")
        ]
      ]
    ]))
    error_message = "Without a key and a secret, no role may use any."
  }

  assert {
    condition = output.function_role_arns == {
      deployment_orchestrator = "arn:aws:iam::111122223333:role/deployer"
      model_evaluator         = "arn:aws:iam::111122223333:role/evaluator"
      training_orchestrator   = "arn:aws:iam::111122223333:role/trainer"
    } && output.model_role_arn == "arn:aws:iam::111122223333:role/model" && output.training_role_arn == "arn:aws:iam::111122223333:role/training"
    error_message = "The plan must know the roles."
  }

  assert {
    condition     = alltrue([for role in concat(values(aws_iam_role.function), [aws_iam_role.training, aws_iam_role.model]) : role.tags == tomap(var.tags)])
    error_message = "Every role must have the tags."
  }
}

run "an_own_key_is_used_through_its_services" {
  command = plan

  variables {
    kms_key_arn = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
  }

  assert {
    condition = alltrue([
      for policy in aws_iam_role_policy.function : [
        for statement in jsondecode(policy.policy).Statement : statement if try(statement.Sid, "") == "UseKey"
        ] == [{
          Sid      = "UseKey"
          Effect   = "Allow"
          Action   = ["kms:GenerateDataKey", "kms:Decrypt"]
          Resource = var.kms_key_arn
          Condition = {
            StringEquals = {
              "kms:ViaService" = ["s3.eu-west-1.amazonaws.com", "sns.eu-west-1.amazonaws.com", "sqs.eu-west-1.amazonaws.com"]
            }
          }
      }]
    ])
    error_message = "Functions must be able to read and write objects, publish, and send failed events."
  }

  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.training.policy).Statement : [statement.Sid, jsonencode(statement.Action), statement.Resource, try(statement.Condition.StringEquals["kms:ViaService"], "")]
      if anytrue([for action in flatten([statement.Action]) : startswith(action, "kms:")])
      ] == [
      ["UseKey", jsonencode(["kms:GenerateDataKey", "kms:Decrypt"]), var.kms_key_arn, "s3.eu-west-1.amazonaws.com"],
      ["EncryptModel", jsonencode("kms:Encrypt"), var.kms_key_arn, ""],
    ]
    error_message = "Training must be able to read data and write models with the key."
  }

  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.model.policy).Statement : [statement.Sid, jsonencode(statement.Action), statement.Resource, try(statement.Condition.StringEquals["kms:ViaService"], "")]
      if anytrue([for action in flatten([statement.Action]) : startswith(action, "kms:")])
    ] == [["UseKey", jsonencode("kms:Decrypt"), var.kms_key_arn, "s3.eu-west-1.amazonaws.com"]]
    error_message = "Serving must be able to read models with the key, and nothing else."
  }
}

run "a_base_model_in_s3_and_a_token_are_read_by_training_alone" {
  command = plan

  variables {
    base_model           = "s3://weights/minilm/"
    hub_token_secret_arn = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:token-AbCdEf"
  }

  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.training.policy).Statement : [statement.Action, statement.Resource, try(statement.Condition.StringLike["s3:prefix"], "")]
      if anytrue([for resource in flatten([statement.Resource]) : startswith(resource, "arn:aws:s3:::weights") || startswith(resource, "arn:aws:secretsmanager")])
      ] == [
      ["s3:GetObject", "arn:aws:s3:::weights/minilm/*", ""],
      ["s3:ListBucket", "arn:aws:s3:::weights", "minilm/*"],
      ["secretsmanager:GetSecretValue", "arn:aws:secretsmanager:eu-west-1:111122223333:secret:token-AbCdEf", ""],
    ]
    error_message = "Training must be able to read that prefix and that secret."
  }

  assert {
    condition = !anytrue([
      for policy in concat(values(aws_iam_role_policy.function), [aws_iam_role_policy.model]) :
      strcontains(policy.policy, "weights") || strcontains(policy.policy, "secretsmanager")
    ])
    error_message = "No other role may read them."
  }
}

run "training_reads_files_by_name_and_lists_no_jobs" {
  command = plan

  assert {
    condition = jsonencode({
      for statement in jsondecode(aws_iam_role_policy.training.policy).Statement : statement.Sid => sort(flatten([statement.Resource, try(statement.Condition.StringLike["s3:prefix"], [])]))
      if strcontains(jsonencode(statement.Action), "s3:")
      }) == jsonencode({
      ListChannels               = ["arn:aws:s3:::team-models", "data/snapshots/*/data.csv", "models/approved/*/model.tar.gz"]
      ReadDataSourceAndLiveModel = [for file in ["data/snapshots/*/data.csv", "data/snapshots/*/training.tar.gz", "models/approved/*/model.tar.gz"] : "arn:aws:s3:::team-models/${file}"]
      WriteModel                 = ["arn:aws:s3:::team-models/models/raw/*"]
    })
    error_message = "A job must read only the files that it is given, and list nothing else."
  }
}

run "an_interrupted_job_finds_its_checkpoints_and_nobody_else_reaches_them" {
  command = plan

  variables {
    training_use_spot = true
  }

  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.training.policy).Statement : [statement.Action, statement.Resource, try(statement.Condition.StringLike["s3:prefix"], "")]
      if strcontains(jsonencode(statement), "checkpoints")
      ] == [
      [["s3:PutObject", "s3:GetObject", "s3:DeleteObject", "s3:AbortMultipartUpload"], "arn:aws:s3:::team-models/models/checkpoints/training-job-????????-??????-????????*", ""],
      ["s3:ListBucket", "arn:aws:s3:::team-models", "models/checkpoints/training-job-????????-??????-????????*"],
    ]
    error_message = "Training must be able to keep checkpoints, and to list those of a job by its whole name."
  }

  assert {
    condition = !anytrue([
      for policy in concat(values(aws_iam_role_policy.function), [aws_iam_role_policy.model]) : strcontains(policy.policy, "checkpoints")
    ])
    error_message = "No other role may reach them."
  }

  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.training.policy).Statement : statement.Sid if strcontains(jsonencode(statement.Action), "Delete")
    ] == ["KeepCheckpoints"]
    error_message = "Training must be able to delete nothing else."
  }
}

run "alarms_are_seen_where_they_roll_back" {
  command = plan

  variables {
    alarmed_endpoints = ["reviews", "reviews-spam"]
  }

  assert {
    condition = alltrue([
      for policy in [aws_iam_role_policy.function["deployment_orchestrator"], aws_iam_role_policy.model] : [
        for statement in jsondecode(policy.policy).Statement : statement.Resource if statement.Action == "cloudwatch:DescribeAlarms"
        ] == [[
          "arn:aws:cloudwatch:eu-west-1:111122223333:alarm:reviews/*",
          "arn:aws:cloudwatch:eu-west-1:111122223333:alarm:reviews-spam/*",
      ]]
    ])
    error_message = "The deployer and the model must be able to read those endpoints' alarms."
  }

  assert {
    condition = !anytrue([
      for policy in [aws_iam_role_policy.function["model_evaluator"], aws_iam_role_policy.function["training_orchestrator"], aws_iam_role_policy.training] :
      strcontains(policy.policy, "cloudwatch:DescribeAlarms")
    ])
    error_message = "No other role may read them."
  }
}

run "only_what_carries_the_stacks_tag_is_deleted" {
  command = plan

  assert {
    condition = {
      for statement in jsondecode(aws_iam_role_policy.function["deployment_orchestrator"].policy).Statement : statement.Sid => jsonencode(statement.Condition)
      if anytrue([for action in flatten([statement.Action]) : strcontains(action, ":Delete")])
      } == {
      for action in ["DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel"] : action => jsonencode({ StringEquals = { "aws:ResourceTag/Stack" = "team-models" } })
    }
    error_message = "Endpoints, configs and models of other stacks must be out of reach."
  }
}

# With a scalable target, SageMaker deletes an endpoint only for a caller who may deregister that target.
run "an_autoscaled_endpoint_can_be_deleted" {
  command = plan

  assert {
    condition = [
      for statement in jsondecode(aws_iam_role_policy.function["deployment_orchestrator"].policy).Statement :
      [statement.Action, statement.Resource, jsonencode(statement.Condition)] if statement.Sid == "EndAutoscaling"
      ] == [[
        "application-autoscaling:DeregisterScalableTarget",
        "arn:aws:application-autoscaling:eu-west-1:111122223333:scalable-target/*",
        jsonencode({ StringEquals = { "application-autoscaling:scalable-dimension" = ["sagemaker:variant:DesiredInstanceCount", "sagemaker:variant:DesiredProvisionedConcurrency"] } }),
    ]]
    error_message = "The deployer must be able to end the autoscaling of a variant, and of nothing else."
  }
}
