# The AWS Deep Learning Containers, chosen by instance type.
#
# HuggingFace has training images for GPUs only, so a CPU instance trains in the PyTorch image, and
# scripts/training/requirements.txt adds transformers. The release that serves a model must not be older than the one that
# trained it, so both are the same: tests/contract/test_one_definition.py fails when these tags and the requirements differ.
# Tags and accounts: https://github.com/aws/deep-learning-containers and image_uri_config/ of aws/sagemaker-python-sdk.

locals {
  training_images = {
    cpu = "pytorch:2.13.0-cpu-amzn2023-sagemaker"
    gpu = "huggingface-pytorch-training:2.9.0-transformers5.3.0-gpu-py312-cu130-ubuntu22.04"
  }

  inference_images = {
    cpu = "huggingface-pytorch-inference:2.6.0-transformers5.5.3-cpu-py312-ubuntu22.04"
    gpu = "huggingface-pytorch-inference:2.6.0-transformers5.5.3-gpu-py312-cu124-ubuntu22.04"
  }

  # Regions whose images are in an account of their own.
  image_accounts = {
    af-south-1     = "626614931356"
    ap-east-1      = "871362719292"
    ap-east-2      = "975050140332"
    ap-northeast-3 = "364406365360"
    ap-south-2     = "772153158452"
    ap-southeast-3 = "907027046896"
    ap-southeast-4 = "457447274322"
    ap-southeast-5 = "550225433462"
    ap-southeast-6 = "633930458069"
    ap-southeast-7 = "590183813437"
    ca-west-1      = "204538143572"
    cn-north-1     = "727897471807"
    cn-northwest-1 = "727897471807"
    eu-central-2   = "380420809688"
    eu-south-1     = "692866216735"
    eu-south-2     = "503227376785"
    il-central-1   = "780543022126"
    me-central-1   = "914824155844"
    me-south-1     = "217643126080"
    mx-central-1   = "637423239942"
    us-gov-west-1  = "442386744353"
  }

  image_account  = lookup(local.image_accounts, local.region, "763104351884")
  image_registry = "${local.image_account}.dkr.ecr.${local.region}.${data.aws_partition.current.dns_suffix}"

  gpu_instance   = "^ml\\.(g|gr|p)[0-9]"
  training_gpu   = can(regex(local.gpu_instance, var.training_instance_type))
  inference_gpu  = var.endpoint_type == "instance" && can(regex(local.gpu_instance, var.endpoint_instance_type))
  training_image = coalesce(var.training_image, "${local.image_registry}/${local.training_images[local.training_gpu ? "gpu" : "cpu"]}")
  inference_image = coalesce(
    var.inference_image, "${local.image_registry}/${local.inference_images[local.inference_gpu ? "gpu" : "cpu"]}"
  )
}
