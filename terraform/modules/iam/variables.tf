variable "account_id" {
  type        = string
  description = "AWS account, for ARNs."
}

variable "base_model" {
  type        = string
  description = "Base model: training may read it when it is an S3 prefix."
}

variable "bucket_name" {
  type        = string
  description = "The stack's bucket."
}

variable "endpoint_name" {
  type        = string
  description = "Endpoint of the model 'default' and prefix of the others."
}

variable "function_names" {
  type = object({
    deployment_orchestrator = string
    model_evaluator         = string
    training_orchestrator   = string
  })
  description = "Names of the functions, and of their roles."
}

variable "hub_token_secret_arn" {
  type        = string
  description = "Secret with the Hub token that training may read, or null."
}

variable "inference_image" {
  type        = string
  description = "Image behind the endpoints, in ECR."
}

variable "kms_key_arn" {
  type        = string
  description = "Key that the roles may use for the stack's data, or null."
}

variable "model_role_name" {
  type        = string
  description = "Name of the role of models and endpoints."
}

variable "partition" {
  type        = string
  description = "AWS partition, for ARNs."
}

variable "queue_arn" {
  type        = string
  description = "ARN of the queue of events that could not be processed."
}

variable "region" {
  type        = string
  description = "AWS region, for ARNs."
}

variable "tags" {
  type        = map(string)
  description = "Tags of every resource that takes them."
}

variable "topic_arn" {
  type        = string
  description = "ARN of the notification topic."
}

variable "training_image" {
  type        = string
  description = "Image of the training jobs, in ECR."
}

variable "training_role_name" {
  type        = string
  description = "Name of the role of training jobs."
}
