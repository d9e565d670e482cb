locals {
  # Every event names its account: on a bus that takes events of other accounts, theirs must not pass for ours.
  rules = {
    uploads = {
      description = "A file arrived below data/train/: check it and start training."
      functions   = ["training_orchestrator"]
      pattern = {
        account     = [var.account_id]
        source      = ["aws.s3"]
        detail-type = ["Object Created"]
        detail = {
          bucket = { name = [var.bucket_name] }
          object = { key = [{ prefix = "data/train/" }] }
        }
      }
    }

    # All stacks use the same prefix for job names, but each has its own bucket. An event without the path goes to every
    # stack; the functions ignore jobs that are not theirs.
    training_ended = {
      description = "A training job ended: judge its model, and start what waits for its place."
      functions   = ["model_evaluator", "training_orchestrator"]
      pattern = {
        account     = [var.account_id]
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
        account     = [var.account_id]
        source      = ["aws.s3"]
        detail-type = ["Object Created"]
        detail = {
          bucket = { name = [var.bucket_name] }
          object = { key = [{ prefix = "models/approved/" }] }
        }
      }
    }

    # Events say IN_SERVICE where the API says InService. Only that one is documented, so both spellings are matched.
    # https://docs.aws.amazon.com/sagemaker/latest/dg/automating-sagemaker-with-eventbridge.html
    endpoint = {
      description = "An endpoint settled or failed: say what became of the deployment."
      functions   = ["deployment_orchestrator"]
      pattern = {
        account     = [var.account_id]
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

    # SageMaker's events are best effort, and some changes come without one (a new day, a raised quota).
    sweep = {
      description = "Every now and then: pick up what an event that never came has left behind."
      functions   = ["deployment_orchestrator", "model_evaluator", "training_orchestrator"]
      pattern     = null
    }
  }

  # Each function of a rule has its own target and permission.
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
  # Explicit, because the provider would otherwise leave a rule disabled that `make destroy` stopped (its issue 35616).
  state = "ENABLED"

  tags = var.tags
}

resource "aws_cloudwatch_event_target" "this" {
  for_each = local.targets

  rule      = aws_cloudwatch_event_rule.this[each.value.rule].name
  target_id = each.value.function
  arn       = var.functions[each.value.function].arn
  input     = each.value.rule == "sweep" ? jsonencode({ source = "sweep" }) : null

  # For events that EventBridge cannot deliver to Lambda; Lambda retries errors in the function. A late sweep is pointless:
  # the next one does its work.
  retry_policy {
    maximum_event_age_in_seconds = each.value.rule == "sweep" ? 900 : 86400
    maximum_retry_attempts       = each.value.rule == "sweep" ? 3 : 185
  }

  dead_letter_config {
    arn = var.queue_arn
  }

  # The permission comes first: an event that may not invoke its target goes straight to the queue.
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
