# Every validation of variables.tf must refuse a value just outside its limits and accept one just inside. A run takes
# seconds, so variables share runs unless a validation refers to several of them. Every expected failure must occur.

provider "aws" {
  region                      = "eu-west-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "111122223333" }
}

run "refuses_below_the_least" {
  command = plan

  variables {
    accept_uncompared                 = [""]
    bucket_name                       = "ab"
    champion_margin                   = -0.001
    data_retention_days               = { uploads = 29 }
    deployment_step_percent           = 0
    deployment_wait_seconds           = -1
    endpoint_name                     = ""
    hyperparameters                   = { epochs = "" }
    keep_models                       = 0
    label_column                      = ""
    latency_alarm_milliseconds        = 0
    log_retention_days                = 0
    max_concurrent_training_jobs      = 0
    max_models                        = 0
    max_rows_left_out                 = -0.01
    max_training_jobs_per_day         = 0
    models                            = [""]
    noncurrent_version_retention_days = 0
    project                           = ""
    raw_model_retention_days          = 6
    serverless_max_concurrency        = 0
    serverless_memory_mb              = 0
    snapshot_retention_days           = 29
    sweep_schedule                    = "rate(0 minutes)"
    thresholds                        = {}
    training_instance_count           = 0
    training_max_runtime_seconds      = 59
    training_volume_gb                = 0
  }

  expect_failures = [
    var.accept_uncompared,
    var.bucket_name,
    var.champion_margin,
    var.data_retention_days,
    var.deployment_step_percent,
    var.deployment_wait_seconds,
    var.endpoint_name,
    var.hyperparameters,
    var.keep_models,
    var.label_column,
    var.latency_alarm_milliseconds,
    var.log_retention_days,
    var.max_concurrent_training_jobs,
    var.max_models,
    var.max_rows_left_out,
    var.max_training_jobs_per_day,
    var.models,
    var.noncurrent_version_retention_days,
    var.project,
    var.raw_model_retention_days,
    var.serverless_max_concurrency,
    var.serverless_memory_mb,
    var.snapshot_retention_days,
    var.sweep_schedule,
    var.thresholds,
    var.training_instance_count,
    var.training_max_runtime_seconds,
    var.training_volume_gb,
  ]
}

run "takes_the_least" {
  command = plan

  variables {
    accept_uncompared                 = ["m"]
    base_model                        = "a"
    bucket_name                       = "abc"
    candidates                        = "words"
    champion_margin                   = 0
    data_retention_days               = { approved_models = 30, decisions = 30, rejected_uploads = 30, uploads = null }
    deployment_alarm_models           = []
    deployment_step_percent           = 1
    deployment_wait_seconds           = 0
    endpoint_instance_count           = 1
    endpoint_name                     = "e"
    endpoint_type                     = "serverless"
    hyperparameters                   = { lr = "1" }
    keep_models                       = 1
    label_column                      = "l"
    latency_alarm_milliseconds        = 1
    log_level                         = "TRACE"
    log_retention_days                = 1
    max_concurrent_training_jobs      = 1
    max_models                        = 1
    max_rows_left_out                 = 0
    max_training_jobs_per_day         = 1
    models                            = ["m"]
    model_thresholds                  = { m = { f = { min = 0, max = 0 } } }
    noncurrent_version_retention_days = 1
    notification_emails               = ["a@b.c"]
    project                           = "p"
    raw_model_retention_days          = 7
    serverless_max_concurrency        = 1
    serverless_memory_mb              = 1024
    snapshot_retention_days           = 30
    sweep_schedule                    = "rate(1 minute)"
    tags                              = {}
    text_column                       = "t"
    thresholds                        = { f = { min = 0.5, max = 0.5 } }
    training_instance_count           = 1
    training_max_runtime_seconds      = 60
    training_max_wait_seconds         = 60
    training_use_spot                 = true
    training_volume_gb                = 1
  }

  assert {
    condition     = output.endpoint_name == "e" && output.bucket_name == "abc"
    error_message = "The smallest values must be accepted unchanged."
  }
}

run "refuses_above_the_most" {
  command = plan

  variables {
    accept_uncompared            = [for i in range(16) : "${join("", [for j in range(i < 2 ? 30 : 29) : "m"])}${i + 10}"] # 513 characters
    base_model                   = "/${join("", [for i in range(512) : "m"])}"
    base_models                  = { for i in range(2) : format("%s%d", join("", [for j in range(127) : "m"]), i) => join("", [for j in range(i == 0 ? 128 : 116) : "r"]) } # 513 characters as JSON
    bucket_name                  = join("", [for i in range(64) : "b"])
    champion_margin              = 1.001
    deployment_alarm_models      = [for i in range(9) : "m${i}"]
    deployment_step_percent      = 51
    deployment_wait_seconds      = 2401
    endpoint_name                = join("", [for i in range(31) : "e"])
    hyperparameters              = { for i in range(51) : "h${i}" => "1" }
    keep_models                  = 21
    label_column                 = join("", [for i in range(257) : "l"])
    latency_alarm_milliseconds   = 60001
    log_retention_days           = 3654
    max_concurrent_training_jobs = 101
    max_models                   = 1001
    max_rows_left_out            = 1.01
    max_training_jobs_per_day    = 1001
    models                       = [for i in range(103) : format("model-%03d", i)]
    model_thresholds             = { for i in range(60) : "m${i}" => { accuracy_on_the_held_out_rows = { min = 0.123456789 } } }
    project                      = join("", [for i in range(129) : "p"])
    serverless_max_concurrency   = 201
    serverless_memory_mb         = 7168
    sweep_schedule               = "rate(100000 days)"
    tags                         = { for i in range(41) : "t${i}" => "v" }
    training_instance_count      = 9
    training_max_runtime_seconds = 2419201
    training_volume_gb           = 16385
  }

  expect_failures = [
    var.accept_uncompared,
    var.base_model,
    var.base_models,
    var.bucket_name,
    var.champion_margin,
    var.deployment_alarm_models,
    var.deployment_step_percent,
    var.deployment_wait_seconds,
    var.endpoint_name,
    var.hyperparameters,
    var.keep_models,
    var.label_column,
    var.latency_alarm_milliseconds,
    var.log_retention_days,
    var.max_concurrent_training_jobs,
    var.max_models,
    var.max_rows_left_out,
    var.max_training_jobs_per_day,
    var.model_thresholds,
    var.models,
    var.project,
    var.serverless_max_concurrency,
    var.serverless_memory_mb,
    var.sweep_schedule,
    var.tags,
    var.training_instance_count,
    var.training_max_runtime_seconds,
    var.training_volume_gb,
  ]
}

run "takes_the_most" {
  command = plan

  variables {
    accept_uncompared            = [for i in range(16) : "${join("", [for j in range(i < 1 ? 30 : 29) : "m"])}${i + 10}"] # 512 characters
    base_model                   = "/${join("", [for i in range(511) : "m"])}"
    base_models                  = { for i in range(2) : format("%s%d", join("", [for j in range(127) : "m"]), i) => join("", [for j in range(i == 0 ? 128 : 115) : "r"]) } # 512 characters as JSON
    bucket_name                  = join("", [for i in range(63) : "b"])
    candidates                   = "words,frozen,fine-tuned,blend"
    champion_margin              = 1
    deployment_alarm_models      = [for i in range(8) : "${join("", [for j in range(31) : "m"])}${i}"]
    deployment_step_percent      = 50
    deployment_wait_seconds      = 2400
    endpoint_instance_count      = 100
    endpoint_name                = join("", [for i in range(30) : "e"])
    endpoint_type                = "instance"
    hyperparameters              = { for i in range(50) : "h${i}" => "1" }
    keep_models                  = 20
    label_column                 = join("", [for i in range(256) : "l"])
    latency_alarm_milliseconds   = 60000
    log_level                    = "FATAL"
    log_retention_days           = 3653
    max_concurrent_training_jobs = 100
    max_models                   = 1000
    max_rows_left_out            = 1
    max_training_jobs_per_day    = 1000
    models                       = concat([for i in range(31) : "${join("", [for j in range(30) : "m"])}${format("%02d", i)}"], ["m"])
    # 3072 characters as JSON, together with the thresholds.
    model_thresholds             = { for i in range(64) : format("m%02d", i) => { (join("", [for j in range(i == 63 ? 6 : 16) : "f"])) = { min = 0, max = 1 } } }
    project                      = join("", [for i in range(128) : "p"])
    serverless_max_concurrency   = 200
    serverless_memory_mb         = 6144
    sweep_schedule               = "rate(99999 days)"
    tags                         = { for i in range(40) : format("%s%02d", join("", [for j in range(126) : "k"]), i) => join("", [for j in range(256) : "v"]) }
    text_column                  = join("", [for i in range(256) : "t"])
    training_instance_count      = 8
    training_max_runtime_seconds = 2419200
    training_max_wait_seconds    = 2419200
    training_volume_gb           = 16384
  }

  assert {
    condition     = alltrue([for name in values(output.rule_names) : length(name) <= 64])
    error_message = "No name may exceed AWS's 64 characters, whatever the bucket's name."
  }
}

run "refuses_what_is_not_whole" {
  command = plan

  variables {
    data_retention_days               = { decisions = 30.5 }
    deployment_step_percent           = 25.5
    deployment_wait_seconds           = 0.5
    keep_models                       = 2.5
    log_retention_days                = 30.5
    max_concurrent_training_jobs      = 1.5
    max_models                        = 1.5
    max_training_jobs_per_day         = 1.5
    noncurrent_version_retention_days = 1.5
    raw_model_retention_days          = 7.5
    serverless_max_concurrency        = 1.5
    serverless_memory_mb              = 1536
    snapshot_retention_days           = 30.5
    training_instance_count           = 1.5
    training_max_runtime_seconds      = 60.5
    training_volume_gb                = 1.5
  }

  expect_failures = [
    var.data_retention_days,
    var.deployment_step_percent,
    var.deployment_wait_seconds,
    var.keep_models,
    var.log_retention_days,
    var.max_concurrent_training_jobs,
    var.max_models,
    var.max_training_jobs_per_day,
    var.noncurrent_version_retention_days,
    var.raw_model_retention_days,
    var.serverless_max_concurrency,
    var.serverless_memory_mb,
    var.snapshot_retention_days,
    var.training_instance_count,
    var.training_max_runtime_seconds,
    var.training_volume_gb,
  ]
}

run "refuses_malformed_text" {
  command = plan

  variables {
    accept_uncompared         = ["spam", "Reviews"]
    base_model                = "two words"
    base_models               = { "s3://bucket/model" = "main" }
    bucket_name               = "Team"
    candidates                = "words, frozen"
    deployment_alarm_models   = ["Reviews"]
    deployment_strategy       = "rolling"
    endpoint_instance_count   = 2
    endpoint_name             = "Reviews"
    endpoint_type             = "instance"
    hub_token_secret_arn      = "arn:aws:secretsmanager:eu-west-1:1:secret:token"
    hyperparameters           = { epochs = "3; rm -rf /" }
    inference_image           = "ubuntu:latest"
    kms_key_arn               = "arn:aws:kms:eu-west-1:111122223333:alias/ours"
    label_column              = " label"
    log_level                 = "info"
    model_thresholds          = { Reviews = { accuracy = { min = 0.9 } } }
    notification_emails       = ["ml-team"]
    project                   = "aws:ours"
    sweep_schedule            = "15 minutes"
    tags                      = { "aws:ours" = "v" }
    training_image            = "ubuntu:latest"
    training_max_wait_seconds = 20000.5
  }

  expect_failures = [
    var.accept_uncompared,
    var.base_model,
    var.base_models,
    var.bucket_name,
    var.candidates,
    var.deployment_alarm_models,
    var.deployment_strategy,
    var.endpoint_name,
    var.hub_token_secret_arn,
    var.hyperparameters,
    var.inference_image,
    var.kms_key_arn,
    var.label_column,
    var.log_level,
    var.model_thresholds,
    var.notification_emails,
    var.project,
    var.sweep_schedule,
    var.tags,
    var.training_image,
    var.training_max_wait_seconds,
  ]
}

run "refuses_malformed_parts" {
  command = plan

  variables {
    accept_uncompared         = [join("", [for i in range(33) : "m"])]
    base_model_revision       = "main branch"
    base_models               = { "org/name" = "main branch" }
    bucket_name               = "192.168.5.4"
    candidates                = "words,auto"
    endpoint_instance_count   = 0
    endpoint_instance_type    = "m5.large"
    endpoint_name             = "reviews-"
    endpoint_type             = "async"
    hyperparameters           = { Epochs = "3" }
    model_thresholds          = { reviews = {} }
    project                   = "two words"
    sweep_schedule            = "rate(1 minutes)"
    tags                      = { (join("", [for i in range(129) : "k"])) = "v" }
    text_column               = "text\n"
    training_instance_type    = "m5.xlarge"
    training_max_wait_seconds = 2419201
  }

  expect_failures = [
    var.accept_uncompared,
    var.base_model_revision,
    var.base_models,
    var.bucket_name,
    var.candidates,
    var.endpoint_instance_count,
    var.endpoint_instance_type,
    var.endpoint_name,
    var.endpoint_type,
    var.hyperparameters,
    var.model_thresholds,
    var.project,
    var.sweep_schedule,
    var.tags,
    var.text_column,
    var.training_instance_type,
    var.training_max_wait_seconds,
  ]
}

run "refuses_what_is_reserved_or_contradicts_itself" {
  command = plan

  variables {
    base_model_revision     = "main" # of auto
    base_models             = { auto = "main" }
    bucket_name             = "ours-s3alias"
    candidates              = ""
    endpoint_instance_count = 101
    hyperparameters         = { sagemaker_program = "x.py" }
    model_thresholds        = { reviews = { accuracy = {} } }
    sweep_schedule          = "rate(15 minute)"
    tags                    = { k = join("", [for i in range(257) : "v"]) }
  }

  expect_failures = [
    var.base_model_revision,
    var.base_models,
    var.bucket_name,
    var.candidates,
    var.endpoint_instance_count,
    var.hyperparameters,
    var.model_thresholds,
    var.sweep_schedule,
    var.tags,
  ]
}

run "refuses_what_lies_in_another_region" {
  command = plan

  variables {
    bucket_name             = "a..b"
    endpoint_instance_count = 1.5
    hub_token_secret_arn    = "arn:aws:secretsmanager:us-east-1:111122223333:secret:token"
    inference_image         = "111122223333.dkr.ecr.us-east-1.amazonaws.com/serve:1"
    kms_key_arn             = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    model_thresholds        = { reviews = { accuracy = { min = 0.9, max = 0.8 } } }
    training_image          = "111122223333.dkr.ecr.us-east-1.amazonaws.com/train:1"
  }

  expect_failures = [
    var.bucket_name,
    var.endpoint_instance_count,
    var.hub_token_secret_arn,
    var.inference_image,
    var.kms_key_arn,
    var.model_thresholds,
    var.training_image,
  ]
}

run "refuses_what_does_not_go_together" {
  command = plan

  variables {
    base_model                = "s3://weights/minilm/"
    base_model_revision       = "main"
    create_bucket             = false
    deployment_strategy       = "canary" # on serverless
    endpoint_instance_count   = 2
    endpoint_instance_type    = "ml.m6g.large"
    text_column               = "label"
    training_instance_type    = "ml.trn1.2xlarge"
    training_max_wait_seconds = 14399
  }

  expect_failures = [
    var.base_model_revision,
    var.create_bucket,
    var.deployment_strategy,
    var.endpoint_instance_type,
    var.text_column,
    var.training_instance_type,
    var.training_max_wait_seconds,
  ]
}

run "takes_what_goes_together" {
  command = plan

  variables {
    base_model                 = "org/name"
    base_model_revision        = join("", [for i in range(128) : "r"])
    bucket_name                = "shared.bucket"
    create_bucket              = false
    deployment_step_percent    = 50
    deployment_strategy        = "canary"
    endpoint_instance_count    = 2
    endpoint_instance_type     = "ml.m6g.large"
    endpoint_type              = "instance"
    hub_token_secret_arn       = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:token-AbCdEf"
    inference_image            = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/serve@sha256:${join("", [for i in range(64) : "0"])}"
    kms_key_arn                = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    label_column               = "text"
    manage_bucket_notification = true
    sweep_schedule             = "cron(0/30 * * * ? *)"
    text_column                = "label"
    training_image             = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/train:1"
    training_instance_type     = "ml.trn1.2xlarge"
  }

  assert {
    condition     = output.bucket_name == "shared.bucket"
    error_message = "An existing bucket must keep its name."
  }
}

run "refuses_to_notify_for_a_bucket_of_its_own_twice" {
  command = plan

  variables {
    manage_bucket_notification = true
  }

  expect_failures = [var.manage_bucket_notification]
}

run "refuses_a_canary_on_one_instance" {
  command = plan

  variables {
    deployment_strategy     = "canary"
    endpoint_instance_count = 1
    endpoint_type           = "instance"
  }

  expect_failures = [var.deployment_strategy]
}

run "refuses_a_canary_of_less_than_one_instance" {
  command = plan

  variables {
    deployment_step_percent = 33
    deployment_strategy     = "canary"
    endpoint_instance_count = 3
    endpoint_type           = "instance"
  }

  expect_failures = [var.deployment_step_percent]
}

run "refuses_linear_steps_below_ten_percent" {
  command = plan

  variables {
    deployment_step_percent = 9
    deployment_strategy     = "linear"
    endpoint_instance_count = 100
    endpoint_type           = "instance"
  }

  expect_failures = [var.deployment_step_percent]
}

run "takes_linear_steps_of_ten_percent" {
  command = plan

  variables {
    deployment_step_percent = 10
    deployment_strategy     = "linear"
    endpoint_instance_count = 10
    endpoint_type           = "instance"
  }

  assert {
    condition     = jsondecode(local.deployment_policy).BlueGreenUpdatePolicy.TrafficRoutingConfiguration.LinearStepSize.Value == 10
    error_message = "The step size must reach the function."
  }
}

run "refuses_a_threshold_without_a_number" {
  command = plan

  variables {
    thresholds = { accuracy = {} }
  }

  expect_failures = [var.thresholds]
}

run "refuses_thresholds_that_nothing_can_pass" {
  command = plan

  variables {
    thresholds = { accuracy = { min = 0.9, max = 0.8 } }
  }

  expect_failures = [var.thresholds]
}
