# The real provider renders the policies, which needs no AWS.
provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "111122223333" }
}

variables {
  bucket_name       = "my-team-models"
  oidc_provider_arn = "arn:aws:iam::111122223333:oidc-provider/token.actions.githubusercontent.com"
  repository        = "my-org/my-data"
}

run "one_branch_of_one_repository_is_trusted" {
  command = plan

  assert {
    condition = jsondecode(aws_iam_role.upload.assume_role_policy) == {
      Version = "2012-10-17"
      Statement = [{
        Sid       = "OneRepository"
        Effect    = "Allow"
        Action    = "sts:AssumeRoleWithWebIdentity"
        Principal = { Federated = "arn:aws:iam::111122223333:oidc-provider/token.actions.githubusercontent.com" }
        Condition = {
          StringEquals = {
            "token.actions.githubusercontent.com:aud" = "sts.amazonaws.com"
            "token.actions.githubusercontent.com:sub" = "repo:my-org/my-data:ref:refs/heads/main"
          }
        }
      }]
    }
    error_message = "The trust policy must be exactly this, not ${aws_iam_role.upload.assume_role_policy}"
  }

  assert {
    condition     = length(aws_iam_openid_connect_provider.github) == 0
    error_message = "An existing provider must not be created again: AWS refuses a second one."
  }
}

run "only_training_data_may_be_put" {
  command = plan

  assert {
    condition = jsondecode(aws_iam_role_policy.upload.policy) == {
      Version = "2012-10-17"
      Statement = [{
        Sid      = "PutTrainingData"
        Effect   = "Allow"
        Action   = ["s3:PutObject", "s3:AbortMultipartUpload"]
        Resource = "arn:aws:s3:::my-team-models/data/train/*"
      }]
    }
    error_message = "The policy must be exactly this, not ${aws_iam_role_policy.upload.policy}"
  }
}

run "with_a_list_of_models_only_their_folders_may_be_written_to" {
  command = plan

  variables {
    models = ["default", "reviews"]
  }

  assert {
    condition = toset(jsondecode(aws_iam_role_policy.upload.policy).Statement[0].Resource) == toset([
      "arn:aws:s3:::my-team-models/data/train/default/*",
      "arn:aws:s3:::my-team-models/data/train/reviews/*",
    ])
    error_message = "Only the folders of these models may be written to, not ${aws_iam_role_policy.upload.policy}"
  }
}

run "a_key_adds_what_encrypting_needs_on_that_key_alone" {
  command = plan

  variables {
    kms_key_arn = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
  }

  assert {
    condition = jsondecode(aws_iam_role_policy.upload.policy).Statement[1] == {
      Sid      = "Encrypt"
      Effect   = "Allow"
      Action   = ["kms:GenerateDataKey", "kms:Decrypt"]
      Resource = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
      Condition = {
        StringEquals = { "kms:ViaService" = "s3.eu-west-1.amazonaws.com" }
      }
    }
    error_message = "The key's statement must be exactly this, not ${aws_iam_role_policy.upload.policy}"
  }
}

run "environments_and_immutable_ids" {
  command = plan

  variables {
    branches     = []
    environments = ["production"]
    repository   = "my-org@123456/my-data@456789"
  }

  assert {
    condition = (
      jsondecode(aws_iam_role.upload.assume_role_policy).Statement[0].Condition.StringEquals["token.actions.githubusercontent.com:sub"]
      == "repo:my-org@123456/my-data@456789:environment:production"
    )
    error_message = "Only the environment may be trusted, not ${aws_iam_role.upload.assume_role_policy}"
  }
}

run "without_a_provider_one_is_created_for_the_audience_of_aws" {
  command = plan

  variables {
    oidc_provider_arn = null
    tags              = { Team = "ml" }
  }

  assert {
    condition = (
      aws_iam_openid_connect_provider.github[0].url == "https://token.actions.githubusercontent.com"
      && aws_iam_openid_connect_provider.github[0].client_id_list == toset(["sts.amazonaws.com"])
      && aws_iam_openid_connect_provider.github[0].tags == tomap({ Team = "ml" })
    )
    error_message = "The provider must be GitHub's for AWS, with the tags."
  }
}

run "a_long_bucket_name_gives_a_role_name_that_iam_takes" {
  command = plan

  variables {
    bucket_name = "a.bucket-name-of-sixty-three-characters-which-is-the-most-of-s3"
  }

  assert {
    condition     = length(aws_iam_role.upload.name) == 64 && startswith(aws_iam_role.upload.name, "mlops-upload-a-bucket-name-of-sixty")
    error_message = "The role's name must be cut to 64 characters: ${aws_iam_role.upload.name}"
  }
}

run "wildcard_repository_is_refused" {
  command = plan

  variables {
    repository = "my-org/*"
  }

  expect_failures = [var.repository]
}

run "wildcard_model_is_refused" {
  command = plan

  variables {
    models = ["*"]
  }

  expect_failures = [var.models]
}

run "wildcard_branch_is_refused" {
  command = plan

  variables {
    branches = ["release/*"]
  }

  expect_failures = [var.branches]
}

run "wildcard_environment_is_refused" {
  command = plan

  variables {
    environments = ["*"]
  }

  expect_failures = [var.environments]
}

run "nobody_is_refused" {
  command = plan

  variables {
    branches = []
  }

  expect_failures = [var.environments]
}

run "bucket_with_a_prefix_is_refused" {
  command = plan

  variables {
    bucket_name = "my-team-models/data"
  }

  expect_failures = [var.bucket_name]
}

run "alias_of_a_key_is_refused" {
  command = plan

  variables {
    kms_key_arn = "arn:aws:kms:eu-west-1:111122223333:alias/models"
  }

  expect_failures = [var.kms_key_arn]
}

run "provider_of_another_issuer_is_refused" {
  command = plan

  variables {
    oidc_provider_arn = "arn:aws:iam::111122223333:oidc-provider/gitlab.com"
  }

  expect_failures = [var.oidc_provider_arn]
}
