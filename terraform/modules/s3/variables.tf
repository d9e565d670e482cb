variable "bucket_name" {
  type        = string
  description = "Name of the bucket."
}

variable "checkpoint_retention_days" {
  type        = number
  description = "How many days models/checkpoints/ is kept."
}

variable "create_bucket" {
  type        = bool
  description = "false: use an existing bucket and manage none of its settings."
}

variable "data_retention_days" {
  type = object({
    approved_models  = optional(number)
    decisions        = optional(number)
    rejected_uploads = optional(number)
    uploads          = optional(number)
  })
  description = "How many days models/approved/, models/decisions/, data/rejected/ and data/train/ are kept. null: for ever."
}

variable "force_destroy" {
  type        = bool
  description = "Whether terraform destroy may delete the bucket with objects in it."
}

variable "kms_key_arn" {
  type        = string
  description = "KMS key of the bucket. null: S3's own keys."
}

variable "manage_bucket_notification" {
  type        = bool
  description = "Whether to replace an existing bucket's notifications by events to EventBridge."
}

variable "noncurrent_version_retention_days" {
  type        = number
  description = "How many days overwritten and deleted object versions are kept."
}

variable "partition" {
  type        = string
  description = "AWS partition, for ARNs."
}

variable "raw_model_retention_days" {
  type        = number
  description = "How many days models/raw/ is kept."
}

variable "snapshot_retention_days" {
  type        = number
  description = "How many days data/snapshots/ is kept."
}

variable "tags" {
  type        = map(string)
  description = "Tags of all resources that can have tags."
}

variable "training_package" {
  type        = string
  description = "Path of training.tar.gz."
}
