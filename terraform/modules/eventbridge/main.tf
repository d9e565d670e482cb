locals {
  rules = {
    uploads = {
      description = "A file arrived below data/train/: check it and start training."
      function    = var.functions.training_orchestrator
      pattern = {
        source      = ["aws.s3"]
        detail-type = ["Object Created"]
        detail = {
          bucket = { name = [var.bucket_name] }
          object = { key = [{ prefix = "data/train/" }] }
        }
      }
    }

    # Stacks share the prefix of job names; the function ignores jobs of others.
    training_ended = {
      description = "A training job ended: judge its model."
      function    = var.functions.model_evaluator
      pattern = {
        source      = ["aws.sagemaker"]
        detail-type = ["SageMaker Training Job State Change"]
        detail = {
          TrainingJobName   = [{ prefix = "training-job-" }]
          TrainingJobStatus = ["Completed", "Failed", "Stopped"]
        }
      }
    }

    approved = {
      description = "A model was approved: deploy it."
      function    = var.functions.deployment_orchestrator
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
      function    = var.functions.deployment_orchestrator
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
  }
}

resource "aws_cloudwatch_event_rule" "this" {
  for_each = local.rules

  name          = var.rule_names[each.key]
  description   = each.value.description
  event_pattern = jsonencode(each.value.pattern)
}

resource "aws_cloudwatch_event_target" "this" {
  for_each = local.rules

  rule      = aws_cloudwatch_event_rule.this[each.key].name
  target_id = "function"
  arn       = each.value.function.arn

  # For what EventBridge cannot hand to Lambda. Errors inside a function are Lambda's to retry.
  retry_policy {
    maximum_event_age_in_seconds = 86400
    maximum_retry_attempts       = 185
  }

  dead_letter_config {
    arn = var.queue_arn
  }

  # An event must not find a target that it may not invoke: that goes straight to the queue.
  depends_on = [aws_lambda_permission.this]
}

resource "aws_lambda_permission" "this" {
  for_each = local.rules

  statement_id  = var.rule_names[each.key]
  action        = "lambda:InvokeFunction"
  function_name = each.value.function.name
  principal     = "events.amazonaws.com"
  source_arn    = aws_cloudwatch_event_rule.this[each.key].arn
}
