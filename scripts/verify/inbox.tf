# What `make verify-aws` adds to the stack that it deploys: a queue with every email and every event of that stack.

locals {
  inbox_name = "${local.bucket_name}-inbox"
  inbox_arn  = "arn:${local.partition}:sqs:${local.region}:${local.account_id}:${local.inbox_name}"
  inbox_patterns = {
    endpoints = {
      source      = ["aws.sagemaker"]
      detail-type = ["SageMaker Endpoint State Change", "SageMaker Endpoint Deployment State Change"]
      detail      = { EndpointName = [var.endpoint_name, { prefix = "${var.endpoint_name}-" }] }
    }
    jobs = {
      source      = ["aws.sagemaker"]
      detail-type = ["SageMaker Training Job State Change"]
      # An event without the path may be another stack's; the scenario keeps those of its own jobs.
      detail = {
        OutputDataConfig = { S3OutputPath = [{ prefix = "s3://${local.bucket_name}/" }, { exists = false }] }
        TrainingJobName  = [{ prefix = "training-job-" }]
      }
    }
    objects = {
      source      = ["aws.s3"]
      detail-type = ["Object Created"]
      detail = {
        bucket = { name = [local.bucket_name] }
        object = { key = [{ prefix = "data/train/" }, { prefix = "models/approved/" }, { prefix = "verify/" }] }
      }
    }
  }
}

# SNS and EventBridge send nothing to a queue that does not let them, even in the same account.
data "aws_iam_policy_document" "inbox" {
  statement {
    sid       = "Emails"
    actions   = ["sqs:SendMessage"]
    resources = [local.inbox_arn]

    principals {
      type        = "Service"
      identifiers = ["sns.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [local.topic_arn]
    }
  }

  statement {
    sid       = "Events"
    actions   = ["sqs:SendMessage"]
    resources = [local.inbox_arn]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [for rule in aws_cloudwatch_event_rule.inbox : rule.arn]
    }
  }
}

resource "aws_sqs_queue" "inbox" {
  name                      = local.inbox_name
  message_retention_seconds = 86400
  policy                    = data.aws_iam_policy_document.inbox.json

  tags = local.tags
}

resource "aws_sns_topic_subscription" "inbox" {
  topic_arn = module.monitoring.topic_arn
  protocol  = "sqs"
  endpoint  = aws_sqs_queue.inbox.arn
}

resource "aws_cloudwatch_event_rule" "inbox" {
  for_each = local.inbox_patterns

  name          = "${local.inbox_name}-${each.key}"
  event_pattern = jsonencode(each.value)

  tags = local.tags
}

resource "aws_cloudwatch_event_target" "inbox" {
  for_each = local.inbox_patterns

  rule = aws_cloudwatch_event_rule.inbox[each.key].name
  arn  = aws_sqs_queue.inbox.arn
}

output "inbox_url" {
  description = "URL of the queue with the stack's emails and events."
  value       = aws_sqs_queue.inbox.url
}
