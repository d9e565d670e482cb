terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7.0"
    }
  }

  # State that the team shares, in a versioned bucket that already exists (not the stack's own).
  # backend "s3" {
  #   bucket       = "my-team-terraform-state"
  #   key          = "atml/terraform.tfstate"
  #   region       = "eu-west-1"
  #   encrypt      = true
  #   use_lockfile = true # Terraform 1.10 or later; before, dynamodb_table
  # }
}

provider "aws" {
  region = "eu-west-1"
}
