variable "account_id" {
  type        = string
  description = "Account whose events count."
}

variable "bucket_name" {
  type        = string
  description = "Bucket whose uploads and approved models trigger the functions."
}

variable "endpoint_name" {
  type        = string
  description = "Endpoint of the model 'default', and prefix of the others."
}

variable "functions" {
  type = object({
    deployment_orchestrator = object({ arn = string, name = string })
    model_evaluator         = object({ arn = string, name = string })
    training_orchestrator   = object({ arn = string, name = string })
  })
  description = "The functions that the rules invoke."
}

variable "queue_arn" {
  type        = string
  description = "ARN of the queue for events that could not be delivered."
}

variable "rule_names" {
  type = object({
    approved       = string
    endpoint       = string
    sweep          = string
    training_ended = string
    uploads        = string
  })
  description = "Names of the rules."
}

variable "sweep_schedule" {
  type        = string
  description = "Schedule expression of the sweep."
}

variable "tags" {
  type        = map(string)
  description = "Tags of all resources that can have tags."
}
