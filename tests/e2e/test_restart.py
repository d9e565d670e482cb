"""The local SageMaker dies in the middle of something, is started again, and the pipeline gets there all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from deployed import Pipeline, make_rows, to_csv
from local import stack

LABELS = ("ham", "spam")
START_AGAIN = """
import json, sys
from local import stack
record = stack.read_record()
stack.start_service(record, "sagemaker")
stack.wait_for_answer(record, "sagemaker", record["sagemaker"] + "/health")
"""


def kill_and_start_again() -> None:
    """kill -9 the local SageMaker, with all that it runs, and start it on the same port with the same state."""
    record: dict[str, Any] | None = stack.read_record()
    assert record is not None
    process = record["pids"]["sagemaker"]
    os.kill(process["pid"], signal.SIGKILL)
    stack.wait_until(lambda: not stack.is_alive(process), 10)
    subprocess.run([sys.executable, "-c", START_AGAIN], check=True)


def test_killed_in_the_middle_of_a_training(pipeline: Pipeline, model: str) -> None:
    pipeline.upload(f"data/train/{model}/data.csv", to_csv(make_rows(LABELS, 120, seed=40)))
    source = pipeline.wait_for("the snapshot", lambda: pipeline.source_of(f"data/train/{model}/data.csv"))

    def trains() -> bool:
        description = pipeline.sagemaker.describe_training_job(TrainingJobName=source["job"])
        return str(description["SecondaryStatus"]) == "Training"

    pipeline.wait_for_email(model, "Training started")
    pipeline.wait_for("the training", trains)
    kill_and_start_again()
    pipeline.wait_for_email(model, "Deployment successful")
    assert pipeline.subjects_of(model) == [
        "Training started",
        "Model approved",
        "Deployment started",
        "Deployment successful",
    ]


def test_killed_in_the_middle_of_a_rollout(pipeline: Pipeline, model: str) -> None:
    rows = make_rows(LABELS, 120, seed=41)
    pipeline.train_and_deploy(model, rows)
    first = pipeline.endpoint(model)["EndpointConfigName"]
    pipeline.upload(f"data/train/{model}/next.csv", to_csv(rows + make_rows(LABELS, 60, seed=42)))
    pipeline.wait_for("the rollout", lambda: pipeline.endpoint(model)["EndpointStatus"] == "Updating")
    kill_and_start_again()
    # The local SageMaker rolls an interrupted update back, which the pipeline tells; the first model serves again.
    pipeline.wait_for_email(model, "Deployment rolled back")
    settled = pipeline.wait_for(
        "the endpoint in service",
        lambda: pipeline.endpoint(model) if pipeline.endpoint(model)["EndpointStatus"] == "InService" else None,
    )
    assert settled["EndpointConfigName"] == first
