variable "bucket_name" {
  type        = string
  description = "The stack's bucket."
}

variable "champion_margin" {
  type        = number
  description = "What a model may be worse than the live one on the same rows, in units of each metric."
}

variable "failure_queue_arn" {
  type        = string
  description = "Queue for events that still fail after the retries."
}

variable "kms_key_arn" {
  type        = string
  description = "Key of the function's log, or null for AWS's own."
}

variable "log_level" {
  type        = string
  description = "Level of the function's own log records."
}

variable "log_retention_days" {
  type        = number
  description = "Days for which the log is kept."
}

variable "model_thresholds" {
  type = map(map(object({
    max = optional(number)
    min = optional(number)
  })))
  description = "Thresholds of single models, by model name."
}

variable "name" {
  type        = string
  description = "Name of the function."
}

variable "package" {
  type        = string
  description = "Path of the function's zip."
}

variable "project" {
  type        = string
  description = "Value of the tag Project on what the function creates."
}

variable "role_arn" {
  type        = string
  description = "ARN of the function's role."
}

variable "tags" {
  type        = map(string)
  description = "Tags of every resource that takes them."
}

variable "thresholds" {
  type = map(object({
    max = optional(number)
    min = optional(number)
  }))
  description = "Thresholds of every other model."
}

variable "timeout_seconds" {
  type        = number
  description = "Time after which Lambda stops the function."
}

variable "topic_arn" {
  type        = string
  description = "ARN of the notification topic."
}
