output "deployment_alarm_names" {
  description = "Names of the endpoint alarms, <endpoint>/<what>."
  value       = sort([for alarm in aws_cloudwatch_metric_alarm.endpoint : alarm.alarm_name])
}

# ARNs built from names, so that the plan shows them.

output "queue_arn" {
  description = "ARN of the queue for events that could not be processed."
  value       = local.queue_arn
  depends_on  = [aws_sqs_queue.failures]
}

output "queue_url" {
  description = "URL of the queue for events that could not be processed."
  value       = aws_sqs_queue.failures.url
}

output "topic_arn" {
  description = "ARN of the notification topic."
  value       = local.topic_arn
  depends_on  = [aws_sns_topic.this]
}
