"""With a KMS key of one's own, as all end-to-end tests have it, whatever holds data is under it, whoever wrote it."""

from __future__ import annotations

from deployed import KMS_KEY_ARN, Pipeline, make_rows, to_csv


def test_everything_of_a_run_is_under_the_key(pipeline: Pipeline, model: str) -> None:
    key = f"data/train/{model}/data.csv"
    pipeline.upload(key, to_csv(make_rows(("ham", "spam"), 120, seed=90)))
    pipeline.wait_for_email(model, "Deployment successful")
    source = pipeline.source_of(key)
    assert source is not None
    job = source["job"]
    config = pipeline.endpoint(model)["EndpointConfigName"]
    bucket = pipeline.target.bucket

    for written in (
        key,
        f"data/snapshots/{job}/data.csv",
        f"data/snapshots/{job}/source.json",
        f"models/raw/{job}/output/model.tar.gz",
        f"models/decisions/{job}.json",
        f"models/approved/{model}/{job}/model.tar.gz",
        f"models/deployments/{config}.json",
    ):
        facts = pipeline.s3.head_object(Bucket=bucket, Key=written)
        assert (written, facts.get("ServerSideEncryption"), facts.get("SSEKMSKeyId")) == (
            written,
            "aws:kms",
            KMS_KEY_ARN,
        )
    assert pipeline.sagemaker.describe_training_job(TrainingJobName=job)["OutputDataConfig"]["KmsKeyId"] == KMS_KEY_ARN


def test_topic_queue_and_logs_are_under_the_key(pipeline: Pipeline) -> None:
    outputs = pipeline.target.outputs
    topic = pipeline.target.client("sns").get_topic_attributes(TopicArn=outputs["topic_arn"])["Attributes"]
    queue = pipeline.sqs.get_queue_attributes(QueueUrl=outputs["failure_queue_url"], AttributeNames=["All"])
    group = f"/aws/lambda/{outputs['training_orchestrator_name']}"
    (found,) = pipeline.target.client("logs").describe_log_groups(logGroupNamePrefix=group)["logGroups"]

    assert topic["KmsMasterKeyId"] == KMS_KEY_ARN
    assert queue["Attributes"]["KmsMasterKeyId"] == KMS_KEY_ARN
    assert found["kmsKeyId"] == KMS_KEY_ARN
