# What your own key (kms_key_arn) must allow the AWS services that use it on their own behalf. The stack's roles have access
# through the first statement and their own policies. It is built from names only, so that one apply can create key and stack.

data "aws_iam_policy_document" "kms_key" {
  #checkov:skip=CKV_AWS_109: a key policy must let its own account manage the key; IAM then decides who may
  #checkov:skip=CKV_AWS_111: a key policy must let its own account manage the key; IAM then decides who may
  #checkov:skip=CKV_AWS_356: in a key policy, * means that key
  statement {
    sid       = "Account"
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:${local.partition}:iam::${local.account_id}:root"]
    }
  }

  # Limited by encryption context, which both services always send. EventBridge does not support aws:SourceArn and
  # aws:SourceAccount everywhere: https://docs.aws.amazon.com/sns/latest/dg/sns-key-management.html
  statement {
    sid       = "UndeliveredEvents"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "kms:EncryptionContext:aws:sqs:arn"
      values   = [local.queue_arn]
    }
  }

  statement {
    sid       = "Alarms"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "kms:EncryptionContext:aws:sns:topicArn"
      values   = [local.topic_arn]
    }
  }

  # https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/encrypt-log-data-kms.html
  statement {
    sid       = "FunctionLogs"
    actions   = ["kms:Decrypt", "kms:Describe*", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["logs.${local.region}.${data.aws_partition.current.dns_suffix}"]
    }

    condition {
      test     = "ArnEquals"
      variable = "kms:EncryptionContext:aws:logs:arn"
      values = [
        for key in keys(local.timeouts) :
        "arn:${local.partition}:logs:${local.region}:${local.account_id}:log-group:/aws/lambda/${local.names[key]}"
      ]
    }
  }
}
