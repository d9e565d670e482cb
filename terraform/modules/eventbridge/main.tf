locals {
  rules = {
    uploads = {
      description = "A file arrived below data/train/: check it and start training."
      functions   = ["training_orchestrator"]
      pattern = {
        source      = ["aws.s3"]
        detail-type = ["Object Created"]
        detail = {
          bucket = { name = [var.bucket_name] }
          object = { key = [{ prefix = "data/train/" }] }
        }
      }
    }

    # Stacks share the prefix of job names and differ in the bucket. An event that says less goes to all of them: the
    # functions ignore jobs of others.
    training_ended = {
      description = "A training job ended: judge its model, and start what waits for its place."
      functions   = ["model_evaluator", "training_orchestrator"]
      pattern = {
        source      = ["aws.sagemaker"]
        detail-type = ["SageMaker Training Job State Change"]
        detail = {
          OutputDataConfig  = { S3OutputPath = [{ prefix = "s3://${var.bucket_name}/" }, { exists = false }] }
          TrainingJobName   = [{ prefix = "training-job-" }]
          TrainingJobStatus = ["Completed", "Failed", "Stopped"]
        }
      }
    }

    approved = {
      description = "A model was approved: deploy it."
      functions   = ["deployment_orchestrator"]
      pattern = {
        source      = ["aws.s3"]
        detail-type = ["Object Created"]
        detail = {
          bucket = { name = [var.bucket_name] }
          object = { key = [{ prefix = "models/approved/" }] }
        }
      }
    }

    # The events say IN_SERVICE where the API says InService. Only IN_SERVICE is documented, so both spellings are taken.
    # https://docs.aws.amazon.com/sagemaker/latest/dg/automating-sagemaker-with-eventbridge.html
    endpoint = {
      description = "An endpoint settled or failed: say what became of the deployment."
      functions   = ["deployment_orchestrator"]
      pattern = {
        source      = ["aws.sagemaker"]
        detail-type = ["SageMaker Endpoint State Change"]
        detail = {
          EndpointName = [var.endpoint_name, { prefix = "${var.endpoint_name}-" }]
          EndpointStatus = [
            "IN_SERVICE", "InService",
            "FAILED", "Failed",
            "OUT_OF_SERVICE", "OutOfService",
            "ROLLING_BACK", "RollingBack",
            "UPDATE_ROLLBACK_FAILED", "UpdateRollbackFailed",
          ]
        }
      }
    }

    # SageMaker's events are best effort, and some things happen without one (a new day, a raised quota).
    sweep = {
      description = "Every now and then: pick up what an event that never came has left behind."
      functions   = ["deployment_orchestrator", "model_evaluator", "training_orchestrator"]
      pattern     = null
    }
  }

  # A rule's functions each get a target and a permission of their own.
  targets = merge([
    for rule, settings in local.rules : {
      for function in settings.functions : "${rule}/${function}" => { rule = rule, function = function }
    }
  ]...)
}

resource "aws_cloudwatch_event_rule" "this" {
  for_each = local.rules

  name                = var.rule_names[each.key]
  description         = each.value.description
  event_pattern       = each.value.pattern == null ? null : jsonencode(each.value.pattern)
  schedule_expression = each.key == "sweep" ? var.sweep_schedule : null
  # Named, because the provider otherwise leaves a rule as it is that make destroy has stopped (its issue 35616).
  state = "ENABLED"

  tags = var.tags
}

resource "aws_cloudwatch_event_target" "this" {
  for_each = local.targets

  rule      = aws_cloudwatch_event_rule.this[each.value.rule].name
  target_id = each.value.function
  arn       = var.functions[each.value.function].arn
  input     = each.value.rule == "sweep" ? jsonencode({ source = "sweep" }) : null

  # For what EventBridge cannot hand to Lambda. Errors inside a function are Lambda's to retry. A sweep that comes late
  # is overtaken by the next one.
  retry_policy {
    maximum_event_age_in_seconds = each.value.rule == "sweep" ? 900 : 86400
    maximum_retry_attempts       = each.value.rule == "sweep" ? 3 : 185
  }

  dead_letter_config {
    arn = var.queue_arn
  }

  # An event must not find a target that it may not invoke: that goes straight to the queue.
  depends_on = [aws_lambda_permission.this]
}

resource "aws_lambda_permission" "this" {
  for_each = local.targets

  statement_id  = var.rule_names[each.value.rule]
  action        = "lambda:InvokeFunction"
  function_name = var.functions[each.value.function].name
  principal     = "events.amazonaws.com"
  source_arn    = aws_cloudwatch_event_rule.this[each.value.rule].arn
}
