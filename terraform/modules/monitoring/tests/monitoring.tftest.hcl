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
  alarmed_endpoints = ["reviews", "reviews-spam"]
  functions = {
    model_evaluator       = { name = "evaluator", timeout_seconds = 300 }
    training_orchestrator = { name = "trainer", timeout_seconds = 900 }
  }
  kms_key_arn                = null
  latency_alarm_milliseconds = 4000
  notification_emails        = ["ml-team@example.com", "on-call@example.com"]
  partition                  = "aws"
  queue_name                 = "failures"
  region                     = "eu-west-1"
  rule_names                 = ["uploads-rule", "sweep-rule"]
  tags                       = { Project = "p", Stack = "team-models" }
  topic_name                 = "topic"
}

run "topic_and_queue_are_the_stacks_own" {
  command = plan

  assert {
    condition = jsondecode(data.aws_iam_policy_document.topic.json).Statement == [
      {
        Sid    = "Owner"
        Effect = "Allow"
        Action = [
          "sns:Subscribe", "sns:SetTopicAttributes", "sns:Publish", "sns:ListSubscriptionsByTopic", "sns:GetTopicAttributes",
        ]
        Resource  = "arn:aws:sns:eu-west-1:111122223333:topic"
        Principal = { AWS = "arn:aws:iam::111122223333:root" }
      },
      {
        Sid       = "Alarms"
        Effect    = "Allow"
        Action    = "sns:Publish"
        Resource  = "arn:aws:sns:eu-west-1:111122223333:topic"
        Principal = { Service = "cloudwatch.amazonaws.com" }
        Condition = {
          ArnLike = {
            "aws:SourceArn" = [
              for prefix in ["evaluator-", "trainer-", "failures-", "reviews/", "reviews-spam/"] :
              "arn:aws:cloudwatch:eu-west-1:111122223333:alarm:${prefix}*"
            ]
          }
          StringEquals = { "aws:SourceAccount" = "111122223333" }
        }
      },
      {
        Sid       = "TlsOnly"
        Effect    = "Deny"
        Action    = "sns:Publish"
        Resource  = "arn:aws:sns:eu-west-1:111122223333:topic"
        Principal = "*"
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
    error_message = "Only the account and the stack's own alarms may publish, and only with TLS."
  }

  assert {
    condition = jsondecode(aws_sqs_queue.failures.policy).Statement == [
      {
        Sid       = "Rules"
        Effect    = "Allow"
        Action    = "sqs:SendMessage"
        Resource  = "arn:aws:sqs:eu-west-1:111122223333:failures"
        Principal = { Service = "events.amazonaws.com" }
        Condition = {
          ArnEquals = {
            "aws:SourceArn" = [
              "arn:aws:events:eu-west-1:111122223333:rule/uploads-rule",
              "arn:aws:events:eu-west-1:111122223333:rule/sweep-rule",
            ]
          }
        }
      },
      {
        Sid       = "TlsOnly"
        Effect    = "Deny"
        Action    = "sqs:*"
        Resource  = "arn:aws:sqs:eu-west-1:111122223333:failures"
        Principal = "*"
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
    error_message = "Only the stack's own rules may send, and only with TLS."
  }

  assert {
    condition     = aws_sqs_queue.failures.message_retention_seconds == 1209600 && aws_sqs_queue.failures.sqs_managed_sse_enabled && aws_sqs_queue.failures.kms_master_key_id == null
    error_message = "Failed events must be kept for 14 days, encrypted by SQS."
  }

  assert {
    condition     = aws_sns_topic.this.kms_master_key_id == null
    error_message = "Without kms_key_arn the topic must not be encrypted: alarms cannot use alias/aws/sns."
  }

  assert {
    condition     = { for address, subscription in aws_sns_topic_subscription.email : address => subscription.protocol } == { "ml-team@example.com" = "email", "on-call@example.com" = "email" }
    error_message = "Every address must be subscribed."
  }

  assert {
    condition     = output.queue_arn == "arn:aws:sqs:eu-west-1:111122223333:failures" && output.topic_arn == "arn:aws:sns:eu-west-1:111122223333:topic"
    error_message = "The plan must know the ARNs."
  }

  assert {
    condition     = aws_sns_topic.this.tags == tomap(var.tags) && aws_sqs_queue.failures.tags == tomap(var.tags)
    error_message = "Topic and queue must have the tags."
  }
}

run "an_own_key_encrypts_topic_and_queue" {
  command = plan

  variables {
    kms_key_arn = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
  }

  assert {
    condition     = aws_sns_topic.this.kms_master_key_id == var.kms_key_arn && aws_sqs_queue.failures.kms_master_key_id == var.kms_key_arn
    error_message = "The key must encrypt both."
  }
}

run "without_alarmed_endpoints_there_are_no_endpoint_alarms" {
  command = plan

  variables {
    alarmed_endpoints = []
  }

  assert {
    condition     = length(aws_cloudwatch_metric_alarm.endpoint) == 0 && length(output.deployment_alarm_names) == 0
    error_message = "Serverless endpoints must have no alarms."
  }
}

# Applied, because the topic's ARN is only known then, with everything overridden that would call AWS.
run "alarms_say_what_is_wrong_to_people" {
  override_resource {
    target = aws_sns_topic.this
    values = { arn = "arn:aws:sns:eu-west-1:111122223333:topic" }
  }

  override_resource {
    target = aws_sns_topic_policy.this
  }

  override_resource {
    target = aws_sns_topic_subscription.email
  }

  override_resource {
    target = aws_sqs_queue.failures
  }

  override_resource {
    target = aws_cloudwatch_metric_alarm.failures
  }

  override_resource {
    target = aws_cloudwatch_metric_alarm.errors
  }

  override_resource {
    target = aws_cloudwatch_metric_alarm.throttles
  }

  override_resource {
    target = aws_cloudwatch_metric_alarm.duration
  }

  override_resource {
    target = aws_cloudwatch_metric_alarm.endpoint
  }

  assert {
    condition = alltrue([
      for alarm in concat(
        [aws_cloudwatch_metric_alarm.failures],
        values(aws_cloudwatch_metric_alarm.errors),
        values(aws_cloudwatch_metric_alarm.throttles),
        values(aws_cloudwatch_metric_alarm.duration),
        values(aws_cloudwatch_metric_alarm.endpoint),
      ) :
      tolist(alarm.alarm_actions) == tolist(["arn:aws:sns:eu-west-1:111122223333:topic"]) &&
      alarm.treat_missing_data == "notBreaching" &&
      alarm.comparison_operator == "GreaterThanThreshold" &&
      alarm.evaluation_periods == 1 &&
      length(alarm.alarm_description) > 40 &&
      alarm.tags == tomap(var.tags)
    ])
    error_message = "Every alarm must notify, ignore missing data, say what to do, and have the tags."
  }

  assert {
    condition = [
      aws_cloudwatch_metric_alarm.failures.namespace,
      aws_cloudwatch_metric_alarm.failures.metric_name,
      aws_cloudwatch_metric_alarm.failures.dimensions["QueueName"],
      tostring(aws_cloudwatch_metric_alarm.failures.threshold),
    ] == ["AWS/SQS", "ApproximateNumberOfMessagesVisible", "failures", "0"]
    error_message = "A single failed event must set off the alarm."
  }

  assert {
    condition = {
      for key, alarm in merge(
        { for key, alarm in aws_cloudwatch_metric_alarm.errors : "${key} errors" => alarm },
        { for key, alarm in aws_cloudwatch_metric_alarm.throttles : "${key} throttles" => alarm },
        { for key, alarm in aws_cloudwatch_metric_alarm.duration : "${key} duration" => alarm },
      ) : key => "${alarm.namespace} ${alarm.metric_name} ${alarm.dimensions["FunctionName"]} ${alarm.statistic} ${alarm.threshold}"
      } == {
      "model_evaluator duration"        = "AWS/Lambda Duration evaluator Maximum 240000"
      "model_evaluator errors"          = "AWS/Lambda Errors evaluator Sum 0"
      "model_evaluator throttles"       = "AWS/Lambda Throttles evaluator Sum 0"
      "training_orchestrator duration"  = "AWS/Lambda Duration trainer Maximum 720000"
      "training_orchestrator errors"    = "AWS/Lambda Errors trainer Sum 0"
      "training_orchestrator throttles" = "AWS/Lambda Throttles trainer Sum 0"
    }
    error_message = "Every function must have alarms for errors, throttles and duration."
  }

  assert {
    condition = {
      for key, alarm in aws_cloudwatch_metric_alarm.endpoint :
      key => "${alarm.namespace} ${alarm.metric_name} ${alarm.dimensions["EndpointName"]} ${alarm.dimensions["VariantName"]} ${alarm.statistic} ${alarm.threshold}"
      } == {
      "reviews-spam/4xx-errors" = "AWS/SageMaker Invocation4XXErrors reviews-spam AllTraffic Average 0.25"
      "reviews-spam/5xx-errors" = "AWS/SageMaker Invocation5XXErrors reviews-spam AllTraffic Average 0.05"
      "reviews-spam/latency"    = "AWS/SageMaker ModelLatency reviews-spam AllTraffic Average 4000000"
      "reviews/4xx-errors"      = "AWS/SageMaker Invocation4XXErrors reviews AllTraffic Average 0.25"
      "reviews/5xx-errors"      = "AWS/SageMaker Invocation5XXErrors reviews AllTraffic Average 0.05"
      "reviews/latency"         = "AWS/SageMaker ModelLatency reviews AllTraffic Average 4000000"
    }
    error_message = "Every listed endpoint must have alarms for 4xx, 5xx and latency (in microseconds)."
  }

  assert {
    condition     = output.deployment_alarm_names == sort([for key in keys(aws_cloudwatch_metric_alarm.endpoint) : key])
    error_message = "The output must list the endpoint alarms, for the deployments."
  }
}
