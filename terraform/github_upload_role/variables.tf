variable "branches" {
  type        = list(string)
  description = "Branches whose jobs may upload. For a job in an environment, the environment counts, not the branch: see environments."
  default     = ["main"]

  validation {
    condition     = alltrue([for branch in var.branches : can(regex("^[A-Za-z0-9._/-]+$", branch)) && !startswith(branch, "refs/")])
    error_message = "branches must be plain names such as main, without refs/heads/ or wildcards."
  }
}

variable "bucket_name" {
  type        = string
  description = "The stack's bucket."

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name must be the name of an S3 bucket, without s3:// or a prefix."
  }
}

variable "environments" {
  type        = list(string)
  description = "GitHub environments whose jobs may upload. Protect them, so that not every branch can use them."
  default     = []

  validation {
    condition     = alltrue([for environment in var.environments : can(regex("^[A-Za-z0-9._-]+$", environment))])
    error_message = "environments must be names of letters, digits and . _ -, without wildcards."
  }

  validation {
    condition     = length(var.branches) + length(var.environments) > 0
    error_message = "branches and environments must not both be empty: nobody could upload."
  }
}

variable "kms_key_arn" {
  type        = string
  description = "KMS key of the bucket, if you use your own."
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$", var.kms_key_arn))
    error_message = "kms_key_arn must be the ARN of a key (arn:aws:kms:...:key/...), not an alias."
  }
}

variable "models" {
  type        = list(string)
  description = "Models whose data may be uploaded, each to data/train/<model>/: the stack's models, or some of them. []: all."
  default     = []

  validation {
    condition     = alltrue([for model in var.models : can(regex("^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", model))])
    error_message = "models: each model name must be 1 to 32 of a-z, 0-9 and dashes, starting and ending with a letter or digit."
  }
}

variable "oidc_provider_arn" {
  type        = string
  description = "The account's OIDC provider for GitHub, if it already has one. null: create it."
  default     = null

  validation {
    condition     = var.oidc_provider_arn == null || can(regex("^arn:[a-z-]+:iam::[0-9]{12}:oidc-provider/token\\.actions\\.githubusercontent\\.com$", var.oidc_provider_arn))
    error_message = "oidc_provider_arn must be arn:aws:iam::<account>:oidc-provider/token.actions.githubusercontent.com."
  }
}

variable "repository" {
  type        = string
  description = "GitHub repository that may upload: owner/name, or owner@id/name@id if GitHub's tokens contain the immutable ids."

  # https://docs.github.com/en/actions/concepts/security/openid-connect, "Immutable subject claims"
  validation {
    condition     = can(regex("^[A-Za-z0-9-]+(@[0-9]+)?/[A-Za-z0-9._-]+(@[0-9]+)?$", var.repository))
    error_message = "repository must be owner/name (or owner@id/name@id), without a host or wildcards."
  }
}

variable "tags" {
  type        = map(string)
  description = "Tags of the role and the OIDC provider."
  default     = {}
}
