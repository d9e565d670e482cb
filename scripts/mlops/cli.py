"""The command line: every command, and every option once.

Options can be given in the environment, too, as make does it: `make upload DATA=x.csv MODEL=tickets` runs
`mlops upload` with DATA and MODEL set. A command imports what it needs when it runs, so that none is slowed down by
another. Exit status: 0 done, or it was so already; 1 AWS refused, or something is left to do; 2 the command cannot be
carried out as given; 130 Ctrl-C.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mlops.text import complain

# The repository's Terraform configuration.
CONFIGURATION = Path(__file__).resolve().parents[2] / "terraform"

Target = Annotated[
    str,
    typer.Option(
        "--target",
        envvar="TARGET",
        metavar="aws|local",
        help="Which stack. By default the local AWS while one is running, else AWS.",
    ),
]
Model = Annotated[str, typer.Option("--model", envvar="MODEL", metavar="NAME", help='The model, by default "default".')]
Data = Annotated[
    str, typer.Option("--data", envvar="DATA", metavar="FILE", help="A CSV with a text and a label column.")
]
TextColumn = Annotated[
    str, typer.Option("--text", envvar="TEXT", metavar="COLUMN", help="The texts' column, by default the model's.")
]
LabelColumn = Annotated[
    str, typer.Option("--label", envvar="LABEL", metavar="COLUMN", help="The labels' column, by default the model's.")
]
BaseModel = Annotated[
    str,
    typer.Option(
        "--base-model",
        envvar="BASE_MODEL",
        metavar="ID",
        help="A HuggingFace Hub id or a folder; by default a small one.",
    ),
]
Keep = Annotated[bool, typer.Option("--keep", envvar="KEEP", metavar="", help="Leave the local AWS running.")]
Text = Annotated[str, typer.Option("--text", envvar="TEXT", metavar="TEXT", help="The text to label.")]
Erased = Annotated[str, typer.Option("--text", envvar="TEXT", metavar="TEXT", help="The text to erase.")]
File = Annotated[
    str, typer.Option("--file", envvar="FILE", metavar="FILE", help="A UTF-8 file with nothing but the text in it.")
]
Job = Annotated[
    str, typer.Option("--job", envvar="JOB", metavar="NAME", help="A training job; make status shows them.")
]
Endpoint = Annotated[str, typer.Option("--endpoint", envvar="ENDPOINT", metavar="NAME", help="An endpoint.")]
Minutes = Annotated[
    str,
    typer.Option(
        "--minutes", envvar="MINUTES", metavar="NUMBER", help="How far back. A job's log is always shown whole."
    ),
]
To = Annotated[
    str, typer.Option("--to", envvar="TO", metavar="JOB", help="The training job of the model to go back to.")
]
Reason = Annotated[str, typer.Option("--reason", envvar="REASON", metavar="TEXT", help="Why; kept in the record.")]
Yes = Annotated[bool, typer.Option("--yes", envvar="YES", metavar="", help="Do not ask.")]
StopJobs = Annotated[
    bool, typer.Option("--stop-jobs", envvar="STOP_JOBS", metavar="", help="Stop running training jobs as well.")
]
DeleteData = Annotated[
    str,
    typer.Option("--data", envvar="DATA", metavar="delete", help='"delete": delete the bucket as well, with all data.'),
]
Confirm = Annotated[
    str, typer.Option("--confirm", envvar="CONFIRM", metavar="BUCKET", help="The bucket's name: do not ask for it.")
]
Limit = Annotated[
    str, typer.Option("--limit", envvar="LIMIT", metavar="DOLLARS", help="The most that a run may cost; 5 by default.")
]
Directory = Annotated[Path, typer.Option("--dir", metavar="FOLDER", help="The Terraform configuration.")]
TerraformOptions = Annotated[
    list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Terraform's own options, after --.")
]

app = typer.Typer(
    help="An event-driven training pipeline on AWS: upload a CSV, get a trained, judged and deployed model.",
    add_completion=False,
    no_args_is_help=True,
    # Its tracebacks would show the values of variables.
    pretty_exceptions_enable=False,
)
LOCAL, DAILY, INTERVENE, AWS = "On this machine", "Daily use", "When you want to intervene", "The stack on AWS"


@app.command(rich_help_panel=LOCAL)
def demo(data: Data = "", model: Model = "", base_model: BaseModel = "", keep: Keep = False) -> int:
    """Run the whole pipeline on this machine."""
    from mlops import demo

    return demo.run(data, model, base_model, keep)


@app.command(rich_help_panel=LOCAL)
def local_up(base_model: BaseModel = "") -> int:
    """Start the local AWS and deploy to it."""
    from local import stack

    return stack.run("up", base_model)


@app.command(rich_help_panel=LOCAL)
def local_status() -> int:
    """Show where the local AWS runs, and what other programs need to talk to it."""
    from local import stack

    return stack.run("status")


@app.command(rich_help_panel=LOCAL)
def local_down() -> int:
    """Stop the local AWS and delete its state."""
    from local import stack

    return stack.run("down")


@app.command(rich_help_panel=DAILY)
def data_check(
    data: Data = "", model: Model = "", text: TextColumn = "", label: LabelColumn = "", target: Target = ""
) -> int:
    """Say whether the pipeline would train on a CSV, what is in it, and what that takes. Sends nothing."""
    from mlops import upload
    from mlops.target import reported

    return reported(lambda: upload.run_check(data, model, text, label, target))


@app.command(rich_help_panel=DAILY)
def upload(
    data: Data = "",
    model: Model = "",
    text: TextColumn = "",
    label: LabelColumn = "",
    yes: Yes = False,
    target: Target = "",
) -> int:
    """Check a CSV and upload it, which starts a training. Asks where the check warns."""
    from mlops import upload
    from mlops.target import on_stack

    return on_stack(target, lambda stack: upload.run(stack, data, model, text, label, yes))


@app.command(rich_help_panel=DAILY)
def predict(text: Text = "", model: Model = "", target: Target = "") -> int:
    """Ask a model's endpoint for the label of a text."""
    from mlops import predict
    from mlops.target import on_stack

    return on_stack(target, lambda stack: predict.run(stack, model, text))


@app.command(rich_help_panel=DAILY)
def status(target: Target = "") -> int:
    """Show endpoints, the newest jobs, and what needs attention."""
    from mlops import status
    from mlops.target import on_stack

    return on_stack(target, status.show_status)


@app.command(rich_help_panel=DAILY)
def logs(job: Job = "", endpoint: Endpoint = "", minutes: Minutes = "30", target: Target = "") -> int:
    """Show the logs of the functions, of a job or of an endpoint."""
    from mlops import logs
    from mlops.target import on_stack

    return on_stack(target, lambda stack: logs.show_logs(stack, job, endpoint, minutes))


@app.command(rich_help_panel=INTERVENE)
def rollback(model: Model = "", to: To = "", reason: Reason = "", target: Target = "") -> int:
    """Go back to an earlier model. Later events won't undo it."""
    if not model:
        return refuse("say which model: make rollback MODEL=default [TO=training-job-...]")
    from mlops import rollback
    from mlops.target import on_stack

    return on_stack(target, lambda stack: rollback.run(stack, model, to, reason))


@app.command(rich_help_panel=INTERVENE)
def retrain(job: Job = "", target: Target = "") -> int:
    """Train again on the data of a job that has ended."""
    if not job:
        return refuse("say which training job: make retrain JOB=training-job-... (make status shows them)")
    from mlops import retrain
    from mlops.target import on_stack

    return on_stack(target, lambda stack: retrain.run(stack, job))


@app.command(rich_help_panel=INTERVENE)
def pause(stop_jobs: StopJobs = False, yes: Yes = False, target: Target = "") -> int:
    """Delete the endpoints and start no new jobs, until resume. Asks first."""
    from mlops import pause
    from mlops.target import on_stack

    return on_stack(target, lambda stack: pause.pause(stack, yes, stop_jobs))


@app.command(rich_help_panel=INTERVENE)
def resume(model: Model = "", target: Target = "") -> int:
    """Go on after a pause. With a model: recreate an endpoint that was deleted by hand."""
    from mlops import pause
    from mlops.target import on_stack

    if model:
        return on_stack(target, lambda stack: pause.resume_model(stack, model))
    return on_stack(target, pause.resume)


@app.command(rich_help_panel=INTERVENE)
def redrive(target: Target = "") -> int:
    """Send the failed events to their functions again."""
    from mlops import redrive
    from mlops.target import on_stack

    return on_stack(target, redrive.redrive)


@app.command(rich_help_panel=INTERVENE)
def erase(text: Erased = "", file: File = "", yes: Yes = False, target: Target = "") -> int:
    """Remove a text from uploads, snapshots, models and decisions. Asks first."""
    from mlops import erase
    from mlops.target import on_stack

    return on_stack(target, lambda stack: erase.run(stack, text, file, yes))


@app.command(rich_help_panel=AWS)
def package() -> int:
    """Build the functions' zips and the training source into build/."""
    import package

    return package.main([])


@app.command(rich_help_panel=AWS)
def doctor(target: Target = "") -> int:
    """Say what is wrong or missing, before and after a deployment: tools, account, quotas, images, stack, emails."""
    from mlops import doctor
    from mlops.target import reported

    return reported(lambda: doctor.run(target))


@app.command(rich_help_panel=AWS)
def plan(options: TerraformOptions = None, directory: Directory = CONFIGURATION) -> int:
    """Show what deploy would change."""
    from mlops import deploy

    return deploy.run("plan", options or [], directory)


@app.command(rich_help_panel=AWS)
def deploy(options: TerraformOptions = None, directory: Directory = CONFIGURATION) -> int:
    """Create or update the stack. Asks before it changes anything."""
    from mlops import deploy

    return deploy.run("apply", options or [], directory)


@app.command(rich_help_panel=AWS)
def destroy(data: DeleteData = "", confirm: Confirm = "", target: Target = "") -> int:
    """Delete the stack, but keep its data. Asks first."""
    from mlops import destroy

    return destroy.run(target, data, confirm)


@app.command(rich_help_panel=AWS)
def verify_aws(limit: Limit = "", yes: Yes = False, target: Target = "") -> int:
    """Run the whole pipeline once in your account, in a stack of its own that is deleted afterwards. Asks first."""
    from mlops import verify

    return verify.run(target, limit, yes)


def refuse(reason: str) -> int:
    """Say why a command cannot be carried out as given; the exit status."""
    complain(f"error: {reason}")
    return 2


def explain(error: typer.TyperException) -> int:
    """Say what is wrong with a command line, and where help is; the exit status."""
    context, variable = getattr(error, "ctx", None), getattr(getattr(error, "param", None), "envvar", None)
    text = error.format_message()
    if not text:
        # Help was shown, because there was no command.
        return error.exit_code
    if isinstance(error, typer.BadParameter) and isinstance(variable, str):
        # Typer checks the values of flags alone, and only the environment gives them any.
        refuse(f"{variable}={os.environ.get(variable, '')}: it is 1 or 0")
    else:
        refuse(text[0].lower() + text[1:])
    complain(f"{context.command_path if context else 'mlops'} --help shows what there is")
    return error.exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        status = app(arguments, prog_name="mlops", standalone_mode=False)
    except typer.TyperException as error:
        return explain(error)
    except typer.Abort:
        return 130
    return int(status or 0)
