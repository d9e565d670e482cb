"""Who may reach the stack's resources from outside its roles: the resources' own policies, as rendered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from needs import ACCOUNT, FUNCTIONS, QUEUE_ARN
from rendered import Plan
from world import BUCKET, ENDPOINT, REGION, TOPIC_ARN

RULES = ("approved", "endpoint", "sweep", "training-ended", "uploads")
BUCKET_ARN = f"arn:aws:s3:::{BUCKET}"


def tls_only(action: str, resource: str | list[str]) -> dict[str, Any]:
    return {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": action,
        "Resource": resource,
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def statements(policy: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(policy)["Statement"]
    return found


def test_the_bucket_lets_nobody_in_and_refuses_plain_http(stack: Plan) -> None:
    policy = stack["module.s3.aws_s3_bucket_policy.this[0]"]["policy"]

    assert statements(policy) == [tls_only("s3:*", [f"{BUCKET_ARN}/*", BUCKET_ARN])]


def test_the_queue_takes_messages_of_this_stacks_rules_only(stack: Plan) -> None:
    policy = stack["module.monitoring.aws_sqs_queue.failures"]["policy"]
    rules = [f"arn:aws:events:{REGION}:{ACCOUNT}:rule/mlops-{rule}-{BUCKET}" for rule in RULES]

    assert statements(policy) == [
        {
            "Sid": "Rules",
            "Effect": "Allow",
            "Principal": {"Service": "events.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": QUEUE_ARN,
            "Condition": {"ArnEquals": {"aws:SourceArn": rules}},
        },
        tls_only("sqs:*", QUEUE_ARN),
    ]


def test_the_topic_takes_messages_of_this_accounts_alarms_only(stack: Plan) -> None:
    owner, alarms, tls = statements(stack["module.monitoring.aws_sns_topic_policy.this"]["policy"])

    # The account itself: what its roles may do, their own policies say.
    assert (owner["Effect"], owner["Principal"]) == ("Allow", {"AWS": f"arn:aws:iam::{ACCOUNT}:root"})
    assert owner["Resource"] == TOPIC_ARN
    assert not [action for action in owner["Action"] if "*" in action]
    assert alarms["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    assert (alarms["Action"], alarms["Resource"]) == ("sns:Publish", TOPIC_ARN)
    assert alarms["Condition"]["StringEquals"] == {"aws:SourceAccount": ACCOUNT}
    watched = [f"mlops-{name.replace('_', '-')}-{BUCKET}-" for name in FUNCTIONS]
    watched += [f"mlops-failures-{BUCKET}-", f"{ENDPOINT}/", f"{ENDPOINT}-reviews/"]
    names = [f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:{name}*" for name in watched]
    assert sorted(alarms["Condition"]["ArnLike"]["aws:SourceArn"]) == sorted(names)
    assert tls == tls_only("sns:Publish", TOPIC_ARN)


def test_each_function_may_be_invoked_by_its_own_rules_only(stack: Plan) -> None:
    targets = stack.instances("module.eventbridge.aws_cloudwatch_event_target.this")
    permissions = stack.instances("module.eventbridge.aws_lambda_permission.this")

    assert permissions.keys() == targets.keys()
    for name, permission in permissions.items():
        rule, function = name.replace("_", "-").split("/")
        assert permission["function_name"] == f"mlops-{function}-{BUCKET}"
        assert (permission["action"], permission["principal"]) == ("lambda:InvokeFunction", "events.amazonaws.com")
        assert permission["statement_id"] == f"mlops-{rule}-{BUCKET}"
    # The rules' ARNs are known after apply only.
    references = stack.expression("eventbridge", "aws_lambda_permission.this", "source_arn")
    assert references == ["aws_cloudwatch_event_rule.this", "each.value.rule", "each.value"]


@pytest.mark.parametrize(
    ("role", "service"),
    [(f'function["{name}"]', "lambda") for name in FUNCTIONS] + [("model", "sagemaker"), ("training", "sagemaker")],
)
def test_a_role_is_assumed_by_its_service_in_this_account_only(stack: Plan, role: str, service: str) -> None:
    policy = stack[f"module.iam.aws_iam_role.{role}"]["assume_role_policy"]

    assert statements(policy) == [
        {
            "Effect": "Allow",
            "Principal": {"Service": f"{service}.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": ACCOUNT}},
        }
    ]


def test_every_role_has_the_one_policy_that_is_proven(stack: Plan) -> None:
    of_roles = [address for address in stack.resources if ".aws_iam_" in address]

    assert sorted(of_roles) == sorted(
        f"module.iam.{kind}.{name}"
        for kind in ("aws_iam_role", "aws_iam_role_policy")
        for name in ("model", "training", *(f'function["{function}"]' for function in FUNCTIONS))
    )
    for address in of_roles:
        assert not stack[address].get("managed_policy_arns")
