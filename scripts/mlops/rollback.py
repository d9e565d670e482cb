"""mlops rollback: back to an earlier model of the same name, and it stays.

Everything that is about to be done is written down first, so the command can be interrupted anywhere and rerun. The
deployment orchestrator does what takes time, and emails how it ended.
"""

from __future__ import annotations

from mlops import bucket
from mlops.bucket import Record
from mlops.deployments import approved_event, approved_jobs, deploy_again, deployments, move
from mlops.endpoints import describe_endpoint, own_tags
from mlops.records import BAD, OPEN, PAUSED_KEY, Deployment, job_of_config, paused
from mlops.target import Target, UsageError, check_functions, invoke, model_name, who
from mlops.text import say

# The endpoint statuses in which SageMaker takes an update.
SETTLED = ("InService", "UpdateRollbackFailed")


class Rollback:
    """One model's way back: which job's model is served, which one is wanted, and what stands between.

    The deployment orchestrator deploys the newest approved model that is not withdrawn, rolled back or failed, and
    takes a withdrawn one off its endpoint. So going back is: withdraw everything that is newer than the wanted
    model, then invoke the function. It creates what is missing, updates the endpoint with the stack's deployment
    settings, checks the result and emails people.
    """

    def __init__(self, target: Target, model: str, to: str) -> None:
        """Looks at everything and changes nothing. Raises UsageError when there is no way back."""
        self.target, self.model = target, model
        self.endpoint = target.endpoint_of(model)
        if bucket.read(target, PAUSED_KEY, paused):
            raise UsageError("the pipeline is paused and has no endpoints: make resume first")
        self.jobs = approved_jobs(target, model)
        if not self.jobs:
            raise UsageError(
                f"MODEL={model}: no model of this name was ever approved (make status shows those there are)"
            )
        described = describe_endpoint(target, self.endpoint)
        if described is None:
            raise UsageError(f"MODEL={model} has no endpoint ({self.endpoint}), so there is nothing to go back from")
        if not own_tags(target, described["EndpointArn"]):
            raise UsageError(f"the endpoint {self.endpoint} was not made by this stack: it is left alone")
        self.status = str(described["EndpointStatus"])
        self.served = job_of_config(described["EndpointConfigName"])
        self.records: dict[str, list[Record[Deployment]]] = {}
        self.wanted = self.check(to) if to else self.choose()
        self.newer = [job for job in self.jobs if job > self.wanted]

    def of(self, job: str) -> list[Record[Deployment]]:
        """The records of a job, read once."""
        if job not in self.records:
            self.records[job] = deployments(self.target, job, self.endpoint)
        return self.records[job]

    def states(self, job: str) -> set[str]:
        return {record.value["state"] for record in self.of(job)}

    def withdrawn_for(self, job: str) -> str:
        """The job that a withdrawn one was to make room for; "" when it is not withdrawn."""
        withdrawn = (record.value["withdrawn"] for record in self.of(job) if record.value["state"] == "withdrawn")
        return next((said["to"] for said in withdrawn), "")

    def check(self, to: str) -> str:
        """Raises UsageError unless the job's model is an approved one of this model's."""
        if to not in self.jobs:
            raise UsageError(f"{to} is no approved model of {self.model}; there are: {', '.join(self.jobs[:5])}")
        return to

    def choose(self) -> str:
        """The job to go back to when nobody says: the newest that was confirmed before the served one."""
        if room_for := self.withdrawn_for(self.served):
            # An earlier run was cut short: finish that one instead of going back one further.
            return self.check(room_for)
        for job in self.jobs:
            if job > self.served and self.withdrawn_for(job) == self.served:
                return self.served
        if self.served not in self.jobs:
            raise UsageError(
                f"{self.endpoint} serves {self.served}, which this pipeline did not deploy: "
                f"say where to go back to with TO={self.jobs[0]} (or another approved model)"
            )
        older = [job for job in self.jobs if job < self.served]
        confirmed = [job for job in older if "confirmed" in self.states(job)]
        if confirmed:
            return confirmed[0]
        others = f"; approved, but not confirmed: {', '.join(older[:5])} (TO=<job> takes one)" if older else ""
        raise UsageError(f"MODEL={self.model}: there is no confirmed model before {self.served} to go back to{others}")

    def run(self, by: str, reason: str) -> None:
        """Go back, and say what was done. Raises UsageError when something is under way, Changed."""
        obstacles = [job for job in self.newer if not self.states(job) <= set(BAD) or not self.of(job)]
        if not obstacles and self.served == self.wanted and self.status in SETTLED:
            say(f"already so: {self.endpoint} serves {self.served}, and nothing newer will replace it")
            older = [job for job in self.jobs if job < self.served]
            if older:
                say(f"to go back further: make rollback MODEL={self.model} TO={older[0]}")
            return
        if not obstacles and self.states(self.wanted) & set(OPEN):
            say(f"already under way: {self.wanted} is on its way to {self.endpoint}; an email will say how it ended")
            return
        self.check_quiet(obstacles)
        # The served one last: once it is withdrawn, what the function brings back is the wanted one.
        for job in sorted(obstacles, key=lambda job: (job == self.served, job)):
            self.withdraw(job, by, reason)
        if self.served != self.wanted:
            self.ask_for(self.wanted, by)

    def check_quiet(self, obstacles: list[str]) -> None:
        """Raises UsageError while the endpoint, or a model on its way to it, is in motion."""
        if self.status not in SETTLED:
            raise UsageError(
                f"{self.endpoint} is {self.status}: wait for the email that says how it ended, then rerun this"
            )
        for job in obstacles:
            if not self.of(job):
                raise UsageError(
                    f"{job} was approved just now and is about to be deployed: wait for its email, then rerun this"
                )
            if self.states(job) & set(OPEN):
                raise UsageError(f"{job} is on its way to {self.endpoint}: wait for the email on it, then rerun this")

    def withdraw(self, job: str, by: str, reason: str) -> None:
        for record in self.of(job):
            if record.value["state"] not in BAD:
                withdrawn = {"by": by, "at": bucket.now().isoformat(), "reason": reason, "to": self.wanted}
                move(self.target, record, by, "withdrawn", withdrawn=withdrawn, reason=reason)
        say(f"withdrawn     {job}: later events won't deploy it again")

    def ask_for(self, job: str, by: str) -> None:
        for record in deployments(self.target, job, self.endpoint):
            # The function restores a confirmed model without being asked, now that the one after it is withdrawn.
            state = record.value["state"]
            if state not in OPEN and (state != "confirmed" or job > self.served):
                deploy_again(self.target, record, by)
        invoke(self.target, self.target.functions["deployer"], approved_event(self.target, self.model, job))
        say(f"requested     {job}")
        say()
        say(
            f"The endpoint {self.endpoint} answers with {self.served} until the other model is up, commonly 5 to 10 "
            "minutes"
        )
        say(
            f"on AWS; emails say when that starts and how it ended. To undo this: "
            f"make rollback MODEL={self.model} TO={self.served}"
        )


def run(target: Target, model: str, to: str, reason: str) -> int:
    """Roll a model back; the exit status. Raises UsageError when there is no way back."""
    check_functions(target)
    Rollback(target, model_name(model), to).run(who(target), reason)
    return 0
