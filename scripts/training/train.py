"""Train the best classifier of texts that data and time allow: the training job's program.

It runs under the contract of SageMaker's training containers, on AWS and on a laptop alike. Hyperparameters are its
arguments; the rest comes from the environment, free text included (the container passes arguments through a shell):
  SM_CHANNEL_TRAIN       folder of CSV files                   SM_MODEL_DIR        becomes model.tar.gz
  SM_CHANNEL_TEST        the hold-out, instead of a split      SM_OUTPUT_DATA_DIR  becomes output.tar.gz
  SM_CHANNEL_BASE_MODEL  folder of the base model, which       SM_OUTPUT_DIR       its file `failure` becomes the
                         wins over BASE_MODEL                                      job's FailureReason
  SM_CHANNEL_CHAMPION    the live model's model.tar.gz         SM_CHANNEL_CHAMPION_DATA  what it was trained on
  BASE_MODEL (Hub id, folder, or auto: BASE_MODEL_ENGLISH or BASE_MODEL_MULTILINGUAL, each id@revision), TEXT_COLUMN,
  LABEL_COLUMN; optional: BASE_MODEL_REVISION, HUB_TOKEN_SECRET_ARN, CHAMPION_JOB (the live model's training job),
  MAX_ROWS_LEFT_OUT (share of the rows), CANDIDATES (auto, or some of ladder.NAMES), MAX_RUNTIME_SECONDS (of the job),
  CHECKPOINT_DIR (a folder that outlives an interruption), WORLD_SIZE and the like (set by the launcher)
A failed run exits with 1, its reason written for the person who uploaded the data.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import base_model
import frozen
import inference
import ladder
import parallel
import words
from base_model import AUTO, BaseModelError, Source
from champion import HOLDOUT_FILE, Champion, answer, carry_forward, compare, read_champion
from dataset import (
    DataError,
    Example,
    apply_holdout,
    check_channel,
    check_labels,
    digest,
    one_label_per_text,
    read_channel,
    shown_label,
    sorted_labels,
    split,
    spread,
    write_csv,
)
from fine_tuned import Plan
from metrics import classification_metrics, write_json, write_metrics
from reader import MAX_LEFT_OUT, Findings, told
from text import one_line, plain

ALL_CANDIDATES = "auto"
CLEAR_LEAD = 0.1  # of the best label's probability over the next one's: no other machine's rounding reverses that
GOLDEN_FILE = "golden.json"
GOLDEN_MAX_CHARACTERS = 512  # of a text, which is cut there; no label has more
GOLDEN_POOL = 200  # texts out of which the golden rows are chosen
GOLDEN_ROWS = 20
MAX_REASON_CHARACTERS = 1000  # SageMaker keeps the first 1024 of the failure file (DescribeTrainingJob, FailureReason)
ROUGH_HOLDOUT = 30  # examples; with fewer, one of them moves the accuracy by more than three points
SANITY_EXAMPLES = 32
SAME_PROBABILITY = 1e-4  # what batches of other shapes, or a GPU, may change
# Of the time limit, for what follows the choice: judging, comparing with the live model, saving and uploading. What
# came before the program counts as well: SageMaker installs the requirements first.
RESERVE = 0.1
INT8_MAX_CHANGED = 0.003  # share of the hold-out's texts whose label may be another one
INT8_LEAST_GAIN = 0.1  # of the time that an answer takes
INT8_TRIALS = 20  # answers of one text each, to time them
INT8_TEXTS = 2000  # of the hold-out
TEXTS_AT_ONCE = 256  # through the tokenizer, which keeps all of a text in memory, not just the part that is used
# What metrics.json tells of the data, as the model evaluator takes it.
TOLD_MAX_ROWS = 20
TOLD_MAX_CHARACTERS = 1200
FILE_NAME_MAX_CHARACTERS = 60  # in the name of such a row, beside what it is


class TrainingError(Exception):
    """Training cannot continue; the text is the reason that people read, and says what to do."""


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on, validated."""

    epochs: int
    learning_rate: float
    batch_size: int  # examples
    max_length: int  # tokens
    holdout_fraction: float  # of each label's distinct texts, 0 to 1 exclusive
    seed: int
    base_models: tuple[Source, ...]  # one, or an English and a multilingual one: whichever suits the texts
    hub_token_secret_arn: str | None
    text_column: str
    label_column: str
    max_rows_left_out: float  # share of the rows, 0 to 1
    train_dir: Path
    test_dir: Path | None
    champion_job: str | None  # None: there is no live model
    champion_dir: Path | None
    champion_data_dir: Path | None
    candidates: frozenset[str]  # of ladder.NAMES
    max_runtime_seconds: float  # of the job; infinite: no limit
    checkpoint_dir: Path | None
    model_dir: Path
    output_data_dir: Path

    @classmethod
    def read(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> "Settings":
        """Read the hyperparameters and the environment. Raises TrainingError that names what is wrong."""
        parser = _Parser(prog="train.py", allow_abbrev=False)
        parser.add_argument("--epochs", type=_number(int, 1, 1000), default=2)
        parser.add_argument("--learning_rate", type=_number(float, 1e-8, 1.0), default=5e-5)
        parser.add_argument("--batch_size", type=_number(int, 1, 4096), default=16)
        parser.add_argument("--max_length", type=_number(int, 4, 100_000), default=128)
        parser.add_argument("--holdout_fraction", type=_number(float, 0.01, 0.9), default=0.2)
        parser.add_argument("--seed", type=_number(int, 0, 2**32 - 1), default=42)
        hyperparameters = parser.parse_args(arguments)

        missing = [
            name for name in ("SM_CHANNEL_TRAIN", "SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR") if not environment.get(name)
        ]
        if missing:
            raise TrainingError(
                f"The environment lacks {', '.join(missing)}, which SageMaker sets. Is there a channel named 'train'?"
            )
        # Their defaults are Terraform's.
        unset = [name for name in ("BASE_MODEL", "LABEL_COLUMN", "TEXT_COLUMN") if not environment.get(name)]
        if unset:
            raise TrainingError(f"The environment lacks {', '.join(unset)}, which the training orchestrator sets.")
        test_dir = environment.get("SM_CHANNEL_TEST")
        base_model_dir, checkpoint_dir = environment.get("SM_CHANNEL_BASE_MODEL"), environment.get("CHECKPOINT_DIR")
        champion_job, champion_dir = environment.get("CHAMPION_JOB"), environment.get("SM_CHANNEL_CHAMPION")
        champion_data_dir = environment.get("SM_CHANNEL_CHAMPION_DATA")
        if bool(champion_job) != bool(champion_dir):
            raise TrainingError(
                f"CHAMPION_JOB={champion_job or ''} and a channel named 'champion' belong together; only one is set."
            )
        sources: tuple[Source, ...]
        if environment["BASE_MODEL"] == AUTO:
            names = ("BASE_MODEL_ENGLISH", "BASE_MODEL_MULTILINGUAL")
            unset = [name for name in names if not environment.get(name)]
            if unset:
                raise TrainingError(f"BASE_MODEL={AUTO} needs {unset[0]}, which the training orchestrator sets.")
            sources = tuple(Source.read(environment[name]) for name in names)
        else:
            folder = Path(base_model_dir) if base_model_dir else None
            sources = (Source(environment["BASE_MODEL"], environment.get("BASE_MODEL_REVISION") or None, folder),)
        return cls(
            **vars(hyperparameters),
            base_models=sources,
            hub_token_secret_arn=environment.get("HUB_TOKEN_SECRET_ARN") or None,
            text_column=environment["TEXT_COLUMN"],
            label_column=environment["LABEL_COLUMN"],
            max_rows_left_out=_share("MAX_ROWS_LEFT_OUT", environment.get("MAX_ROWS_LEFT_OUT"), MAX_LEFT_OUT),
            train_dir=Path(environment["SM_CHANNEL_TRAIN"]),
            test_dir=Path(test_dir) if test_dir else None,
            champion_job=champion_job or None,
            champion_dir=Path(champion_dir) if champion_dir else None,
            champion_data_dir=Path(champion_data_dir) if champion_data_dir else None,
            candidates=_candidates(environment.get("CANDIDATES") or ALL_CANDIDATES),
            max_runtime_seconds=_seconds("MAX_RUNTIME_SECONDS", environment.get("MAX_RUNTIME_SECONDS")),
            checkpoint_dir=Path(checkpoint_dir) if checkpoint_dir else None,
            model_dir=Path(environment["SM_MODEL_DIR"]),
            output_data_dir=Path(environment["SM_OUTPUT_DATA_DIR"]),
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TrainingError(f"Wrong hyperparameter: {message}. Correct it in the hyperparameters setting.")


def _number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            whole = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {whole} from {least:g} to {most:g}, not {text!r}")
        return number

    return parse


def _share(name: str, text: str | None, default: float) -> float:
    if not text:
        return default
    try:
        return _number(float, 0, 1)(text)
    except argparse.ArgumentTypeError as error:
        raise TrainingError(f"{name} {error}: it is a share of the rows. Correct it in Terraform.") from None


def _seconds(name: str, text: str | None) -> float:
    if not text:
        return math.inf
    try:
        return _number(float, 1, 1e9)(text)
    except argparse.ArgumentTypeError as error:
        raise TrainingError(f"{name} {error}, in seconds. Correct it in Terraform.") from None


def _candidates(text: str) -> frozenset[str]:
    names = frozenset(ladder.NAMES if text == ALL_CANDIDATES else text.split(","))
    if unknown := sorted(names - {*ladder.NAMES}):
        raise TrainingError(
            f"CANDIDATES has {unknown[0]!r}: it must be {ALL_CANDIDATES}, or some of {', '.join(ladder.NAMES)}, with "
            "commas between. Correct it in Terraform or in settings.json."
        )
    return names


def say(line: str) -> None:
    """Print a line at once: the job's log is read while it trains.

    In one piece: unbuffered, print writes a line's end by itself, which SageMaker's toolkit logs as a blank line.
    """
    if parallel.rank() == 0:
        print(plain(line) + "\n", end="", flush=True)


class Data(NamedTuple):
    """What a run trains on and is judged on."""

    train: list[Example]
    holdout: list[Example]
    told: dict[str, str]  # what the files hold, for people
    champion: Champion | None


def read_data(settings: Settings, scratch: Path) -> Data:
    """Read the channels; the live model is unpacked below the scratch folder. Raises DataError."""
    examples, found = read_channel(settings.train_dir, settings.text_column, settings.label_column)
    say_found(found)
    if settings.test_dir is None:
        check_channel(examples, found, settings.max_rows_left_out)
    say(f"data: {len(examples)} examples with {len(sorted_labels(examples))} labels")
    champion = None
    if settings.champion_job and settings.champion_dir:
        champion = read_champion(
            settings.champion_job,
            settings.champion_dir,
            settings.champion_data_dir,
            scratch / "champion",
            (settings.text_column, settings.label_column),
            sorted_labels(examples),
        )
        say(f"live model: {champion.job}, with {len(champion.holdout)} rows that nobody trains on. {champion.problem}")
    held_out_before = champion.held_out if champion else frozenset()
    if settings.test_dir is None:
        train, holdout = split(examples, settings.holdout_fraction, settings.seed, held_out_before)
    else:
        holdout, found_in_test = read_channel(settings.test_dir, settings.text_column, settings.label_column)
        found_in_test = {f"test/{name}": findings for name, findings in found_in_test.items()}
        say_found(found_in_test)
        found |= found_in_test
        train = apply_holdout(examples, holdout, held_out_before)
        say(f"data: {len(examples) - len(train)} training rows left out: their text is one to judge models on")
    say(f"data: {len(train)} examples to train on, {len(holdout)} held out")
    if len(holdout) < ROUGH_HOLDOUT:
        say(f"data: only {len(holdout)} held out: the figures below are rough; more rows make them dependable")
    return Data(train, holdout, told_rows(found), champion)


def say_found(found: Mapping[str, Findings]) -> None:
    """Print what was found in a channel's files."""
    for name, findings in found.items():
        for what, text in told(findings).items():
            say(f"data: {name}: {what}: {text}")


def told_rows(found: Mapping[str, Findings]) -> dict[str, str]:
    """Return what the files hold, as rows (name, text) for metrics.json; of many files what there is room for."""
    rows = {
        what if len(found) == 1 else f"{plain(name, FILE_NAME_MAX_CHARACTERS)}: {what}": plain(
            text, TOLD_MAX_CHARACTERS
        )
        for name, findings in found.items()
        for what, text in told(findings).items()
    }
    room = TOLD_MAX_ROWS - 6  # two for seen_tokens, three for the model, one for the rest
    rest = {"more": f"{len(rows) - room:,} more lines, in the job's log"} if len(rows) > room else {}
    return dict([*rows.items()][:room]) | rest


def seen_tokens(texts: Sequence[str], settings: Settings, tokenizer: Any | None) -> dict[str, Any]:
    """Return for metrics.json what the model does not see of the texts.

    That is how many are cut at its maximum length, and the share of the remaining tokens that stand for what the base
    model does not know. tokenizer: None for a model of words alone.
    """
    if tokenizer is None:
        cut = sum(len(text) > inference.WORDS_MAX_CHARACTERS for text in texts)
        return {"max_length": settings.max_length, "cut_texts": cut, "unknown_token_share": 0.0}
    longest, unknown_id = tokenizer.model_max_length, tokenizer.unk_token_id
    own = [token for token in tokenizer.all_special_ids if token != unknown_id]
    cut = tokens = unknown = 0
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start : start + TEXTS_AT_ONCE]
        full = []
        for text, ids in zip(some, inference.tokenize(some, tokenizer)["input_ids"], strict=True):
            tokens += len(ids) - sum(map(ids.count, own))
            unknown += ids.count(unknown_id) if unknown_id is not None else 0
            if len(ids) == longest:
                full.append(text)
        if full:
            cut += sum(len(ids) > longest for ids in inference.tokenize(full, tokenizer, longest + 1)["input_ids"])
    return {"max_length": longest, "cut_texts": cut, "unknown_token_share": round(unknown / max(tokens, 1), 6)}


def told_tokens(seen: Mapping[str, Any], texts: int, words_alone: bool) -> dict[str, str]:
    """Return what seen_tokens found, of so many texts, as rows for people. words_alone: it was given no tokenizer."""
    rows = {}
    if cut := seen["cut_texts"]:
        most = f"{inference.WORDS_MAX_CHARACTERS:,} characters" if words_alone else f"{seen['max_length']:,} tokens"
        rows["texts cut"] = f"{cut:,} of {texts:,} ({100 * cut / texts:.1f} %), at {most}"
    if share := seen["unknown_token_share"]:
        shown = f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %"
        rows["unknown tokens"] = f"{shown} of the texts' tokens stand for words that the base model does not know"
    return rows


def save(classifier: inference.Classifier, model_dir: Path) -> None:
    """Write the members (safetensors and JSON), what binds them, and the serving code into the model folder."""
    (model_dir / "code").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(inference.__file__, model_dir / "code" / "inference.py")
    members = []
    for member, weight, temperature in zip(
        classifier.members, classifier.weights, classifier.temperatures, strict=True
    ):
        if isinstance(member, inference.WordsMember):
            words.save(member, model_dir)
        elif isinstance(member, inference.EncoderMember):
            frozen.save(member, model_dir)
        kind = "words" if isinstance(member, inference.WordsMember) else "encoder"
        members.append({"kind": kind, "weight": weight, "temperature": temperature})
    write_details(
        {"format": inference.FORMAT, "labels": classifier.labels, "members": members, "int8": False}, model_dir
    )


def write_details(details: Mapping[str, Any], model_dir: Path) -> None:
    """Write model.json."""
    (model_dir / "model.json").write_text(json.dumps(details, ensure_ascii=False), encoding="utf-8")


def check_saved_model(served: inference.Classifier, trained: inference.Classifier, holdout: Sequence[Example]) -> None:
    """Compare the probabilities of the saved model, loaded as the endpoint will, with those of the trained one.

    Raises TrainingError when they differ: no model is better than one that serves something else.
    """
    texts = any_texts(holdout, SANITY_EXAMPLES)
    of_served, of_trained = served.probabilities(texts), trained.probabilities(texts)
    differences = (of_served - of_trained).abs().max(dim=-1).values
    row = int(differences.argmax())
    if not differences.max() <= SAME_PROBABILITY:
        shown = [shown_label(served.labels[int(of[row].argmax())]) for of in (of_served, of_trained)]
        raise TrainingError(
            f"The saved model does not answer as the trained one: {shown[0]} instead of {shown[1]}, or a score that "
            f"differs by {float(differences.max()):.4f}, for a hold-out text. It was not handed over. Try another "
            "BASE_MODEL."
        )
    say(f"saved model: loads and answers as trained ({len(texts)} hold-out texts)")


def any_texts(holdout: Sequence[Example], most: int) -> list[str]:
    """Return some of the hold-out's texts; which ones has nothing to do with their labels."""
    return sorted({example.text for example in holdout}, key=digest)[:most]


def try_int8(
    served: inference.Classifier, model_dir: Path, holdout: Sequence[Example]
) -> tuple[inference.Classifier, dict[str, Any] | None]:
    """Return the saved model with an encoder of 8-bit integers, where that answers faster and as well; and the figures.

    As well: at most INT8_MAX_CHANGED of the hold-out's texts get another label, so no metric of the hold-out can lose
    more; their own labels have no say in it. None where there is no encoder, or where it is on a GPU.
    """
    encoders = [member for member in served.members if isinstance(member, inference.EncoderMember)]
    if not encoders or encoders[0].encoder.model.device.type != "cpu":
        return served, None
    write_details({**served.details, "int8": True}, model_dir)
    quantized = inference.model_fn(model_dir)
    texts = any_texts(holdout, INT8_TEXTS)
    labels, of_int8 = (model.probabilities(texts).argmax(dim=-1) for model in (served, quantized))
    changed = float((labels != of_int8).float().mean())
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for trial in range(INT8_TRIALS):
        for int8, model in ((False, served), (True, quantized)):
            started = time.perf_counter()
            model.probabilities([texts[trial % len(texts)]])
            seconds[int8].append(time.perf_counter() - started)
    before, after = (statistics.median(seconds[int8]) for int8 in (False, True))
    chosen = changed <= INT8_MAX_CHANGED and after <= (1 - INT8_LEAST_GAIN) * before
    say(
        f"int8: {100 * changed:.1f} % of {len(texts)} hold-out texts get another label, one answer takes "
        f"{1000 * after:.1f} ms instead of {1000 * before:.1f}: {'served' if chosen else 'not served'}"
    )
    facts = {"served": chosen, "changed": round(changed, 5), "milliseconds": round(1000 * after, 2)}
    if not chosen:
        write_details({**served.details, "int8": False}, model_dir)
    return quantized if chosen else served, facts | {"milliseconds_before": round(1000 * before, 2)}


def golden_rows(classifier: inference.Classifier, holdout: Sequence[Example]) -> list[dict[str, Any]]:
    """Return hold-out texts with the saved model's answers, which the endpoint is checked against once it serves.

    A long text is cut, and answered as cut. At most GOLDEN_ROWS, of every label while there is room; where a label has
    clearly decided texts, those.
    """
    cut = one_label_per_text(Example(text[:GOLDEN_MAX_CHARACTERS].strip(), label) for text, label in holdout)
    pool = spread(cut, GOLDEN_POOL, even=True)
    request = {"inputs": [example.text for example in pool], "parameters": {"top_k": 2}}
    best_two = inference.predict_fn(request, classifier)
    answers = {example.text: ranked for example, ranked in zip(pool, best_two, strict=True)}

    def unclear(example: Example) -> bool:
        best, second = answers[example.text]
        return bool(best["score"] - second["score"] < CLEAR_LEAD)

    rows = spread(pool, GOLDEN_ROWS, even=True, last=unclear)
    # In one request, as the endpoint is asked: where two labels nearly tie, the texts beside a text decide.
    found = inference.predict_fn({"inputs": [example.text for example in rows]}, classifier)
    return [{"text": example.text, **answer} for example, answer in zip(rows, found, strict=True)]


def make_readable(folder: Path) -> None:
    """Let every user read the folder: what is written there keeps its mode in model.tar.gz.

    A serverless endpoint's container does not run as root and has the permissions of "other" (developer guide,
    "Troubleshooting", serverless endpoints).
    """
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def run(settings: Settings) -> None:
    """Read, split, train, evaluate, save and check. Raises DataError or TrainingError with the reason."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        _run(settings, Path(scratch), started)


def _run(settings: Settings, scratch: Path, started: float) -> None:
    train, holdout, told_of_files, champion = read_data(settings, scratch)
    check_labels(train)
    labels = sorted_labels(train)
    told_of_model: dict[str, str] = {}

    def load_encoder() -> inference.Encoder:
        source, why = settings.base_models[0], ""
        if len(settings.base_models) > 1:
            texts = [example.text for example in train]
            source, why = base_model.choose(settings.base_models, texts, settings.hub_token_secret_arn)
            told_of_model["base model"] = why
        say(f"base model: {source.name}  revision: {source.revision or 'not set'}  {why}")
        used.append(source)
        return base_model.load(source, settings.max_length, settings.hub_token_secret_arn, say)

    used: list[Source] = []
    outcome = ladder.climb(
        ladder.Task(
            train,
            labels,
            settings.candidates,
            load_encoder,
            lambda precision: Plan(
                settings.epochs, settings.learning_rate, settings.batch_size, settings.seed, precision
            ),
            started + (1 - RESERVE) * settings.max_runtime_seconds,
            # Each model answers the hold-outs, and the new one its own once more.
            3 * len(holdout) + 2 * len(champion.holdout if champion else ()),
            settings.checkpoint_dir,
            say,
        )
    )
    if parallel.rank():
        return
    trained, seconds = outcome.classifier, time.monotonic() - started
    told_of_model |= told_candidates(outcome)
    for what, text in told_of_model.items():
        say(f"{what}: {text}")

    save(trained, settings.model_dir)
    served = inference.model_fn(settings.model_dir)
    check_saved_model(served, trained, holdout)
    served, int8 = try_int8(served, settings.model_dir, holdout)
    tokenizers = [member.encoder.tokenizer for member in served.members if isinstance(member, inference.EncoderMember)]
    texts = [example.text for example in (*train, *holdout)]
    seen = seen_tokens(texts, settings, tokenizers[0] if tokenizers else None)
    told_of_tokens = told_tokens(seen, len(texts), not tokenizers)
    for what, text in told_of_tokens.items():
        say(f"data: {what}: {text}")

    answers = answer(served, holdout)
    figures = classification_metrics([example.label for example in holdout], [found.label for found in answers])
    figures["eval_loss"] = math.fsum(found.loss for found in answers) / len(answers)
    comparison = None
    if champion:
        comparison = compare(champion, served, labels, train, holdout)
        for judged in comparison["sets"]:
            for which in ("live", "new"):
                values = "  ".join(f"{name} {value:.4f}" for name, value in judged[which].items())
                say(f"{judged['name']}, {judged['rows']} rows, {which} model:  {values}")
        if comparison["note"]:
            say(f"live model: {comparison['note']}")
    say("  ".join(["hold-out:", *(f"{name} {value:.4f}" for name, value in figures.items())]))
    folders = (settings.model_dir, settings.output_data_dir)
    [source] = used or settings.base_models[:1]
    write_metrics(
        {
            **figures,
            "train_examples": len(train),
            "holdout_examples": len(holdout),
            "label_count": len(labels),
            **seen,
            "told": told_of_files | told_of_tokens | told_of_model,
            "base_model": source.name,
            "base_model_revision": source.revision,
            "seed": settings.seed,
            "train_seconds": round(seconds, 1),
            "candidates": outcome.table,
            "int8": int8,
            "champion": comparison,
        },
        *folders,
    )
    write_csv(settings.model_dir / HOLDOUT_FILE, carry_forward(champion, holdout, labels))
    write_json(GOLDEN_FILE, golden_rows(served, holdout), *folders)
    make_readable(settings.model_dir)
    say(f"done: trained in {seconds:.1f} s")


def told_candidates(outcome: ladder.Outcome) -> dict[str, str]:
    """Return what was chosen and what was tried, as rows for people."""
    chosen = outcome.chosen
    members = [f"{100 * weight:.0f} % {name}" for name, weight in zip(chosen.members, chosen.weights, strict=True)]
    tried = []
    for row in outcome.table:
        name = f"{row['name']} ({', '.join(row['members'])})" if len(row["members"]) > 1 else row["name"]
        figures = [] if row["macro_f1"] is None else [f"macro F1 {row['macro_f1']:.3f}, log loss {row['log_loss']:.3f}"]
        figures += [f"{row['seconds']:.0f} s", *([row["note"]] if row["note"] else [])]
        tried.append(f"{name}: {', '.join(figures)}")
    return {
        "chosen model": f"{chosen.name}: {', '.join(members)}" if len(members) > 1 else chosen.name,
        "candidates": plain("; ".join(tried), TOLD_MAX_CHARACTERS),
    }


def write_failure(reason: str, environment: Mapping[str, str]) -> None:
    """Print the reason, and leave it where SageMaker makes it the job's FailureReason."""
    reason = plain(reason, MAX_REASON_CHARACTERS)
    print(f"failed: {reason}", file=sys.stderr, flush=True)
    if output_dir := environment.get("SM_OUTPUT_DIR"):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        (Path(output_dir) / "failure").write_text(reason, encoding="utf-8")


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the program. Returns its exit code: 0, or 1 with the reason in the failure file."""
    try:
        parallel.start(environment)
        run(Settings.read(arguments, environment))
    except (BaseModelError, DataError, ladder.NoCandidate, TrainingError) as error:
        if error.__cause__:
            traceback.print_exception(error.__cause__)
        write_failure(str(error), environment)
        return 1
    except Exception as error:  # noqa: BLE001 - the outermost handler: every failure of a job needs its reason
        traceback.print_exc()
        write_failure(
            f"Training stopped with an unexpected {type(error).__name__}: {one_line(error)} "
            "(the job's log has the full traceback).",
            environment,
        )
        return 1
    finally:
        parallel.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
