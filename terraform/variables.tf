variable "accept_uncompared" {
  type        = list(string)
  description = "Models whose next version is judged by its thresholds alone when it cannot be compared with the live one: no shared label, a live model that does not load, too few rows; or which may write the live one's labels otherwise, as long as it is no worse. Without a name here it is held. Take the name out again afterwards."
  default     = []

  validation {
    condition     = alltrue([for model in var.accept_uncompared : can(regex("^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", model))])
    error_message = "accept_uncompared: each model name must be 1 to 32 of a-z, 0-9 and dashes, starting and ending with a letter or digit."
  }

  # Beside thresholds and model_thresholds in a function's environment of 4096 bytes.
  validation {
    condition     = length(join(",", var.accept_uncompared)) <= 512
    error_message = "accept_uncompared is too long: at most 512 characters in all. Take out the models that were accepted already."
  }
}

variable "base_model" {
  type        = string
  description = "Base model of training: auto (an English or a multilingual sentence encoder, chosen by the texts, each at a fixed commit), a HuggingFace Hub id, an absolute path in the training image, or s3://bucket/prefix in the stack's region."
  default     = "auto"

  validation {
    condition = length(var.base_model) <= 512 && anytrue([
      can(regex("^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$", var.base_model)),
      can(regex("^/[^[:cntrl:]]+$", var.base_model)),
      can(regex("^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[A-Za-z0-9._/=-]+$", var.base_model)),
    ])
    error_message = "base_model must be auto, a Hub id (distilbert-base-uncased, org/name), an absolute path or s3://bucket/prefix, with at most 512 characters."
  }
}

variable "base_model_revision" {
  type        = string
  description = "Branch, tag or commit of the Hub model; a commit makes training reproducible. null: the latest. Only for Hub ids."
  default     = null

  validation {
    condition     = var.base_model_revision == null || can(regex("^[A-Za-z0-9._/-]{1,128}$", var.base_model_revision))
    error_message = "base_model_revision must be a branch, tag or commit: 1 to 128 letters, digits, dots, dashes, underscores and slashes."
  }

  validation {
    condition     = var.base_model_revision == null || !can(regex("^(auto$|/|s3://)", var.base_model))
    error_message = "base_model_revision is only for Hub ids: leave it unset when base_model is auto, a path or an S3 prefix."
  }
}

variable "base_models" {
  type        = map(string)
  description = "Further base models that a model's settings.json may choose, besides base_model: HuggingFace Hub id = commit (or tag or branch). {}: none."
  default     = {}

  # Never a path or an s3:// address: who uploads data would choose what the training job reads.
  validation {
    condition     = alltrue([for name in keys(var.base_models) : name != "auto" && length(name) <= 128 && can(regex("^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$", name))])
    error_message = "base_models: each name must be a Hub id (distilbert-base-uncased, org/name) of at most 128 characters. A settings.json may say auto without that."
  }

  validation {
    condition     = alltrue([for revision in values(var.base_models) : can(regex("^[A-Za-z0-9._/-]{1,128}$", revision))])
    error_message = "base_models: each revision must be a commit, tag or branch: 1 to 128 letters, digits, dots, dashes, underscores and slashes."
  }

  # Beside the rest of a function's environment of 4096 bytes.
  validation {
    condition     = length(jsonencode(var.base_models)) <= 512
    error_message = "base_models is too long: at most 512 characters as JSON."
  }
}

variable "bucket_name" {
  type        = string
  description = "The stack's S3 bucket; every other name ends with it. null: atml-models-<account id>-<region>."
  default     = null

  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
  validation {
    condition = var.bucket_name == null || alltrue([
      can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket_name)),
      !can(regex("\\.\\.", var.bucket_name)),
      !can(regex("^([0-9]+\\.){3}[0-9]+$", var.bucket_name)),
      !can(regex("^(xn--|sthree-|amzn-s3-demo-)", var.bucket_name)),
      !can(regex("(-s3alias|--ol-s3|\\.mrap|--x-s3|--table-s3)$", var.bucket_name)),
    ])
    error_message = "bucket_name must follow S3's naming rules: 3 to 63 lowercase letters, digits, dots and dashes, starting and ending with a letter or digit; no '..', no IP address, none of S3's reserved prefixes and suffixes."
  }
}

variable "candidates" {
  type        = string
  description = "What training tries, with commas between: words (TF-IDF with logistic regression), frozen (the base model's embeddings with logistic regression), fine-tuned (the base model), blend (their average). auto: whatever pays, cheapest first."
  default     = "auto"

  validation {
    condition     = can(regex("^(auto|(words|frozen|fine-tuned|blend)(,(words|frozen|fine-tuned|blend))*)$", var.candidates))
    error_message = "candidates must be auto, or some of words, frozen, fine-tuned and blend, with commas between and no spaces."
  }
}

variable "champion_margin" {
  type        = number
  description = "How much worse a new model may score than the live one on the same rows, in each metric of its thresholds: 0.005 is half a percentage point of accuracy. With 1, any loss of accuracy passes."
  default     = 0.005

  validation {
    condition     = var.champion_margin >= 0 && var.champion_margin <= 1
    error_message = "champion_margin must be a number from 0 to 1."
  }
}

variable "create_bucket" {
  type        = bool
  description = "false: use an existing bucket and manage none of its settings. It must be in the stack's region, be versioned, and send its events to EventBridge (see manage_bucket_notification); `make deploy` checks that."
  default     = true

  validation {
    condition     = var.create_bucket || var.bucket_name != null
    error_message = "create_bucket = false needs bucket_name, the name of the existing bucket."
  }
}

variable "data_retention_days" {
  type = object({
    approved_models  = optional(number)
    decisions        = optional(number)
    rejected_uploads = optional(number)
    uploads          = optional(number)
  })
  description = "How many days S3 keeps what has no setting of its own; unset: for ever. S3 cannot tell what is live. Without its archive in models/approved/ a live model cannot be restored, rolled back to or compared with, and the next one is held; without its decision its answers are not checked again, and `make retrain` refuses its job. So set these two to longer than any model stays live. An upload in data/train/ is needed until its snapshot is taken, so outlast a pause. Old versions stay for noncurrent_version_retention_days more. An existing bucket (create_bucket = false) gets no rules: set them there."
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for days in values(var.data_retention_days) : days == null ? true : floor(days) == days && days >= 30])
    error_message = "data_retention_days must be whole numbers of at least 30: what the pipeline is at work on must still exist."
  }
}

variable "deployment_alarm_models" {
  type        = list(string)
  description = "Models whose endpoints get alarms when they run on instances (5xx, 4xx, latency). An alarm sends an email and rolls back the update that set it off. Terraform cannot see which models the uploads create, so list them here."
  default     = ["default"]

  # SageMaker accepts 10 alarms per update, but they have to fit into a function's environment of 4096 bytes.
  validation {
    condition     = length(var.deployment_alarm_models) <= 8 && alltrue([for model in var.deployment_alarm_models : can(regex("^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", model))])
    error_message = "deployment_alarm_models: at most 8 names, each 1 to 32 of a-z, 0-9 and dashes, starting and ending with a letter or digit."
  }
}

variable "deployment_step_percent" {
  type        = number
  description = "Percentage of the instances in the canary, or in each step of a linear deployment."
  default     = 50

  # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_TrafficRoutingConfig.html
  validation {
    condition     = floor(var.deployment_step_percent) == var.deployment_step_percent && var.deployment_step_percent >= (var.deployment_strategy == "linear" ? 10 : 1) && var.deployment_step_percent <= 50
    error_message = "deployment_step_percent must be a whole number of at most 50, and at least 1 for a canary or 10 for linear steps."
  }

  validation {
    condition     = var.deployment_strategy == "all_at_once" || var.endpoint_instance_count * var.deployment_step_percent >= 100
    error_message = "deployment_step_percent of endpoint_instance_count is less than one instance: raise either of them."
  }
}

variable "deployment_strategy" {
  type        = string
  description = "How traffic moves to a new model on instances: all_at_once, canary (a share first, then the rest) or linear (in equal steps). An alarm during the deployment rolls it back."
  default     = "all_at_once"

  validation {
    condition     = contains(["all_at_once", "canary", "linear"], var.deployment_strategy)
    error_message = "deployment_strategy must be all_at_once, canary or linear."
  }

  validation {
    condition     = var.deployment_strategy == "all_at_once" || var.endpoint_type == "instance"
    error_message = "deployment_strategy canary and linear need endpoint_type = \"instance\": serverless endpoints have no deployment settings."
  }

  validation {
    condition     = var.deployment_strategy == "all_at_once" || var.endpoint_instance_count >= 2
    error_message = "deployment_strategy canary and linear need endpoint_instance_count to be at least 2: a step is at most half of the instances."
  }
}

variable "deployment_wait_seconds" {
  type        = number
  description = "How long the alarms are watched after each step, and after the last step before the old instances are removed."
  default     = 300

  # SageMaker allows a deployment 8 hours for its steps, its waits and the start of the instances.
  validation {
    condition     = floor(var.deployment_wait_seconds) == var.deployment_wait_seconds && var.deployment_wait_seconds >= 0 && var.deployment_wait_seconds <= 2400
    error_message = "deployment_wait_seconds must be a whole number from 0 to 2400."
  }
}

variable "endpoint_instance_count" {
  type        = number
  description = "Number of instances behind each endpoint when endpoint_type is instance."
  default     = 1

  validation {
    condition     = floor(var.endpoint_instance_count) == var.endpoint_instance_count && var.endpoint_instance_count >= 1 && var.endpoint_instance_count <= 100
    error_message = "endpoint_instance_count must be a whole number from 1 to 100."
  }
}

variable "endpoint_instance_type" {
  type        = string
  description = "Instance type of the endpoints when endpoint_type is instance. It also selects the serving image (CPU or GPU)."
  default     = "ml.m5.large"

  validation {
    condition     = can(regex("^ml\\.[a-z0-9-]+\\.[a-z0-9]+$", var.endpoint_instance_type))
    error_message = "endpoint_instance_type must be a SageMaker instance type such as ml.m5.large."
  }

  validation {
    condition     = var.inference_image != null || !can(regex("^ml\\.(trn|inf|[a-z]+[0-9]+gd?n?\\.)", var.endpoint_instance_type))
    error_message = "The HuggingFace serving images only run on x86 CPUs and NVIDIA GPUs: set inference_image for a Trainium, Inferentia or Graviton endpoint_instance_type."
  }
}

variable "endpoint_name" {
  type        = string
  description = "Endpoint of the model 'default'; every other model has <endpoint_name>-<model>."
  default     = "mlops-endpoint"

  # SageMaker allows 63 characters: 30 + "-" + 32 for the model's name. It lowercases names in ARNs and IAM compares ARNs
  # case-sensitively, so calls to an endpoint with capitals would be denied.
  validation {
    condition     = can(regex("^[a-z0-9](-*[a-z0-9])*$", var.endpoint_name)) && length(var.endpoint_name) <= 30
    error_message = "endpoint_name must be at most 30 lowercase letters, digits and dashes, starting and ending with a letter or digit."
  }
}

variable "endpoint_type" {
  type        = string
  description = "serverless (billed per request) or instance (billed by the hour). Changing from instance to serverless recreates the endpoint, which is down for some minutes."
  default     = "serverless"

  validation {
    condition     = contains(["serverless", "instance"], var.endpoint_type)
    error_message = "endpoint_type must be serverless or instance."
  }
}

variable "force_destroy" {
  type        = bool
  description = "true: terraform destroy deletes the bucket with everything in it: data, models, records."
  default     = false
}

variable "hub_token_secret_arn" {
  type        = string
  description = "Secrets Manager secret that holds a HuggingFace token, for private or gated base models. null: no token."
  default     = null

  validation {
    condition     = var.hub_token_secret_arn == null || can(regex("^arn:[a-z-]+:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:[A-Za-z0-9/_+=.@!-]+$", var.hub_token_secret_arn))
    error_message = "hub_token_secret_arn must be the ARN of a Secrets Manager secret, never the token itself."
  }

  validation {
    condition     = var.hub_token_secret_arn == null || can(regex("^arn:[a-z-]+:secretsmanager:${local.region}:", var.hub_token_secret_arn))
    error_message = "hub_token_secret_arn must be in the stack's region, where the training job reads the secret."
  }
}

variable "hyperparameters" {
  type        = map(string)
  description = "Hyperparameters that override the training program's defaults: batch_size 16, epochs 2, holdout_fraction 0.2, learning_rate 5e-5, max_length 128, seed 42."
  default     = {}

  # SageMaker's training toolkit passes them to the program through a shell, unquoted.
  validation {
    condition     = alltrue([for key, value in var.hyperparameters : can(regex("^[A-Za-z0-9_.+-]{1,256}$", value))])
    error_message = "hyperparameters: each value must be 1 to 256 letters, digits and _ . + - (values pass through a shell in the training container)."
  }

  validation {
    condition     = alltrue([for key in keys(var.hyperparameters) : can(regex("^[a-z][a-z0-9_]{1,63}$", key)) && !startswith(key, "sagemaker_")])
    error_message = "hyperparameters: each name must be 2 to 64 lowercase letters, digits and underscores, start with a letter, and not begin with sagemaker_, which SageMaker reserves."
  }

  validation {
    condition     = length(var.hyperparameters) <= 50
    error_message = "hyperparameters: at most 50 are allowed."
  }
}

variable "inference_image" {
  type        = string
  description = "Your own serving image in ECR, in the stack's region. null: HuggingFace's image for CPU or GPU, depending on endpoint_instance_type."
  default     = null

  validation {
    condition     = var.inference_image == null || can(regex("^[0-9]{12}\\.dkr\\.ecr\\.${local.region}\\.[a-z.]+/[a-z0-9._/-]+(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$", var.inference_image))
    error_message = "inference_image must be <account>.dkr.ecr.<the stack's region>.amazonaws.com/<repository>:<tag> (or @sha256:...): SageMaker only pulls from its own region."
  }

  validation {
    condition     = var.inference_image != null || !contains(local.regions_without_image.inference, local.region)
    error_message = "AWS does not publish HuggingFace's serving image in ${local.region}. Set inference_image to an image in an ECR repository of this region, such as a copy of AWS's, or choose another region."
  }
}

variable "keep_models" {
  type        = number
  description = "How many confirmed models stay ready behind an endpoint, including the live one. Older ones are deleted after a successful deployment; their artifacts in S3 stay."
  default     = 3

  validation {
    condition     = floor(var.keep_models) == var.keep_models && var.keep_models >= 1 && var.keep_models <= 20
    error_message = "keep_models must be a whole number from 1 to 20."
  }
}

variable "kms_key_arn" {
  type        = string
  description = "Your own KMS key for the bucket, the topic, the queue, the functions' logs and everything that training writes. Its policy must contain the output kms_key_policy. null: AWS's own keys."
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$", var.kms_key_arn))
    error_message = "kms_key_arn must be the ARN of a KMS key (arn:aws:kms:<region>:<account>:key/<id>), not an alias."
  }

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:[a-z-]+:kms:${local.region}:", var.kms_key_arn))
    error_message = "kms_key_arn must be in the stack's region."
  }
}

variable "label_column" {
  type        = string
  description = "CSV column with the label."
  default     = "label"

  validation {
    condition     = can(regex("^[^[:cntrl:]]{1,256}$", var.label_column)) && trimspace(var.label_column) == var.label_column
    error_message = "label_column must be 1 to 256 characters without line breaks or spaces at either end."
  }
}

variable "latency_alarm_milliseconds" {
  type        = number
  description = "Average response time of a model on instances above which its alarm goes off."
  default     = 5000

  validation {
    condition     = var.latency_alarm_milliseconds >= 1 && var.latency_alarm_milliseconds <= 60000
    error_message = "latency_alarm_milliseconds must be from 1 to 60000: SageMaker waits 60 seconds for a model's response."
  }
}

variable "log_level" {
  type        = string
  description = "Level of the functions' own log messages."
  default     = "INFO"

  validation {
    condition     = contains(["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"], var.log_level)
    error_message = "log_level must be one of TRACE, DEBUG, INFO, WARN, ERROR, FATAL."
  }
}

variable "log_retention_days" {
  type        = number
  description = "How many days the functions' logs are kept."
  default     = 30

  # The values that CloudWatch Logs accepts.
  validation {
    condition = contains(
      [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653],
      var.log_retention_days
    )
    error_message = "log_retention_days must be one of 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653."
  }
}

variable "manage_bucket_notification" {
  type        = bool
  description = "With create_bucket = false: let Terraform turn on the existing bucket's EventBridge notification. That replaces all its other notifications, so `make deploy` refuses if there are any."
  default     = false

  validation {
    condition     = !var.manage_bucket_notification || !var.create_bucket
    error_message = "manage_bucket_notification is only for an existing bucket (create_bucket = false): a bucket that the stack creates always sends its events."
  }
}

variable "max_concurrent_training_jobs" {
  type        = number
  description = "How many training jobs of the stack may run at once. Further uploads wait and start as jobs end."
  default     = 2

  validation {
    condition     = floor(var.max_concurrent_training_jobs) == var.max_concurrent_training_jobs && var.max_concurrent_training_jobs >= 1 && var.max_concurrent_training_jobs <= 100
    error_message = "max_concurrent_training_jobs must be a whole number from 1 to 100. To stop all training, run `make pause`."
  }
}

variable "max_models" {
  type        = number
  description = "How many different models may be trained while models is empty; each gets an endpoint. A model that was trained once keeps its place."
  default     = 5

  validation {
    condition     = floor(var.max_models) == var.max_models && var.max_models >= 1 && var.max_models <= 1000
    error_message = "max_models must be a whole number from 1 to 1000. To stop all training, run `make pause`."
  }
}

variable "max_rows_left_out" {
  type        = number
  description = "Share of a file's rows (0 to 1) that may lack a text or a label, or have too many fields. Above it, the file is rejected. Up to it, such rows are left out, and the emails say which."
  default     = 0.05

  validation {
    condition     = var.max_rows_left_out >= 0 && var.max_rows_left_out <= 1
    error_message = "max_rows_left_out must be a number from 0 to 1."
  }
}

variable "max_training_jobs_per_day" {
  type        = number
  description = "How many training jobs the stack may start per day (UTC). Further uploads wait for the next day. Uploads always start oldest first."
  default     = 20

  validation {
    condition     = floor(var.max_training_jobs_per_day) == var.max_training_jobs_per_day && var.max_training_jobs_per_day >= 1 && var.max_training_jobs_per_day <= 1000
    error_message = "max_training_jobs_per_day must be a whole number from 1 to 1000. To stop all training, run `make pause`."
  }
}

variable "model_thresholds" {
  type = map(map(object({
    max = optional(number)
    min = optional(number)
  })))
  description = "Thresholds for individual models, by model name. A model listed here is judged by these instead of thresholds."
  default     = {}

  validation {
    condition     = alltrue([for model in keys(var.model_thresholds) : can(regex("^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", model))])
    error_message = "model_thresholds: each model name must be 1 to 32 of a-z, 0-9 and dashes, starting and ending with a letter or digit."
  }

  validation {
    condition     = alltrue([for checks in values(var.model_thresholds) : length(checks) > 0])
    error_message = "model_thresholds: each model needs at least one threshold; otherwise anything would pass."
  }

  validation {
    condition = alltrue(flatten([for checks in values(var.model_thresholds) : [
      for metric, check in checks : can(regex("^[A-Za-z][A-Za-z0-9_]{0,63}$", metric)) && anytrue([check.min != null, check.max != null])
    ]]))
    error_message = "model_thresholds: each metric must be a name of at most 64 letters, digits and underscores, starting with a letter, with min, max or both."
  }

  validation {
    condition = alltrue(flatten([for checks in values(var.model_thresholds) : [
      for check in values(checks) : check.min == null || check.max == null ? true : check.min <= check.max
    ]]))
    error_message = "model_thresholds: no value passes a min above its max."
  }

  # A function's environment is limited to 4096 bytes: https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
  validation {
    condition     = length(jsonencode(var.thresholds)) + length(jsonencode(var.model_thresholds)) <= 3072
    error_message = "thresholds and model_thresholds are too long: together they must fit into a function's environment (3072 characters as JSON)."
  }
}

variable "models" {
  type        = list(string)
  description = "Models that may be trained; \"default\" is the model of files directly in data/train/. []: any, up to max_models different ones."
  default     = []

  validation {
    condition     = alltrue([for model in var.models : can(regex("^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$", model))])
    error_message = "models: each model name must be 1 to 32 of a-z, 0-9 and dashes, starting and ending with a letter or digit."
  }

  validation {
    condition     = length(distinct(var.models)) == length(var.models)
    error_message = "models must be different names."
  }

  # Beside the rest of a function's environment of 4096 bytes.
  validation {
    condition     = length(join(" ", var.models)) <= 1024
    error_message = "models are too many: together, with a space between them, the names may have 1024 characters."
  }
}

variable "noncurrent_version_retention_days" {
  type        = number
  description = "How many days overwritten and deleted object versions are kept."
  default     = 30

  validation {
    condition     = floor(var.noncurrent_version_retention_days) == var.noncurrent_version_retention_days && var.noncurrent_version_retention_days >= 1
    error_message = "noncurrent_version_retention_days must be a whole number of at least 1."
  }
}

variable "notification_emails" {
  type        = list(string)
  description = "Addresses that get an email at every step. Each must first confirm the message that AWS sends."
  default     = []

  validation {
    condition     = alltrue([for address in var.notification_emails : can(regex("^[^@[:space:]]+@[^@[:space:]]+\\.[^@[:space:]]+$", address))])
    error_message = "notification_emails must be email addresses such as ml-team@example.com."
  }
}

variable "package_dir" {
  type        = string
  description = "Folder with the packages: those of a release, or those that `make package` builds. null: build/ next to this folder."
  default     = null
}

variable "project" {
  type        = string
  description = "Value of the Project tag on everything that Terraform and the functions create."
  default     = "atml"

  validation {
    condition     = can(regex("^[A-Za-z0-9_.:/=+@-]{1,128}$", var.project)) && !startswith(lower(var.project), "aws:")
    error_message = "project must be 1 to 128 letters, digits and _ . : / = + @ -, and must not begin with aws:."
  }
}

variable "raw_model_retention_days" {
  type        = number
  description = "How many days the output of training jobs (models/raw/) is kept. Approved models are copies and stay."
  default     = 30

  validation {
    condition     = floor(var.raw_model_retention_days) == var.raw_model_retention_days && var.raw_model_retention_days >= 7
    error_message = "raw_model_retention_days must be a whole number of at least 7: a model must still exist when it is evaluated."
  }
}

variable "serverless_max_concurrency" {
  type        = number
  description = "How many requests a serverless endpoint handles at once. A young account may have 10 in total, for all its serverless endpoints."
  default     = 2

  validation {
    condition     = floor(var.serverless_max_concurrency) == var.serverless_max_concurrency && var.serverless_max_concurrency >= 1 && var.serverless_max_concurrency <= 200
    error_message = "serverless_max_concurrency must be a whole number from 1 to 200."
  }
}

variable "serverless_memory_mb" {
  type        = number
  description = "Memory of a serverless endpoint, in MB. AWS limits new accounts to 3072."
  default     = 3072

  validation {
    condition     = contains([1024, 2048, 3072, 4096, 5120, 6144], var.serverless_memory_mb)
    error_message = "serverless_memory_mb must be one of 1024, 2048, 3072, 4096, 5120, 6144."
  }
}

variable "snapshot_retention_days" {
  type        = number
  description = "How many days the exact data of each training job (data/snapshots/) is kept."
  default     = 365

  validation {
    condition     = floor(var.snapshot_retention_days) == var.snapshot_retention_days && var.snapshot_retention_days >= 30
    error_message = "snapshot_retention_days must be a whole number of at least 30: a SageMaker job can run for 28 days."
  }
}

variable "sweep_schedule" {
  type        = string
  description = "How often the functions catch up on events that never arrived: an EventBridge rate() or cron() expression (UTC)."
  default     = "rate(15 minutes)"

  # https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-scheduled-rule-pattern.html
  validation {
    condition     = can(regex("^(rate\\((1 (minute|hour|day)|([2-9]|[1-9][0-9]{1,4}) (minutes|hours|days))\\)|cron\\([0-9A-Za-z*/,?#L -]{11,200}\\))$", var.sweep_schedule))
    error_message = "sweep_schedule must be an expression such as rate(15 minutes), rate(1 hour) or cron(0/30 * * * ? *), with a singular unit for 1 and a plural unit above."
  }
}

variable "tags" {
  type        = map(string)
  description = "Additional tags for everything that Terraform creates, besides Project and Stack."
  default     = {}

  validation {
    condition     = alltrue([for key in keys(var.tags) : !startswith(lower(key), "aws:") && length(key) <= 128]) && alltrue([for value in values(var.tags) : length(value) <= 256])
    error_message = "tags: each key must have at most 128 characters and not begin with aws:, each value at most 256 characters."
  }

  validation {
    condition     = length(var.tags) <= 40
    error_message = "tags: at most 40 are allowed, because AWS allows 50 together with those that the stack sets."
  }
}

variable "text_column" {
  type        = string
  description = "CSV column with the text."
  default     = "text"

  validation {
    condition     = can(regex("^[^[:cntrl:]]{1,256}$", var.text_column)) && trimspace(var.text_column) == var.text_column
    error_message = "text_column must be 1 to 256 characters without line breaks or spaces at either end."
  }

  validation {
    condition     = var.text_column != var.label_column
    error_message = "text_column and label_column must be different columns."
  }
}

variable "thresholds" {
  type = map(object({
    max = optional(number)
    min = optional(number)
  }))
  description = "What a model must reach on its hold-out to be approved: metrics from metrics.json, each with min, max or both."
  default = {
    accuracy = { min = 0.8 }
    macro_f1 = { min = 0.7 }
  }

  validation {
    condition     = length(var.thresholds) > 0
    error_message = "thresholds needs at least one metric; otherwise anything would pass."
  }

  validation {
    condition = alltrue([
      for metric, check in var.thresholds : can(regex("^[A-Za-z][A-Za-z0-9_]{0,63}$", metric)) && anytrue([check.min != null, check.max != null])
    ])
    error_message = "thresholds: each metric must be a name of at most 64 letters, digits and underscores, starting with a letter, with min, max or both."
  }

  validation {
    condition = alltrue([
      for check in values(var.thresholds) : check.min == null || check.max == null ? true : check.min <= check.max
    ])
    error_message = "thresholds: no value passes a min above its max."
  }
}

variable "training_image" {
  type        = string
  description = "Your own training image in ECR, in the stack's region. null: AWS's image for CPU or GPU, depending on training_instance_type."
  default     = null

  validation {
    condition     = var.training_image == null || can(regex("^[0-9]{12}\\.dkr\\.ecr\\.${local.region}\\.[a-z.]+/[a-z0-9._/-]+(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$", var.training_image))
    error_message = "training_image must be <account>.dkr.ecr.<the stack's region>.amazonaws.com/<repository>:<tag> (or @sha256:...): SageMaker only pulls from its own region."
  }
}

variable "training_instance_count" {
  type        = number
  description = "How many instances a training job takes. Above 1, they share the work (data-parallel), and each is billed."
  default     = 1

  validation {
    condition     = floor(var.training_instance_count) == var.training_instance_count && var.training_instance_count >= 1 && var.training_instance_count <= 8
    error_message = "training_instance_count must be a whole number from 1 to 8."
  }
}

variable "training_instance_type" {
  type        = string
  description = "Instance type of the training jobs. It also selects the training image (CPU or GPU). New accounts have a GPU quota of 0."
  default     = "ml.m5.xlarge"

  validation {
    condition     = can(regex("^ml\\.[a-z0-9-]+\\.[a-z0-9]+$", var.training_instance_type))
    error_message = "training_instance_type must be a SageMaker instance type such as ml.m5.xlarge."
  }

  validation {
    condition     = var.training_image != null || !can(regex("^ml\\.(trn|inf|[a-z]+[0-9]+gd?n?\\.)", var.training_instance_type))
    error_message = "The training images only run on x86 CPUs and NVIDIA GPUs: set training_image for a Trainium, Inferentia or Graviton training_instance_type."
  }

  validation {
    condition     = var.training_image != null || !can(regex(local.gpu_instance, var.training_instance_type)) || !contains(local.regions_without_image.training_gpu, local.region)
    error_message = "AWS does not publish HuggingFace's GPU training image in ${local.region}. Set training_image to an image in an ECR repository of this region, such as a copy of AWS's, or choose a CPU type as training_instance_type, or another region."
  }
}

variable "training_max_runtime_seconds" {
  type        = number
  description = "SageMaker stops a training job after this many seconds, which caps the cost of one job."
  default     = 14400

  validation {
    condition     = floor(var.training_max_runtime_seconds) == var.training_max_runtime_seconds && var.training_max_runtime_seconds >= 60 && var.training_max_runtime_seconds <= 2419200
    error_message = "training_max_runtime_seconds must be a whole number from 60 to 2419200 (28 days)."
  }
}

variable "training_max_wait_seconds" {
  type        = number
  description = "With training_use_spot: SageMaker stops a job that is not done after this many seconds, with all waiting for spot capacity. null: twice training_max_runtime_seconds, and at most 28 days."
  default     = null

  validation {
    condition     = var.training_max_wait_seconds == null ? true : floor(var.training_max_wait_seconds) == var.training_max_wait_seconds && var.training_max_wait_seconds <= 2419200
    error_message = "training_max_wait_seconds must be a whole number of at most 2419200 (28 days)."
  }

  validation {
    condition     = var.training_max_wait_seconds == null ? true : var.training_max_wait_seconds >= var.training_max_runtime_seconds
    error_message = "training_max_wait_seconds must be at least training_max_runtime_seconds: it counts the running and the waiting."
  }
}

variable "training_use_spot" {
  type        = bool
  description = "true: training jobs run on spot instances, which cost less (AWS says up to 90 %) and may be interrupted; a job then goes on where it was. They have a quota of their own."
  default     = false
}

variable "training_volume_gb" {
  type        = number
  description = "Disk size of a training instance, in GB. Instance types with built-in disks allow no more than they have."
  default     = 30

  validation {
    condition     = floor(var.training_volume_gb) == var.training_volume_gb && var.training_volume_gb >= 1 && var.training_volume_gb <= 16384
    error_message = "training_volume_gb must be a whole number from 1 to 16384."
  }
}
