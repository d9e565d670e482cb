"""One training job and one endpoint, made by the handlers, and run twice: by AWS's own code and by the local SageMaker.

The handlers make the requests: an upload's event goes to the training orchestrator, the approved model's to the
deployment orchestrator; S3 and SNS are moto's server, SageMaker is the local one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from account import Account
from containers import Trained, new_container, run_training

import package
from sagemaker_fixtures import MANY_ENDPOINTS, LocalSageMaker, _starter
from sagemaker_fixtures import aws as aws
from tiny_model import build_tiny_model
from world import BUCKET, ENVIRONMENT, ROOT, TOPIC_ARN

SAMPLE = ROOT / "scripts" / "sample" / "support.csv"
BASE_MODEL = f"s3://{BUCKET}/base-model/"
SETTINGS = {
    "HYPERPARAMETERS": '{"epochs": "3", "learning_rate": "5e-3", "seed": "42"}',
    "BASE_MODEL": BASE_MODEL,
    "THRESHOLDS": '{"accuracy": {"min": 0}}',
    "MODEL_THRESHOLDS": "{}",
}


@pytest.fixture(scope="session")
def account(
    aws: str,
    handlers: dict[str, ModuleType],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Account]:
    """The account, with the packaged training source and a tiny base model in the bucket."""
    folder = tmp_path_factory.mktemp("account")
    variables = {name: value for one in ENVIRONMENT.values() for name, value in one.items()} | SETTINGS
    variables |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "123456789012", "AWS_SECRET_ACCESS_KEY": "x"}
    with pytest.MonkeyPatch.context() as patch:
        for starter in _starter(aws, folder):
            images = [variables[name] for name in ("TRAINING_IMAGE", "INFERENCE_IMAGE")]
            known = [option for image in images for option in ("--image", image)]
            server = starter("--python", sys.executable, "--stop-grace-seconds", "3", *known, *MANY_ENDPOINTS)
            variables |= {
                "AWS_ENDPOINT_URL": aws,
                "AWS_ENDPOINT_URL_SAGEMAKER": server.url,
                "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": server.url,
            }
            for name, value in variables.items():
                patch.setenv(name, value)
            for module in handlers.values():
                module.settings.cache_clear()
                module.client.cache_clear()
            server.s3.create_bucket(Bucket=BUCKET)
            server.s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
            LocalSageMaker._client("sns", aws).create_topic(Name=TOPIC_ARN.rpartition(":")[2])
            for built in package.build(ROOT, folder / "build"):
                server.s3.upload_file(str(built), BUCKET, f"code/{built.name}")
            for file in build_tiny_model(folder / "base").iterdir():
                server.s3.upload_file(str(file), BUCKET, f"base-model/{file.name}")
            yield Account(aws, server, handlers)


@pytest.fixture(scope="session")
def job(account: Account) -> dict[str, Any]:
    """The job that the training orchestrator starts for the sample data, as DescribeTrainingJob has it at its end."""
    sent = account.put("data/train/support.csv", SAMPLE.read_bytes())
    account.call("training_orchestrator", sent)
    (summary,) = account.sagemaker.api.list_training_jobs()["TrainingJobSummaries"]
    return account.ended(summary["TrainingJobName"])


@pytest.fixture(scope="session")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a training container in which the first job installs the program's requirements."""
    return new_container(tmp_path_factory.mktemp("container") / "venv")


@pytest.fixture(scope="session")
def trained(
    account: Account, job: dict[str, Any], container: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """The same job under AWS's training toolkit."""
    return run_training(tmp_path_factory.mktemp("trained"), job, container, account.aws, account.s3)
