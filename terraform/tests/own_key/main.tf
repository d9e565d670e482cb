# The stack as a module, with a key that the same apply creates: the plan doesn't know its ARN.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7.0"
    }
  }
}

resource "aws_kms_key" "pipeline" {
  description         = "Training pipeline"
  enable_key_rotation = true
  policy              = module.pipeline.kms_key_policy
}

module "pipeline" {
  source = "../.."

  kms_key_arn = aws_kms_key.pipeline.arn
}

output "bucket_name" {
  description = "The stack's bucket."
  value       = module.pipeline.bucket_name
}
