"""mlops pause and resume: stop everything that costs money, and bring back what was live.

Either writes down what it is about to do before it does it, so it can be interrupted anywhere and rerun.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from mlops import bucket
from mlops.bucket import Record
from mlops.deployments import approved_event, approved_jobs, deploy_again, deployments, move
from mlops.endpoints import (
    Endpoint,
    delete_endpoint,
    describe_endpoint,
    is_missing,
    own_endpoints,
    running_jobs,
    stop_job,
)
from mlops.records import (
    BAD,
    OPEN,
    PAUSED_KEY,
    SCHEMA,
    Deployment,
    Paused,
    PausedEndpoint,
    deployment,
    deployment_key,
    job_of_config,
    paused,
)
from mlops.target import (
    SWEEP,
    Target,
    UsageError,
    check_functions,
    confirm,
    error_code,
    error_message,
    invoke,
    model_name,
    who,
)
from mlops.text import say

# --- pause -------------------------------------------------------------------------------------------


def pause(target: Target, yes: bool, stop_jobs: bool) -> int:
    """Stop everything that costs money, and remember what was live; the exit status. Raises UsageError.

    control/paused.json is written before anything is deleted: from then on the functions start nothing, and
    resume knows what to restore.
    """
    record = bucket.read(target, PAUSED_KEY, paused)
    endpoints = own_endpoints(target)
    jobs = running_jobs(target)
    to_delete = [endpoint for endpoint in endpoints if endpoint["status"] != "Deleting"]
    if record is not None and not to_delete and not (stop_jobs and jobs):
        say(f"already paused, since {record.value['at'][:16]} by {record.value['by']}")
        show_running(jobs)
        return 0
    say("From now on: no new training jobs, no deployments, no sweep, until make resume.")
    for endpoint in to_delete:
        say(f"  endpoint {endpoint['name']} ({endpoint['config']}) is deleted: it does not answer until make resume")
    if stop_jobs:
        for job in jobs:
            say(f"  {job} is stopped; make retrain JOB={job} trains again")
    confirm(target, yes)
    note_pause(target, record, to_delete)
    busy = [endpoint["name"] for endpoint in to_delete if not delete_endpoint(target, endpoint["name"])]
    if stop_jobs:
        for job in jobs:
            stop_job(target, job)
    say("paused; make resume brings back what was live")
    if not stop_jobs:
        show_running(jobs)
    if busy:
        say(f"{', '.join(busy)}: just being changed, and cannot be deleted until that is over; rerun make pause then")
    return 1 if busy else 0


def note_pause(target: Target, record: Record[Paused] | None, to_delete: list[Endpoint]) -> None:
    """Write down that the pipeline is paused, and which endpoints resume is to bring back. Raises Changed."""
    live: dict[str, Any] = {endpoint["name"]: endpoint for endpoint in (record.value["endpoints"] if record else [])}
    for endpoint in to_delete:
        live[endpoint["name"]] = {name: value for name, value in endpoint.items() if name != "status"}
    endpoints = list(live.values())
    if record is None:
        data = {"schema": SCHEMA, "by": who(target), "at": bucket.now().isoformat(), "endpoints": endpoints}
        bucket.write(target, PAUSED_KEY, data, None, paused)
    elif endpoints != record.value["endpoints"]:
        bucket.write(target, PAUSED_KEY, record.stored | {"endpoints": endpoints}, record, paused)


def show_running(jobs: list[str]) -> None:
    if jobs:
        say(f"{len(jobs)} training jobs run on to their end, at most some hours (make pause STOP_JOBS=1 stops them):")
    for job in jobs:
        say(f"  {job}")


# --- resume ------------------------------------------------------------------------------------------


@dataclass
class Restored:
    """What became of the endpoints that are to come back.

    again: (model, job) of those that are left to the deployment orchestrator; lost: the names of the others.
    """

    again: list[tuple[str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def resume(target: Target) -> int:
    """Bring back what was live before the pause, then let the functions go on; the exit status. Raises UsageError.

    control/paused.json goes last: until then the command can be rerun.
    """
    check_functions(target)
    record = bucket.read(target, PAUSED_KEY, paused)
    restored, by = Restored(), who(target)
    for endpoint in record.value["endpoints"] if record else []:
        restore(target, endpoint, by, restored, after="a pause")
    if record:
        target.client("s3").delete_object(Bucket=target.bucket, Key=PAUSED_KEY)
    # Also when it is not paused: an earlier run may have been cut short just here.
    for function in target.functions.values():
        invoke(target, function, SWEEP)
    deploy_rest(target, restored)
    say(
        "resumed: what was uploaded or approved in the meantime is handled now (make status)"
        if record
        else "not paused: there is nothing to resume (make status)"
    )
    return 1 if restored.lost else 0


def resume_model(target: Target, model: str) -> int:
    """Recreate an endpoint that somebody deleted by hand, as it was; the exit status. Raises UsageError.

    The deployment orchestrator then takes it on to the newest approved model, where that is another one.
    """
    model_name(model)
    check_functions(target)
    name, by = target.endpoint_of(model), who(target)
    if bucket.read(target, PAUSED_KEY, paused):
        raise UsageError("the pipeline is paused: make resume, without MODEL, brings everything back")
    jobs = approved_jobs(target, model)
    if not jobs:
        raise UsageError(f"MODEL={model}: no model of this name was ever approved (make status shows those there are)")
    restored = Restored()
    # Never live, because the endpoint was gone; what was live before it comes first.
    newest_held: list[Record[Deployment]] = []
    for job in jobs:
        records = deployments(target, job, name)
        states = {record.value["state"] for record in records}
        live = next((record for record in records if record.value["state"] in ("confirmed", *OPEN)), None)
        if not records or "withdrawn" in states or (live is None and states & {*BAD, "removed"}):
            continue
        if live is None:
            newest_held = newest_held or records
            continue
        tags = {"Project": target.outputs["project_name"], "Stack": target.bucket, "Model": model, "TrainingJob": job}
        listed = [{"Key": key, "Value": value} for key, value in tags.items()]
        endpoint: PausedEndpoint = {"name": name, "model": model, "config": live.value["config"], "tags": listed}
        restore(target, endpoint, by, restored, after="it was deleted by hand")
        break
    else:
        if not newest_held:
            raise UsageError(f"MODEL={model} has no model that may be deployed (make status): upload data for it")
        for record in newest_held:
            deploy_again(target, record, by, endpoint_last_modified=None, deleted_by="pipeline")
        restored.again.append((model, job_of_config(newest_held[0].value["config"])))
        say(f"requested      {name}; an email will say how it goes on")
    deploy_rest(target, restored)
    return 1 if restored.lost else 0


def deploy_rest(target: Target, restored: Restored) -> None:
    """Have the deployment orchestrator try what could not be restored just now."""
    for model, job in restored.again:
        invoke(target, target.functions["deployer"], approved_event(target, model, job))


def restore(target: Target, endpoint: PausedEndpoint, by: str, restored: Restored, after: str) -> None:
    """Create an endpoint with the config that it had; the deployment orchestrator emails how that ended.

    after: what it comes back from, for that email. Raises UsageError while the endpoint is still being deleted.
    """
    name, config = endpoint["name"], endpoint["config"]
    record = bucket.read(target, deployment_key(config), deployment)
    present = describe_endpoint(target, name)
    if present is not None and present["EndpointStatus"] == "Deleting":
        raise UsageError(f"{name} is still being deleted, nothing is lost: rerun make resume in a minute")
    if present is not None:
        say(f"there already  {name}")
        if record is not None and record.value["state"] == "requested" and record.value["by"] == by:
            move(target, record, by, "started", started_at=bucket.now().isoformat())
        return
    if record is not None and record.value["state"] in BAD:
        # It was withdrawn or rolled back, and live nevertheless: it comes back as it was, and no email is due.
        record = None
    if record is not None:
        fresh: dict[str, Any] = {"endpoint_last_modified": None, "previous_config": None, "reason": ""}
        fresh |= {"deleted_by": "", "emails": {}, "restores": after}
        record = move(target, record, by, "requested", **fresh)
    try:
        target.client("sagemaker").create_endpoint(
            EndpointName=name, EndpointConfigName=config, Tags=list(endpoint["tags"])
        )
    except ClientError as error:
        if error_code(error) != "ResourceLimitExceeded" and not is_missing(error):
            raise
        if record is not None:
            # As if the pipeline had deleted it: nobody wanted it to go.
            deploy_again(target, record, by, deleted_by="pipeline")
            restored.again.append((endpoint["model"], job_of_config(config)))
            say(f"not yet        {name}: {error_message(error)} The deployment orchestrator tries again.")
        else:
            restored.lost.append(name)
            say(f"NOT RESTORED   {name}: {error_message(error)}")
        return
    if record is not None:
        move(target, record, by, "started", started_at=bucket.now().isoformat())
    say(f"recreated      {name} ({config})" + ("; an email will say when it answers" if record else ""))
