locals {
  topic_arn = "arn:${var.partition}:sns:${var.region}:${var.account_id}:${var.topic_name}"
  queue_arn = "arn:${var.partition}:sqs:${var.region}:${var.account_id}:${var.queue_name}"
  # Every alarm's name starts with what it watches.
  alarm_arns = [
    for prefix in concat(
      [for function in var.functions : "${function.name}-"],
      ["${var.queue_name}-"],
      [for endpoint in var.alarmed_endpoints : "${endpoint}/"],
    ) : "arn:${var.partition}:cloudwatch:${var.region}:${var.account_id}:alarm:${prefix}*"
  ]

  # The HuggingFace server turns every exception in the model's code into a 400, so a broken model shows up as 4xx errors.
  # A threshold of a quarter of all calls ignores a few bad requests. Each call counts as 0 or 1, so the average is a share.
  # https://docs.aws.amazon.com/sagemaker/latest/dg/monitoring-cloudwatch.html
  endpoint_checks = {
    "4xx-errors" = { metric = "Invocation4XXErrors", threshold = 0.25, what = "refuses more than a quarter of the calls (4xx)" }
    "5xx-errors" = { metric = "Invocation5XXErrors", threshold = 0.05, what = "fails on more than 5 % of the calls (5xx)" }
    latency      = { metric = "ModelLatency", threshold = var.latency_alarm_milliseconds * 1000, what = "takes longer than ${var.latency_alarm_milliseconds} ms on average" } # microseconds
  }
  endpoint_alarms = merge([
    for endpoint in var.alarmed_endpoints : {
      for name, check in local.endpoint_checks : "${endpoint}/${name}" => merge(check, { endpoint = endpoint })
    }
  ]...)
}

# Not encrypted without kms_key_arn: CloudWatch alarms cannot use alias/aws/sns, and its policy cannot be changed. The
# messages contain names and numbers, never rows of data, and are sent as plain email.
resource "aws_sns_topic" "this" {
  name              = var.topic_name
  display_name      = "ML training pipeline"
  kms_master_key_id = var.kms_key_arn

  tags = var.tags
}

data "aws_iam_policy_document" "topic" {
  statement {
    sid     = "Owner"
    actions = ["sns:GetTopicAttributes", "sns:ListSubscriptionsByTopic", "sns:Publish", "sns:SetTopicAttributes", "sns:Subscribe"]
    # Built from the name, so that the plan shows the policy.
    resources = [local.topic_arn]

    principals {
      type        = "AWS"
      identifiers = ["arn:${var.partition}:iam::${var.account_id}:root"]
    }
  }

  statement {
    sid       = "Alarms"
    actions   = ["sns:Publish"]
    resources = [local.topic_arn]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com"]
    }

    condition {
      test     = "ArnLike"
      variable = "aws:SourceArn"
      values   = local.alarm_arns
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [var.account_id]
    }
  }

  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["sns:Publish"]
    resources = [local.topic_arn]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_sns_topic_policy" "this" {
  arn    = aws_sns_topic.this.arn
  policy = data.aws_iam_policy_document.topic.json
}

resource "aws_sns_topic_subscription" "email" {
  for_each = toset(var.notification_emails)

  topic_arn = aws_sns_topic.this.arn
  protocol  = "email"
  endpoint  = each.value
}

data "aws_iam_policy_document" "queue" {
  # EventBridge sends what it could not deliver. The functions send what they could not process, with their own roles.
  statement {
    sid       = "Rules"
    actions   = ["sqs:SendMessage"]
    resources = [local.queue_arn]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [for name in var.rule_names : "arn:${var.partition}:events:${var.region}:${var.account_id}:rule/${name}"]
    }
  }

  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["sqs:*"]
    resources = [local.queue_arn]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

# SSE-SQS, because EventBridge cannot use alias/aws/sqs. The policy is part of the queue and not a resource of its own,
# because the provider waits about half a minute for each.
resource "aws_sqs_queue" "failures" {
  name                       = var.queue_name
  message_retention_seconds  = 1209600 # 14 days, the maximum of SQS
  policy                     = data.aws_iam_policy_document.queue.json
  kms_master_key_id          = var.kms_key_arn
  sqs_managed_sse_enabled    = var.kms_key_arn == null ? true : null
  visibility_timeout_seconds = 60

  tags = var.tags
}

resource "aws_cloudwatch_metric_alarm" "failures" {
  alarm_name          = "${var.queue_name}-not-empty"
  alarm_description   = "An event could not be processed and waits in ${var.queue_name} (14 days). Read its reason and the function's log, fix the cause, then send it again."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = aws_sqs_queue.failures.name }
  statistic           = "Maximum"
  period              = 300
  evaluation_periods  = 1
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.this.arn]

  tags = var.tags
}

resource "aws_cloudwatch_metric_alarm" "errors" {
  for_each = var.functions

  alarm_name          = "${each.value.name}-errors"
  alarm_description   = "${each.value.name} failed. Lambda tries twice more; if that fails too, the event goes to ${var.queue_name}. Read the log group /aws/lambda/${each.value.name}."
  namespace           = "AWS/Lambda"
  metric_name         = "Errors"
  dimensions          = { FunctionName = each.value.name }
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.this.arn]

  tags = var.tags
}

resource "aws_cloudwatch_metric_alarm" "throttles" {
  for_each = var.functions

  alarm_name          = "${each.value.name}-throttles"
  alarm_description   = "Lambda held ${each.value.name} back. It keeps trying for 6 hours. If this lasts, ask for a higher quota of concurrent executions in Service Quotas."
  namespace           = "AWS/Lambda"
  metric_name         = "Throttles"
  dimensions          = { FunctionName = each.value.name }
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.this.arn]

  tags = var.tags
}

resource "aws_cloudwatch_metric_alarm" "duration" {
  for_each = var.functions

  alarm_name          = "${each.value.name}-duration"
  alarm_description   = "${each.value.name} needed more than 80 % of its ${each.value.timeout_seconds} seconds. Find the slow call in the log group /aws/lambda/${each.value.name} before it times out."
  namespace           = "AWS/Lambda"
  metric_name         = "Duration"
  dimensions          = { FunctionName = each.value.name }
  statistic           = "Maximum"
  period              = 300
  evaluation_periods  = 1
  threshold           = each.value.timeout_seconds * 1000 * 0.8 # milliseconds
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.this.arn]

  tags = var.tags
}

# The deployment orchestrator lists them in every update: if one goes off while traffic moves, SageMaker rolls back.
resource "aws_cloudwatch_metric_alarm" "endpoint" {
  for_each = local.endpoint_alarms

  alarm_name          = each.key
  alarm_description   = "The endpoint ${each.value.endpoint} ${each.value.what}. During a deployment, SageMaker rolls it back; otherwise read the log group /aws/sagemaker/Endpoints/${each.value.endpoint}."
  namespace           = "AWS/SageMaker"
  metric_name         = each.value.metric
  dimensions          = { EndpointName = each.value.endpoint, VariantName = "AllTraffic" }
  statistic           = "Average"
  period              = 60
  evaluation_periods  = 1
  threshold           = each.value.threshold
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.this.arn]

  tags = var.tags
}
