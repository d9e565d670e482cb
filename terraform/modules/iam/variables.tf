variable "account_id" {
  type        = string
  description = "AWS account id, for ARNs."
}

variable "alarmed_endpoints" {
  type        = list(string)
  description = "Endpoints whose alarms roll a deployment back."
}

variable "base_model" {
  type        = string
  description = "Base model. If it is an S3 prefix, training jobs may read it."
}

variable "bucket_name" {
  type        = string
  description = "The stack's bucket."
}

variable "endpoint_name" {
  type        = string
  description = "Endpoint of the model 'default', and prefix of the others."
}

variable "function_names" {
  type = object({
    deployment_orchestrator = string
    model_evaluator         = string
    training_orchestrator   = string
  })
  description = "Names of the functions, which are also the names of their roles."
}

variable "hub_token_secret_arn" {
  type        = string
  description = "Secret with the Hub token, which training jobs may read. null: none."
}

variable "inference_image" {
  type        = string
  description = "Serving image, in ECR."
}

variable "kms_key_arn" {
  type        = string
  description = "KMS key that the roles may use for the stack's data. null: none."
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
  description = "ARN of the queue for events that could not be processed."
}

variable "region" {
  type        = string
  description = "AWS region, for ARNs."
}

variable "tags" {
  type        = map(string)
  description = "Tags of all resources that can have tags."
}

variable "topic_arn" {
  type        = string
  description = "ARN of the notification topic."
}

variable "training_image" {
  type        = string
  description = "Training image, in ECR."
}

variable "training_role_name" {
  type        = string
  description = "Name of the role of training jobs."
}

variable "training_use_spot" {
  type        = bool
  description = "Whether training jobs keep checkpoints, so that they can go on after an interruption."
}
