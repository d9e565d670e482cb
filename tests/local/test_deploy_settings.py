"""mlops doctor and deploy with the real Terraform: what they ask it, before anything is deployed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mlops import deploy

ROOT = Path(__file__).resolve().parents[2]


def test_terraform_says_what_is_to_be_deployed_before_there_is_an_account(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("*.tfstate*", "*.tfvars", "*.tfvars.json", ".terraform*", "backend.tf")
    shutil.copytree(ROOT / "terraform", tmp_path / "terraform", ignore=ignored)
    (tmp_path / "terraform" / "terraform.tfvars").write_text('notification_emails = ["ml@example.com"]\n')
    others = ("AWS_", "TF_VAR_", "TF_CLI_ARGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    plan = deploy.read_plan(tmp_path / "terraform", environment)
    assert (plan.bucket, plan.create, plan.managed) == (None, True, frozenset())
    settings = plan.settings
    assert settings is not None
    assert settings.notification_emails == ("ml@example.com",)
    assert settings.training_image is None
    assert settings.default_training_image.startswith("pytorch:")
    assert settings.default_inference_image.startswith("huggingface-pytorch-inference:")
    assert settings.image_accounts["eu-south-1"] == "692866216735"
    assert settings.training_instance_type == "ml.m5.xlarge"
    assert settings.endpoint_type == "serverless"
