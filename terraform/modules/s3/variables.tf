variable "bucket_name" {
  type        = string
  description = "Name of the bucket."
}

variable "create_bucket" {
  type        = bool
  description = "false uses an existing bucket and manages none of its settings."
}

variable "force_destroy" {
  type        = bool
  description = "Whether the bucket may be destroyed with objects in it."
}

variable "kms_key_arn" {
  type        = string
  description = "Key of the bucket, or null for S3's own."
}

variable "manage_bucket_notification" {
  type        = bool
  description = "Whether an existing bucket's notifications are replaced by sending its events to EventBridge."
}

variable "noncurrent_version_retention_days" {
  type        = number
  description = "Days for which overwritten and deleted versions are kept."
}

variable "partition" {
  type        = string
  description = "AWS partition, for ARNs."
}

variable "raw_model_retention_days" {
  type        = number
  description = "Days for which models/raw/ is kept."
}

variable "snapshot_retention_days" {
  type        = number
  description = "Days for which data/snapshots/ is kept."
}

variable "tags" {
  type        = map(string)
  description = "Tags of every resource that takes them."
}

variable "training_package" {
  type        = string
  description = "Path of training.tar.gz."
}
