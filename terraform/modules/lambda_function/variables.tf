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

variable "description" {
  type        = string
  description = "What the function does, as the Lambda console shows it."
}

variable "environment" {
  type        = map(string)
  description = "The function's environment variables: every setting that its handler reads."
}

variable "failure_queue_arn" {
  type        = string
  description = "ARN of the queue for events that still fail after the retries."
}

variable "memory_mb" {
  type        = number
  description = "Memory of the function, in MB."
}

variable "name" {
  type        = string
  description = "Name of the function."
}

variable "package_name" {
  type        = string
  description = "File name of the function's zip in the folder of the zips."
}

variable "role_arn" {
  type        = string
  description = "ARN of the function's role."
}

variable "timeout_seconds" {
  type        = number
  description = "Time after which Lambda stops the function."
}
