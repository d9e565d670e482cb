variable "base_model" {
  type        = string
  description = "Base model: Hub id, absolute path or S3 prefix."
}

variable "base_model_revision" {
  type        = string
  description = "Revision of the Hub model, or null."
}

variable "bucket_name" {
  type        = string
  description = "The stack's bucket."
}

variable "failure_queue_arn" {
  type        = string
  description = "Queue for events that still fail after the retries."
}

variable "hub_token_secret_arn" {
  type        = string
  description = "Secret with the Hub token, or null."
}

variable "hyperparameters" {
  type        = map(string)
  description = "Arguments of the training program."
}

variable "kms_key_arn" {
  type        = string
  description = "Key of the function's log and of what training writes, or null for AWS's own."
}

variable "label_column" {
  type        = string
  description = "CSV column that holds the label."
}

variable "log_level" {
  type        = string
  description = "Level of the function's own log records."
}

variable "log_retention_days" {
  type        = number
  description = "Days for which the log is kept."
}

variable "max_concurrent_training_jobs" {
  type        = number
  description = "Training jobs that may run at the same time."
}

variable "max_training_jobs_per_day" {
  type        = number
  description = "Training jobs that may be started on one day (UTC)."
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

variable "text_column" {
  type        = string
  description = "CSV column that holds the text."
}

variable "timeout_seconds" {
  type        = number
  description = "Time after which Lambda stops the function."
}

variable "topic_arn" {
  type        = string
  description = "ARN of the notification topic."
}

variable "training_image" {
  type        = string
  description = "Image of the training jobs."
}

variable "training_instance_type" {
  type        = string
  description = "Instance type of the training jobs."
}

variable "training_max_runtime_seconds" {
  type        = number
  description = "Time after which SageMaker stops a training job."
}

variable "training_role_arn" {
  type        = string
  description = "ARN of the role of training jobs."
}

variable "training_source_uri" {
  type        = string
  description = "S3 URI of the training source."
}

variable "training_volume_gb" {
  type        = number
  description = "Disk of a training instance."
}
