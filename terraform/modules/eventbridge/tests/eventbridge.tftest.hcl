provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

# Applied, because the rules' ARNs are only known then, with everything overridden that would call AWS.

override_resource {
  target = aws_cloudwatch_event_rule.this["approved"]
  values = { arn = "arn:aws:events:eu-west-1:111122223333:rule/approved-rule" }
}

override_resource {
  target = aws_cloudwatch_event_rule.this["endpoint"]
  values = { arn = "arn:aws:events:eu-west-1:111122223333:rule/endpoint-rule" }
}

override_resource {
  target = aws_cloudwatch_event_rule.this["sweep"]
  values = { arn = "arn:aws:events:eu-west-1:111122223333:rule/sweep-rule" }
}

override_resource {
  target = aws_cloudwatch_event_rule.this["training_ended"]
  values = { arn = "arn:aws:events:eu-west-1:111122223333:rule/training_ended-rule" }
}

override_resource {
  target = aws_cloudwatch_event_rule.this["uploads"]
  values = { arn = "arn:aws:events:eu-west-1:111122223333:rule/uploads-rule" }
}

override_resource {
  target = aws_cloudwatch_event_target.this
}

override_resource {
  target = aws_lambda_permission.this
}

variables {
  account_id    = "111122223333"
  bucket_name   = "team-models"
  endpoint_name = "reviews"
  functions = {
    deployment_orchestrator = { arn = "arn:aws:lambda:eu-west-1:111122223333:function:deployer", name = "deployer" }
    model_evaluator         = { arn = "arn:aws:lambda:eu-west-1:111122223333:function:evaluator", name = "evaluator" }
    training_orchestrator   = { arn = "arn:aws:lambda:eu-west-1:111122223333:function:trainer", name = "trainer" }
  }
  queue_arn = "arn:aws:sqs:eu-west-1:111122223333:failures"
  rule_names = {
    approved       = "approved-rule"
    endpoint       = "endpoint-rule"
    sweep          = "sweep-rule"
    training_ended = "training_ended-rule"
    uploads        = "uploads-rule"
  }
  sweep_schedule = "rate(15 minutes)"
  tags           = { Project = "p", Stack = "team-models" }
}

run "rules_match_this_stacks_events_and_reach_its_functions" {
  assert {
    condition = jsondecode(aws_cloudwatch_event_rule.this["uploads"].event_pattern) == {
      account     = ["111122223333"]
      source      = ["aws.s3"]
      detail-type = ["Object Created"]
      detail      = { bucket = { name = ["team-models"] }, object = { key = [{ prefix = "data/train/" }] } }
    }
    error_message = "Only uploads below data/train/ of the stack's bucket may start a training."
  }

  assert {
    condition = jsondecode(aws_cloudwatch_event_rule.this["approved"].event_pattern) == {
      account     = ["111122223333"]
      source      = ["aws.s3"]
      detail-type = ["Object Created"]
      detail      = { bucket = { name = ["team-models"] }, object = { key = [{ prefix = "models/approved/" }] } }
    }
    error_message = "Only models below models/approved/ of the stack's bucket may be deployed."
  }

  assert {
    condition = jsondecode(aws_cloudwatch_event_rule.this["training_ended"].event_pattern) == {
      account     = ["111122223333"]
      source      = ["aws.sagemaker"]
      detail-type = ["SageMaker Training Job State Change"]
      detail = {
        OutputDataConfig  = { S3OutputPath = [{ prefix = "s3://team-models/" }, { exists = false }] }
        TrainingJobName   = [{ prefix = "training-job-" }]
        TrainingJobStatus = ["Completed", "Failed", "Stopped"]
      }
    }
    error_message = "Only the end of the stack's own training jobs may trigger an evaluation."
  }

  assert {
    condition     = alltrue([for rule in aws_cloudwatch_event_rule.this : rule.state == "ENABLED"])
    error_message = "A deployment must re-enable the rules that make destroy disabled."
  }

  assert {
    condition     = jsondecode(aws_cloudwatch_event_rule.this["endpoint"].event_pattern).account == ["111122223333"]
    error_message = "Only endpoints of the stack's own account may match."
  }

  # Not just the prefix: that would match another stack's "reviews2".
  assert {
    condition     = jsondecode(aws_cloudwatch_event_rule.this["endpoint"].event_pattern).detail.EndpointName == ["reviews", { prefix = "reviews-" }]
    error_message = "Only the stack's own endpoints may match."
  }

  assert {
    condition = alltrue([
      for status in ["IN_SERVICE", "InService", "FAILED", "Failed", "OUT_OF_SERVICE", "ROLLING_BACK", "UPDATE_ROLLBACK_FAILED"] :
      contains(jsondecode(aws_cloudwatch_event_rule.this["endpoint"].event_pattern).detail.EndpointStatus, status)
    ])
    error_message = "Both spellings must match, IN_SERVICE and InService, for every status that ends a deployment."
  }

  assert {
    condition = alltrue([
      for status in ["CREATING", "UPDATING", "DELETING", "Creating", "Updating", "Deleting"] :
      !contains(jsondecode(aws_cloudwatch_event_rule.this["endpoint"].event_pattern).detail.EndpointStatus, status)
    ])
    error_message = "An endpoint that is still changing must trigger nothing."
  }

  assert {
    condition     = aws_cloudwatch_event_rule.this["sweep"].schedule_expression == "rate(15 minutes)" && aws_cloudwatch_event_rule.this["sweep"].event_pattern == null
    error_message = "The sweep must run on its schedule."
  }

  assert {
    condition     = alltrue([for key, rule in aws_cloudwatch_event_rule.this : key == "sweep" || rule.schedule_expression == null])
    error_message = "Only the sweep may run on a schedule."
  }

  assert {
    condition     = alltrue([for key, rule in aws_cloudwatch_event_rule.this : rule.name == "${key}-rule" && rule.tags == tomap(var.tags)])
    error_message = "Every rule must have its name and the tags."
  }

  assert {
    condition = { for key, target in aws_cloudwatch_event_target.this : key => target.arn } == {
      "approved/deployment_orchestrator"     = "arn:aws:lambda:eu-west-1:111122223333:function:deployer"
      "endpoint/deployment_orchestrator"     = "arn:aws:lambda:eu-west-1:111122223333:function:deployer"
      "sweep/deployment_orchestrator"        = "arn:aws:lambda:eu-west-1:111122223333:function:deployer"
      "sweep/model_evaluator"                = "arn:aws:lambda:eu-west-1:111122223333:function:evaluator"
      "sweep/training_orchestrator"          = "arn:aws:lambda:eu-west-1:111122223333:function:trainer"
      "training_ended/model_evaluator"       = "arn:aws:lambda:eu-west-1:111122223333:function:evaluator"
      "training_ended/training_orchestrator" = "arn:aws:lambda:eu-west-1:111122223333:function:trainer"
      "uploads/training_orchestrator"        = "arn:aws:lambda:eu-west-1:111122223333:function:trainer"
    }
    error_message = "Each rule must invoke its functions."
  }

  assert {
    condition     = alltrue([for key, target in aws_cloudwatch_event_target.this : target.rule == "${split("/", key)[0]}-rule"])
    error_message = "Each target must belong to its own rule."
  }

  assert {
    condition     = keys(aws_lambda_permission.this) == keys(aws_cloudwatch_event_target.this)
    error_message = "Each target must have its own permission."
  }

  assert {
    condition = alltrue([
      for key, permission in aws_lambda_permission.this :
      permission.source_arn == "arn:aws:events:eu-west-1:111122223333:rule/${split("/", key)[0]}-rule" &&
      permission.principal == "events.amazonaws.com" && permission.action == "lambda:InvokeFunction"
    ])
    error_message = "Only the rule itself may invoke the function."
  }

  assert {
    condition = alltrue([
      for key, permission in aws_lambda_permission.this :
      permission.function_name == var.functions[split("/", key)[1]].name
    ])
    error_message = "The permission must be on the target's own function."
  }

  assert {
    condition     = alltrue([for target in aws_cloudwatch_event_target.this : target.dead_letter_config[0].arn == var.queue_arn])
    error_message = "What cannot be delivered must go to the queue."
  }

  assert {
    condition = alltrue([
      for key, target in aws_cloudwatch_event_target.this :
      [target.retry_policy[0].maximum_retry_attempts, target.retry_policy[0].maximum_event_age_in_seconds] == (startswith(key, "sweep/") ? [3, 900] : [185, 86400])
    ])
    error_message = "Events must be retried for a day, a sweep until the next one."
  }

  assert {
    condition = alltrue([
      for key, target in aws_cloudwatch_event_target.this : startswith(key, "sweep/") ? jsondecode(target.input) == { source = "sweep" } : target.input == null
    ])
    error_message = "A sweep must say that it is one; other events must arrive unchanged."
  }
}
