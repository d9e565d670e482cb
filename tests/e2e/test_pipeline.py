"""The whole pipeline on the local AWS: what a user would see on AWS, with a tiny model."""

from __future__ import annotations

import io
import json
import random
import re
import tarfile
import threading
from datetime import UTC, datetime
from urllib.request import Request, urlopen

import pytest

from deployed import Pipeline, Rows, make_rows, to_csv
from mlops.logs import log_events
from mlops.predict import predict
from mlops.status import show_status

FIRST = ("ham", "spam")
OTHERS = ("good", "bad")
MORE = (*FIRST, "eggs")


def shuffled(rows: Rows, seed: int) -> Rows:
    labels = [label for _, label in rows]
    random.Random(seed).shuffle(labels)
    return [(text, label) for (text, _), label in zip(rows, labels, strict=True)]


def test_upload_becomes_a_served_model_with_four_emails_in_order(pipeline: Pipeline) -> None:
    rows = make_rows(FIRST, 120, seed=1)
    pipeline.train_and_deploy("default", rows)
    assert pipeline.subjects_of("default") == [
        "Training started",
        "Model approved",
        "Deployment started",
        "Deployment successful",
    ]
    unseen = make_rows(FIRST, 8, seed=99)
    answers = [predict(pipeline.target, "default", text) for text, _ in unseen]
    assert [answer["label"] for answer in answers] == [label for _, label in unseen]
    assert all(0.5 < answer["score"] <= 1 for answer in answers)
    (decision,) = [
        record for record in map(pipeline.json_at, pipeline.keys("models/decisions/")) if record["model"] == "default"
    ]
    assert len(decision["golden"]) == 20
    for row in decision["golden"]:
        served = predict(pipeline.target, "default", row["text"])
        assert served == {"label": row["label"], "score": pytest.approx(row["score"], abs=1e-3)}


def test_emails_name_the_data_the_job_and_the_next_step(pipeline: Pipeline, model: str) -> None:
    pipeline.train_and_deploy(model, make_rows(FIRST, 120, seed=2), name="letters.csv")
    for email in pipeline.emails_of(model):
        assert "What next: " in email["text"]
        assert "training-job-" in email["text"]
    for email in pipeline.emails_of(model)[:2]:
        assert f"s3://{pipeline.target.bucket}/data/train/{model}/letters.csv" in email["text"]


def test_second_upload_updates_the_endpoint_without_an_outage(pipeline: Pipeline, model: str) -> None:
    rows = make_rows(FIRST, 120, seed=3)
    pipeline.train_and_deploy(model, rows)
    before = pipeline.endpoint(model)
    answers: list[str] = []
    failures: list[str] = []
    stop = threading.Event()

    def ask_all_the_time() -> None:
        # One of the label that only the second model knows.
        text = make_rows(MORE, 3, seed=4)[2][0]
        while not stop.wait(0.2):
            try:
                answers.append(predict(pipeline.target, model, text)["label"])
            except Exception as error:  # noqa: BLE001  (whatever it is, it is an outage)
                failures.append(repr(error))

    asking = threading.Thread(target=ask_all_the_time)
    asking.start()
    try:
        more = [row for row in make_rows(MORE, 180, seed=5) if row[1] not in FIRST]
        pipeline.train_and_deploy(model, rows + more, name="second.csv")
        pipeline.wait_for("an answer by the second model", lambda: answers and answers[-1] not in FIRST)
    finally:
        stop.set()
        asking.join()
    assert failures == []
    assert set(answers[:3]) <= set(FIRST)
    first, second = (email["text"] for email in pipeline.emails_of(model) if "Model approved" in email["subject"])
    assert "No model was live when this training began" in first
    assert "both on the same rows, which neither was trained on. New labels: 'eggs'." in second
    after = pipeline.endpoint(model)
    assert after["CreationTime"] == before["CreationTime"]
    assert after["EndpointConfigName"] != before["EndpointConfigName"]


def test_labels_at_random_are_rejected_and_the_endpoint_keeps_its_model(pipeline: Pipeline, model: str) -> None:
    rows = make_rows(FIRST, 120, seed=6)
    pipeline.train_and_deploy(model, rows)
    served = pipeline.endpoint(model)["EndpointConfigName"]
    approved = pipeline.keys(f"models/approved/{model}/")
    pipeline.upload(f"data/train/{model}/shuffled.csv", to_csv(shuffled(rows, seed=7)))
    email = pipeline.wait_for_email(model, "Model rejected")
    assert "accuracy is " in email["text"]
    assert "macro_f1 is " in email["text"]
    assert pipeline.keys(f"models/approved/{model}/") == approved
    assert pipeline.endpoint(model)["EndpointConfigName"] == served


def test_data_without_any_of_the_live_models_labels_is_held_and_the_endpoint_keeps_its_model(
    pipeline: Pipeline, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.train_and_deploy(model, make_rows(FIRST, 120, seed=50))
    served = pipeline.endpoint(model)["EndpointConfigName"]
    approved = pipeline.keys(f"models/approved/{model}/")
    pipeline.upload(f"data/train/{model}/others.csv", to_csv(make_rows(OTHERS, 120, seed=51)))
    email = pipeline.wait_for_email(model, "Model held")
    assert "Why: the new data has none of the live model's labels." in email["text"]
    assert "'ham', 'spam': this is a new task" in email["text"]
    assert f'add "{model}" to accept_uncompared' in email["text"]
    assert pipeline.keys(f"models/approved/{model}/") == approved
    assert pipeline.endpoint(model)["EndpointConfigName"] == served
    show_status(pipeline.target)
    assert re.search(r"held +- +others\.csv .* the new data has none", capsys.readouterr().out)


def test_swapped_labels_pass_their_own_holdout_and_are_refused_on_the_live_models(
    pipeline: Pipeline, model: str
) -> None:
    rows = make_rows(FIRST, 120, seed=40)
    pipeline.train_and_deploy(model, rows)
    live = pipeline.keys(f"models/approved/{model}/")
    other = dict(zip(FIRST, reversed(FIRST), strict=True))
    pipeline.upload(f"data/train/{model}/swapped.csv", to_csv([(text, other[label]) for text, label in rows]))
    email = pipeline.wait_for_email(model, "Model rejected")
    assert "Why: accuracy on the hold-out of the live model" in email["text"]
    assert f"Compared with the live model {live[0].split('/')[3]}" in email["text"]
    assert pipeline.keys(f"models/approved/{model}/") == live


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("empty.csv", b"", "the file is empty, or blank"),
        ("nolabel.csv", b"text,class\nhello,1\n", 'no column "label"'),
        ("rubbish.csv", bytes(random.Random(8).randbytes(4000)), "is not UTF-8"),
        ("header.csv", b"text,label\n", "there are no rows"),
        ("one.csv", "text,label\nhello,1\n".encode("utf-16"), 'there is only one label, "1"'),
        ("book.xlsx", b"PK\x03\x04", "only files named .csv"),
    ],
)
def test_bad_upload_gives_one_email_and_no_job(pipeline: Pipeline, name: str, body: bytes, reason: str) -> None:
    model = f"bad-{name.partition('.')[0]}"
    key = f"data/train/{model}/{name}"
    pipeline.upload(key, body)
    email = pipeline.wait_for_email(model, "Training data rejected")
    assert reason in email["text"]
    assert pipeline.source_of(key) is None
    assert pipeline.subjects_of(model) == ["Training data rejected"]


def test_folder_placeholder_is_silent(pipeline: Pipeline, model: str) -> None:
    pipeline.upload(f"data/train/{model}/", b"")
    # The upload after it has its email, so the placeholder's event has been handled, too.
    pipeline.upload(f"data/train/{model}/empty.csv", b"")
    pipeline.wait_for_email(model, "Training data rejected")
    assert pipeline.subjects_of(model) == ["Training data rejected"]


def test_one_class_fails_with_the_programs_own_reason(pipeline: Pipeline, model: str) -> None:
    pipeline.keep(model, [(text, "ham") for text, _ in make_rows(FIRST, 60, seed=9)])
    email = pipeline.wait_for_email(model, "Training failed")
    assert 'there is only one label, "ham"' in email["text"]


def test_odd_keys_work_like_any_other(pipeline: Pipeline) -> None:
    names = [
        "a b.csv",
        "a+b.csv",
        "50%25.csv",
        "é ü ñ.csv",
        f"{'long' * 300}"[: 900 - len("data/train/odd-x/.csv")] + ".csv",
    ]
    for index, name in enumerate(names):
        body = to_csv(make_rows(FIRST, 120, seed=10 + index))
        key = f"data/train/odd-{index}/{name}"
        pipeline.upload(key, body)
        pipeline.wait_for_email(f"odd-{index}", "Deployment successful")
        source = pipeline.source_of(key)
        assert source is not None
        snapshot = pipeline.s3.get_object(Bucket=pipeline.target.bucket, Key=f"data/snapshots/{source['job']}/data.csv")
        assert snapshot["Body"].read() == body


def test_model_whose_server_does_not_come_up_is_rolled_back_and_not_tried_again(pipeline: Pipeline, model: str) -> None:
    pipeline.train_and_deploy(model, make_rows(FIRST, 120, seed=20))
    served = pipeline.endpoint(model)["EndpointConfigName"]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        # What a model's load raises keeps no endpoint from coming into service; what is missing before it starts does.
        body = b"surely-not-installed==1\n"
        member = tarfile.TarInfo("code/requirements.txt")
        member.size = len(body)
        tar.addfile(member, io.BytesIO(body))
    job = "training-job-29990101-000000-0badc0de"
    pipeline.upload(f"models/approved/{model}/{job}/model.tar.gz", archive.getvalue())
    pipeline.wait_for_email(model, "Deployment rolled back")
    assert pipeline.endpoint(model)["EndpointConfigName"] == served
    assert predict(pipeline.target, model, "hello")["label"] in FIRST
    subjects = pipeline.subjects_of(model)
    # Another event for the same endpoint: the broken model is the newest one still, and stays untried.
    pipeline.upload(f"models/approved/{model}/{job}/model.tar.gz", archive.getvalue())
    records = pipeline.keys(f"models/deployments/{job}-")
    assert [pipeline.json_at(key)["state"] for key in records] == ["rolled back"]
    assert pipeline.subjects_of(model) == subjects
    assert "Deployment successful" not in subjects[subjects.index("Deployment rolled back") :]


def test_swapped_weights_behind_an_endpoint_in_service_are_caught_and_the_model_before_is_restored(
    pipeline: Pipeline, model: str
) -> None:
    pipeline.train_and_deploy(model, make_rows(FIRST, 120, seed=40))
    served = pipeline.endpoint(model)["EndpointConfigName"]
    texts = [text for text, _ in make_rows(FIRST, 20, seed=41)]
    answers = [predict(pipeline.target, model, text) for text in texts]
    # Trained on the same texts with the labels exchanged: an archive that loads and answers, with other weights.
    other = f"{model[:26]}-other"
    pipeline.train_and_deploy(other, make_rows(FIRST[::-1], 120, seed=40))
    (swapped,) = pipeline.keys(f"models/approved/{other}/")
    job = "training-job-29990101-000001-0badc0de"
    golden = [{"text": text, **answer} for text, answer in zip(texts, answers, strict=True)]
    pipeline.upload(f"models/decisions/{job}.json", json.dumps({"schema": 1, "job": job, "golden": golden}).encode())
    pipeline.s3.copy_object(
        Bucket=pipeline.target.bucket,
        Key=f"models/approved/{model}/{job}/model.tar.gz",
        CopySource={"Bucket": pipeline.target.bucket, "Key": swapped},
    )
    told = pipeline.wait_for_email(model, "Deployment rolled back")
    assert "20 of 20 golden rows get other answers than in training" in told["text"]
    assert f"The pipeline puts {served} back" in told["text"]
    pipeline.wait_for_email(model, "Deployment restored")
    assert pipeline.endpoint(model)["EndpointConfigName"] == served
    assert [predict(pipeline.target, model, text) for text in texts] == answers
    assert pipeline.subjects_of(model)[-3:] == ["Deployment started", "Deployment rolled back", "Deployment restored"]


def test_function_that_raises_is_tried_three_times_and_its_event_kept(pipeline: Pipeline) -> None:
    before = len(pipeline.failed_events())
    event = {
        "version": "0",
        "id": "11111111-2222-3333-4444-555555555555",
        "source": "aws.s3",
        "detail-type": "Object Created",
        "account": "123456789012",
        "time": "2026-01-01T00:00:00Z",
        "region": "us-east-1",
        "resources": [],
        "detail": {
            "bucket": {"name": pipeline.target.bucket},
            "object": {"key": "data/train/x.csv", "version-id": 5},
        },
    }
    url = f"{pipeline.target.environment['AWS_ENDPOINT_URL']}/_local/events"
    with urlopen(Request(url, json.dumps(event).encode(), {"Content-Type": "application/json"}), timeout=10) as answer:
        assert answer.status == 200
    failed = pipeline.wait_for("the failed event", lambda: pipeline.failed_events()[before:])
    assert failed[0]["requestPayload"]["id"] == event["id"]
    assert failed[0]["requestContext"]["approximateInvokeCount"] == 3
    assert "version-id must be text" in failed[0]["responsePayload"]["errorMessage"]


def image_of(pipeline: Pipeline, function: str, variable: str) -> str:
    """An image that the stack uses, and so one that its region has."""
    name = pipeline.target.functions[function]
    settings = pipeline.target.client("lambda").get_function_configuration(FunctionName=name)
    return str(settings["Environment"]["Variables"][variable])


def test_other_peoples_jobs_and_endpoints_have_no_effect(pipeline: Pipeline, model: str) -> None:
    """A foreign training job of our naming, and a foreign endpoint, in the same account."""
    start = datetime.now(UTC)
    bucket = "somebody-else"
    pipeline.s3.create_bucket(Bucket=bucket)
    pipeline.s3.put_object(Bucket=bucket, Key="data.csv", Body=b"x")
    code = io.BytesIO()
    with tarfile.open(fileobj=code, mode="w:gz") as tar:
        body = b"import os, pathlib\npathlib.Path(os.environ['SM_MODEL_DIR'], 'weights').write_text('x')\n"
        member = tarfile.TarInfo("main.py")
        member.size = len(body)
        tar.addfile(member, io.BytesIO(body))
        inference = b"def model_fn(folder):\n    return None\n\ndef predict_fn(data, model):\n    return [{}]\n"
        member = tarfile.TarInfo("code/inference.py")
        member.size = len(inference)
        tar.addfile(member, io.BytesIO(inference))
    pipeline.s3.put_object(Bucket=bucket, Key="code.tar.gz", Body=code.getvalue())
    job, role = "training-job-20260101-000000-00000000", "arn:aws:iam::123456789012:role/somebody"
    image = image_of(pipeline, "training", "TRAINING_IMAGE")
    before = list(pipeline.emails), pipeline.keys("models/decisions/"), pipeline.keys("models/deployments/")
    where = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{bucket}/data.csv"}
    pipeline.sagemaker.create_training_job(
        TrainingJobName=job,
        RoleArn=role,
        AlgorithmSpecification={"TrainingImage": image, "TrainingInputMode": "File"},
        HyperParameters={
            "sagemaker_program": "main.py",
            "sagemaker_submit_directory": f"s3://{bucket}/code.tar.gz",
        },
        InputDataConfig=[{"ChannelName": "train", "DataSource": {"S3DataSource": where}}],
        # Into the stack's bucket: the rule lets its event through, and the functions have to tell it from theirs.
        OutputDataConfig={"S3OutputPath": f"s3://{pipeline.target.bucket}/theirs/"},
        ResourceConfig={"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 600},
    )
    endpoint = pipeline.target.endpoint_of("theirs")
    pipeline.sagemaker.create_model(
        ModelName="theirs",
        ExecutionRoleArn=role,
        PrimaryContainer={
            "Image": image_of(pipeline, "deployer", "INFERENCE_IMAGE"),
            "ModelDataUrl": f"s3://{bucket}/code.tar.gz",
        },
    )
    variant = {"VariantName": "one", "ModelName": "theirs"}
    variant |= {"ServerlessConfig": {"MemorySizeInMB": 1024, "MaxConcurrency": 1}}
    pipeline.sagemaker.create_endpoint_config(EndpointConfigName="theirs", ProductionVariants=[variant])
    pipeline.sagemaker.create_endpoint(EndpointName=endpoint, EndpointConfigName="theirs")
    pipeline.wait_for(
        "their job to complete",
        lambda: pipeline.sagemaker.describe_training_job(TrainingJobName=job)["TrainingJobStatus"] == "Completed",
    )
    pipeline.wait_for(
        "their endpoint in service",
        lambda: pipeline.sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"] == "InService",
    )

    def functions_saw_both() -> bool:
        logs = [
            line
            for function in pipeline.target.functions.values()
            for _, line in log_events(pipeline.target, f"/aws/lambda/{function}", start)
        ]
        return any(job in line and "not ours" in line for line in logs) and any(
            "nothing approved" in line and endpoint in line for line in logs
        )

    pipeline.wait_for("the functions to have looked at both", functions_saw_both)
    after = pipeline.emails, pipeline.keys("models/decisions/"), pipeline.keys("models/deployments/")
    assert list(after) == list(before)


def test_status_shows_the_endpoint_its_job_and_rejected_uploads(
    pipeline: Pipeline, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.train_and_deploy(model, make_rows(FIRST, 120, seed=30), name="good.csv")
    pipeline.upload(f"data/train/{model}/bad.csv", b"")
    pipeline.wait_for_email(model, "Training data rejected")
    pipeline.wait_for("the record of it", lambda: pipeline.keys("data/rejected/"))
    show_status(pipeline.target)
    shown = capsys.readouterr().out
    assert f"mlops-endpoint-{model}: InService, serves training-job-" in shown
    assert re.search(r"training-job-\S+  approved +deployed +good.csv  accuracy", shown)
    assert f"data/train/{model}/bad.csv: the file is empty" in shown
