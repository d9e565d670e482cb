variable "bucket_name" {
  type        = string
  description = "The stack's bucket."
}

variable "deployment_policy" {
  type        = string
  description = "DeploymentConfig of every update on instances, as JSON; {} for none."
}

variable "endpoint_instance_count" {
  type        = number
  description = "Instances behind an endpoint of type instance."
}

variable "endpoint_instance_type" {
  type        = string
  description = "Instance type of an endpoint of type instance."
}

variable "endpoint_name" {
  type        = string
  description = "Endpoint of the model 'default' and prefix of the others."
}

variable "endpoint_type" {
  type        = string
  description = "serverless or instance."
}

variable "failure_queue_arn" {
  type        = string
  description = "Queue for events that still fail after the retries."
}

variable "inference_image" {
  type        = string
  description = "Image behind the endpoints."
}

variable "keep_models" {
  type        = number
  description = "Confirmed models of an endpoint that are not cleaned up."
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

variable "model_role_arn" {
  type        = string
  description = "ARN of the role of models and endpoints."
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

variable "serverless_max_concurrency" {
  type        = number
  description = "Requests that a serverless endpoint answers at the same time."
}

variable "serverless_memory_mb" {
  type        = number
  description = "Memory of a serverless endpoint."
}

variable "tags" {
  type        = map(string)
  description = "Tags of every resource that takes them."
}

variable "timeout_seconds" {
  type        = number
  description = "Time after which Lambda stops the function."
}

variable "topic_arn" {
  type        = string
  description = "ARN of the notification topic."
}
