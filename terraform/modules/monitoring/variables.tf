variable "account_id" {
  type        = string
  description = "AWS account id, for ARNs."
}

variable "alarmed_endpoints" {
  type        = list(string)
  description = "Endpoints on instances that get alarms."
}

variable "functions" {
  type = map(object({
    name            = string
    timeout_seconds = number
  }))
  description = "The functions to watch."
}

variable "kms_key_arn" {
  type        = string
  description = "KMS key of the topic and the queue. null: the topic is not encrypted, the queue with SQS's own key."
}

variable "latency_alarm_milliseconds" {
  type        = number
  description = "Average response time of an endpoint above which its alarm goes off."
}

variable "notification_emails" {
  type        = list(string)
  description = "Addresses that get every notification."
}

variable "partition" {
  type        = string
  description = "AWS partition, for ARNs."
}

variable "queue_name" {
  type        = string
  description = "Name of the queue for events that could not be processed."
}

variable "region" {
  type        = string
  description = "AWS region, for ARNs."
}

variable "rule_names" {
  type        = list(string)
  description = "EventBridge rules that may send to the queue."
}

variable "tags" {
  type        = map(string)
  description = "Tags of all resources that can have tags."
}

variable "topic_name" {
  type        = string
  description = "Name of the notification topic."
}
