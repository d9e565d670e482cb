variable "common" {
  type = object({
    kms_key_arn        = string
    log_level          = string
    log_retention_days = number
    package_dir        = string
    tags               = map(string)
  })
  description = "Settings that all functions share: KMS key and retention of the log groups (null: AWS's own key), log level, folder of the zips, tags."
}

variable "environment" {
  type        = map(string)
  description = "The function's environment variables: every setting that its handler reads."
}

variable "failure_queue_arn" {
  type        = string
  description = "ARN of the queue for events that still fail after the retries."
}

variable "name" {
  type        = string
  description = "Name of the function."
}

variable "role_arn" {
  type        = string
  description = "ARN of the function's role."
}

variable "timeout_seconds" {
  type        = number
  description = "Time after which Lambda stops the function."
}
