"""CloudWatch on the local AWS: alarms, as Terraform's provider asks for them."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import botocore.parsers
import botocore.session

from launcher import local_aws

ALARM: dict[str, Any] = {
    "AlarmDescription": "Fails on < 5 % & more",
    "Namespace": "AWS/Lambda",
    "MetricName": "Errors",
    "Dimensions": [{"Name": "FunctionName", "Value": "judge"}],
    "Statistic": "Sum",
    "Period": 300,
    "EvaluationPeriods": 1,
    "Threshold": 0.25,
    "ComparisonOperator": "GreaterThanThreshold",
    "TreatMissingData": "notBreaching",
    "AlarmActions": ["arn:aws:sns:us-east-1:123456789012:topic"],
    "ActionsEnabled": True,
}


def described_by_query(endpoint: str, name: str) -> list[dict[str, Any]]:
    """The answer in the Query protocol: boto3 itself speaks another one by now."""
    form = {"Action": "DescribeAlarms", "Version": "2010-08-01", "AlarmNames.member.1": name}
    scope = "Credential=123456789012/20261123/us-east-1/monitoring/aws4_request"
    request = Request(
        endpoint,
        data=urlencode(form).encode(),
        headers={"Authorization": f"AWS4-HMAC-SHA256 {scope}", "Content-Type": "application/x-www-form-urlencoded"},
    )
    with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
        response = {"status_code": answer.status, "headers": dict(answer.headers), "body": answer.read()}
    model = botocore.session.get_session().get_service_model("cloudwatch").operation_model("DescribeAlarms")
    parsed = botocore.parsers.create_parser("query").parse(response, model.output_shape)
    found: list[dict[str, Any]] = parsed["MetricAlarms"]
    return found


def test_an_alarm_is_described_as_it_was_put(tmp_path: Any) -> None:
    name = f"{uuid.uuid4().hex[:8]}/errors & more"
    with local_aws(tmp_path) as aws:
        client = aws.client("cloudwatch")
        client.put_metric_alarm(AlarmName=name, **ALARM)
        client.put_metric_alarm(AlarmName="another", **ALARM)
        (described,) = described_by_query(client.meta.endpoint_url, name)
    assert {key: described[key] for key in ("AlarmName", *ALARM)} == {"AlarmName": name, **ALARM}
    assert described["StateValue"] == "INSUFFICIENT_DATA"
    assert described["StateUpdatedTimestamp"].year >= 2026


def test_an_alarm_does_not_go_off_for_the_errors_of_another_function(tmp_path: Any) -> None:
    with local_aws(tmp_path) as aws:
        failing = aws.function("def lambda_handler(event, context):\n    raise ValueError\n")
        assert aws.client("lambda").invoke(FunctionName=failing)["FunctionError"] == "Unhandled"
        client = aws.client("cloudwatch")
        client.put_metric_alarm(AlarmName="judge/errors", **ALARM)
        (described,) = client.describe_alarms(AlarmNames=["judge/errors"])["MetricAlarms"]
    assert described["StateValue"] == "INSUFFICIENT_DATA"
