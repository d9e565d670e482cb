"""The training orchestrator's rejections: how many models there may be, uploads that S3 does not hand out, and how a
crowd of rejections is emailed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from botocore.exceptions import ClientError

from fake_sagemaker import refusal
from world import CSV, Interruption, World, broken_connection, in_memory, runner

LEDGER = "slots/training.json"
OWN_KEY = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
FOREIGN_KEY = "arn:aws:kms:us-east-1:210987654321:key/99999999-2222-3333-4444-555555555555"
BAD = b"text;label\n"
# The call that reads the upload, of those that its event leads to.
READ = 3


@pytest.fixture
def world(training: ModuleType, environment: None, monkeypatch: pytest.MonkeyPatch) -> World:
    return in_memory(training, monkeypatch)


@pytest.fixture
def run(training: ModuleType, world: World) -> Callable[..., str]:
    return runner(training, world)


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch, training: ModuleType) -> Callable[..., None]:
    """Change settings, as Terraform would: setting(MODELS="a b")."""

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        training.settings.cache_clear()

    return change


def upload(world: World, model: str = "default", body: bytes | None = None, **stored_as: str) -> dict[str, Any]:
    return world.upload(f"data/train/{model}/x.csv", body, time=f"{world.time:%Y-%m-%dT%H:%M:%SZ}", **stored_as)


def rejected(world: World) -> list[str]:
    """The subjects of the emails on rejections."""
    return [email.subject for email in world.emails() if email.attributes["status"] == "rejected"]


def reason(world: World) -> str:
    """Why the only rejected upload was rejected, as its record says."""
    (key,) = world.keys("data/rejected/")
    return str(world.record(key)["reason"])


# --- how many models --------------------------------------------------------------------------------


def test_twenty_folders_are_five_models_and_fifteen_refusals_in_two_emails(
    run: Callable[..., str], world: World, setting: Callable[..., None]
) -> None:
    setting(MAX_CONCURRENT_TRAINING_JOBS="50", MAX_TRAINING_JOBS_PER_DAY="50")
    outcomes = [run(upload(world, f"model-{number:02}")) for number in range(20)]
    assert Counter(outcomes) == {"started": 5, "rejected": 15}
    assert {job["Tags"][2]["Value"] for job in world.sagemaker.jobs.values()} == {f"model-{n:02}" for n in range(5)}
    assert len(world.keys("data/rejected/")) == 15
    assert len([key for key in world.keys("data/snapshots/") if key.endswith("/source.json")]) == 5
    assert rejected(world) == ["Training data rejected: x.csv"]
    for _ in range(3):
        world.wait(minutes=15)
        run()
    assert rejected(world)[1:] == ["Training data rejected: x.csv and 13 more"]
    assert [crowd["jobs"] for crowd in world.record(LEDGER)["rejected"].values()] == [[]]


def test_the_refusal_of_a_model_names_the_maximum_the_models_and_the_way_out(
    run: Callable[..., str], world: World, setting: Callable[..., None]
) -> None:
    setting(MAX_MODELS="2")
    for model in ("b", "a"):
        run(upload(world, model))
    assert run(upload(world, "c")) == "rejected"
    body = world.emails()[-1].body
    for fact in (
        '"c" would be a new model, and max_models is 2 (a, b);',
        "raise max_models in Terraform",
        "name in models",
    ):
        assert fact in body
    assert len(world.sagemaker.jobs) == 2


def test_a_model_that_was_let_in_is_trained_again_however_many_there_are(
    run: Callable[..., str], world: World, setting: Callable[..., None]
) -> None:
    for model in ("a", "b"):
        run(upload(world, model))
    setting(MAX_MODELS="1", MAX_CONCURRENT_TRAINING_JOBS="9")
    world.wait(hours=1)
    assert [run(upload(world, model)) for model in ("a", "b", "c")] == ["started", "started", "rejected"]


def test_a_file_that_cannot_be_trained_on_takes_no_model_s_place(
    run: Callable[..., str], world: World, setting: Callable[..., None]
) -> None:
    setting(MAX_MODELS="1")
    assert run(upload(world, "typo", BAD)) == "rejected"
    assert run(upload(world, "a")) == "started"


def test_with_a_list_of_models_its_names_alone_are_trained(
    run: Callable[..., str], world: World, setting: Callable[..., None]
) -> None:
    setting(MODELS="a b", MAX_MODELS="1", MAX_CONCURRENT_TRAINING_JOBS="9")
    assert [run(upload(world, model)) for model in ("a", "default", "b", "c")] == ["started", "rejected"] * 2
    assert '"default" may not be trained: add it to models in Terraform' in world.emails()[1].body
    setting(MODELS="")
    world.wait(hours=1)
    assert [run(upload(world, model)) for model in ("a", "b", "c")] == ["started", "started", "rejected"]


def test_a_raised_maximum_lets_the_refused_model_in_once_it_is_uploaded_again(
    run: Callable[..., str], world: World, setting: Callable[..., None]
) -> None:
    setting(MAX_MODELS="1")
    run(upload(world, "a"))
    again = upload(world, "b")
    assert run(again) == "rejected"
    setting(MAX_MODELS="2")
    assert run(again) == "already rejected"
    world.wait(seconds=1)
    assert run(upload(world, "b")) == "started"


def test_after_an_upgrade_the_models_of_the_old_stack_have_their_places(
    run: Callable[..., str], world: World, setting: Callable[..., None]
) -> None:
    """Its ledger has no models; one of them has an archive alone, the other a snapshot alone."""
    run(upload(world, "trained"))
    ledger = world.record(LEDGER)
    world.put(LEDGER, {name: value for name, value in ledger.items() if name not in ("models", "rejected")})
    world.put("models/approved/live/training-job-20260101-110000-0123abcd/model.tar.gz", b"weights")
    world.put("models/approved/README", b"")
    setting(MAX_MODELS="1", MAX_CONCURRENT_TRAINING_JOBS="9")
    world.wait(hours=1)
    assert [run(upload(world, model)) for model in ("new", "live", "trained")] == ["rejected", "started", "started"]
    assert world.record(LEDGER)["models"] == ["live", "trained"]


@pytest.mark.parametrize("call", range(14))
def test_two_new_models_at_once_do_not_share_the_last_place(
    run: Callable[..., str], world: World, setting: Callable[..., None], call: int
) -> None:
    setting(MAX_MODELS="1")
    first, second = upload(world, "a"), upload(world, "b")
    outcomes: list[str] = []
    world.around.interruption = Interruption(call, lambda: outcomes.append(run(second, "second")))
    outcomes.append(run(first, "first"))
    assert sorted(outcomes) == ["rejected", "started"]
    assert len(world.record(LEDGER)["models"]) == len(world.sagemaker.jobs) == 1


# --- what S3 does not hand out ----------------------------------------------------------------------

UNREADABLE = {
    "archived": ({"StorageClass": "GLACIER"}, "in an archive storage class"),
    "archived deeply": ({"StorageClass": "DEEP_ARCHIVE"}, "in an archive storage class"),
    "the uploader's own key": (
        {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32},
        r"encrypted with a key of the uploader's own (SSE-C)",
    ),
    "a foreign KMS key": (
        {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": FOREIGN_KEY},
        "encrypted with a KMS key that the pipeline may not use",
    ),
}


@pytest.mark.parametrize("adopted", [False, True], ids=["event", "sweep"])
@pytest.mark.parametrize("what", UNREADABLE)
def test_what_s3_does_not_hand_out_is_refused_with_an_email_and_nothing_is_copied(
    run: Callable[..., str], world: World, what: str, adopted: bool
) -> None:
    stored_as, why = UNREADABLE[what]
    sent = upload(world, **stored_as)
    world.wait(minutes=11)
    if adopted:
        assert run() == "started 0, waiting 0"
    else:
        assert run(sent) == "rejected"
    assert why in world.only_email().body
    assert why in reason(world)
    assert world.keys("data/snapshots/") == []


@pytest.mark.parametrize("code", ["KMS.DisabledException", "KMS.KMSInvalidStateException", "KMS.NotFoundException"])
def test_a_file_whose_foreign_key_is_disabled_or_gone_is_refused(
    run: Callable[..., str], world: World, code: str
) -> None:
    sent = upload(world, SSEKMSKeyId=FOREIGN_KEY)

    def refuse() -> None:
        raise refusal("GetObject", code, f"{FOREIGN_KEY} is disabled.", 400)

    world.around.interruption = Interruption(READ, refuse)
    assert run(sent) == "rejected"
    assert "encrypted with a KMS key that the pipeline may not use" in reason(world)


@pytest.mark.parametrize("key", ["", OWN_KEY], ids=["no key", "the stack's key"])
@pytest.mark.parametrize("code", ["AccessDenied", "KMS.DisabledException"])
def test_a_bucket_or_a_key_of_the_stack_that_refuses_is_an_error_that_lambda_retries(
    run: Callable[..., str], world: World, setting: Callable[..., None], key: str, code: str
) -> None:
    setting(KMS_KEY_ARN=key)
    sent = upload(world, **({"SSEKMSKeyId": key} if key else {}))

    def refuse() -> None:
        raise refusal("GetObject", code, "Access Denied", 403)

    world.around.interruption = Interruption(READ, refuse)
    with pytest.raises(ClientError, match=code):
        run(sent)
    assert world.around.calls[READ] == "GetObject"
    assert world.emails() == []
    assert world.keys("data/rejected/") == []


def test_denied_altogether_a_file_with_a_foreign_key_is_an_error(run: Callable[..., str], world: World) -> None:
    """Who may not read the object either learns nothing of its key."""
    sent = upload(world, SSEKMSKeyId=FOREIGN_KEY)

    def refuse() -> None:
        world.around.interruption = Interruption("HeadObject", denied)
        raise refusal("GetObject", "AccessDenied", "Access Denied", 403)

    def denied() -> None:
        raise refusal("HeadObject", "403", "Forbidden", 403)

    world.around.interruption = Interruption(READ, refuse)
    with pytest.raises(ClientError, match="GetObject"):
        run(sent)
    assert world.keys("data/rejected/") == []


def test_another_request_that_s3_finds_invalid_is_an_error(run: Callable[..., str], world: World) -> None:
    def invalid() -> None:
        raise refusal("GetObject", "InvalidRequest", "Missing required header", 400)

    sent = upload(world)
    world.around.interruption = Interruption(READ, invalid)
    with pytest.raises(ClientError, match="Missing required header"):
        run(sent)


def test_a_file_that_does_not_fit_on_a_job_s_disk_beside_the_rest_is_refused(
    run: Callable[..., str],
    world: World,
    setting: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    training: ModuleType,
) -> None:
    setting(TRAINING_VOLUME_GB="30")
    monkeypatch.setattr(training, "LARGEST_FILE", (len(CSV) + 0.5) / 30e9)
    assert run(upload(world)) == "started"
    assert run(upload(world, "b", CSV + b"m")) == "rejected"
    assert "training_volume_gb in Terraform" in reason(world)
    assert len(world.sagemaker.jobs) == 1


def test_a_third_of_a_job_s_disk_is_for_the_file(training: ModuleType) -> None:
    assert round(training.LARGEST_FILE * 30) == 10


# --- one email for a crowd --------------------------------------------------------------------------


def test_fifty_bad_files_are_two_emails_and_fifty_records(run: Callable[..., str], world: World) -> None:
    for _ in range(50):
        assert run(upload(world, body=BAD)) == "rejected"
        world.wait(seconds=2)
    assert rejected(world) == ["Training data rejected: x.csv"]
    first = world.only_email().body
    assert "the next 20 minutes share one email. To list them, run: make status" in first
    world.wait(minutes=21)
    run()
    assert rejected(world)[1:] == ["Training data rejected: x.csv and 48 more"]
    assert "  files rejected  49\n" in world.emails()[1].body
    assert len(world.keys("data/rejected/")) == 50
    world.wait(days=2)
    run()
    assert len(world.emails()) == 2


def test_a_rejection_after_a_quiet_time_is_emailed_at_once(run: Callable[..., str], world: World) -> None:
    for _ in range(3):
        run(upload(world, body=BAD))
        world.wait(minutes=21)
    assert rejected(world) == ["Training data rejected: x.csv"] * 3


def test_what_waits_to_be_emailed_goes_with_the_next_rejection(run: Callable[..., str], world: World) -> None:
    for _ in range(3):
        run(upload(world, body=BAD))
    world.wait(minutes=21)
    assert run(upload(world, body=b"")) == "rejected"
    assert rejected(world)[1:] == ["Training data rejected: x.csv and 2 more"]


def test_another_model_s_rejection_is_emailed_at_once(run: Callable[..., str], world: World) -> None:
    for model in ("a", "b", "a", "b"):
        run(upload(world, model, BAD))
    assert [email.attributes["model"] for email in world.emails()] == ["a", "b"]
    world.wait(minutes=21)
    run()
    assert [email.attributes["model"] for email in world.emails()] == ["a", "b"] * 2


def test_bad_files_in_fifty_folders_are_as_many_emails_as_there_may_be_models_and_two_more(
    run: Callable[..., str], world: World
) -> None:
    for number in range(50):
        assert run(upload(world, f"model-{number}", BAD)) == "rejected"
    for _ in range(3):
        world.wait(minutes=21)
        run()
    assert rejected(world) == ["Training data rejected: x.csv"] * 6 + ["Training data rejected: x.csv and 43 more"]


@pytest.mark.parametrize("call", range(12))
def test_two_bad_files_at_once_are_both_emailed_once(run: Callable[..., str], world: World, call: int) -> None:
    events = [world.upload(f"data/train/a/{number}.csv", BAD) for number in (1, 2)]
    world.around.interruption = Interruption(call, lambda: run(events[1], "second"))
    run(events[0], "first")
    for _ in range(2):
        world.wait(minutes=21)
        run()
    told = [int(number) for email in world.emails() for number in re.findall(r"files rejected  (\d+)", email.body)]
    assert sum(told) == 2


@pytest.mark.parametrize("after_the_effect", [False, True])
@pytest.mark.parametrize("call", range(11))
def test_a_rejection_that_broke_off_is_emailed_and_recorded_by_the_retry(
    run: Callable[..., str], world: World, call: int, after_the_effect: bool
) -> None:
    sent = upload(world, body=BAD)
    world.around.interruption = Interruption(call, broken_connection, after_the_effect)
    with pytest.raises(ClientError):
        run(sent, "the event")
    assert run(sent, "the event").endswith("rejected")
    assert len(world.keys("data/rejected/")) == 1
    assert set(rejected(world)) == {"Training data rejected: x.csv"}
    world.wait(minutes=21)
    run()
    assert world.record(LEDGER)["rejected"]["default"]["jobs"] == []
