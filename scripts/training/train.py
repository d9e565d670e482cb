"""Fine-tune a HuggingFace model to classify texts: the training job's program.

It runs under the contract of SageMaker's training containers, on AWS and on a laptop alike. Hyperparameters are its
arguments; the rest comes from the environment, free text included (the container passes arguments through a shell):
  SM_CHANNEL_TRAIN       folder of CSV files                   SM_MODEL_DIR        becomes model.tar.gz
  SM_CHANNEL_TEST        the hold-out, instead of a split      SM_OUTPUT_DATA_DIR  becomes output.tar.gz
  SM_CHANNEL_BASE_MODEL  folder of the base model, which       SM_OUTPUT_DIR       its file `failure` becomes the
                         wins over BASE_MODEL                                      job's FailureReason
  SM_CHANNEL_CHAMPION    the live model's model.tar.gz         SM_CHANNEL_CHAMPION_DATA  what it was trained on
  BASE_MODEL (Hub id or folder), TEXT_COLUMN, LABEL_COLUMN; optional: BASE_MODEL_REVISION, HUB_TOKEN_SECRET_ARN,
  CHAMPION_JOB (the live model's training job), MAX_ROWS_LEFT_OUT (share of the rows)
A failed run exits with 1, its reason written for the person who uploaded the data.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import transformers
from huggingface_hub.utils import disable_progress_bars
from transformers.trainer_callback import PrinterCallback
from transformers.utils import SAFE_WEIGHTS_NAME

import inference
from champion import HOLDOUT_FILE, Champion, carry_forward, compare, read_champion
from dataset import (
    DataError,
    Example,
    apply_holdout,
    check_channel,
    check_labels,
    one_label_per_text,
    read_channel,
    shown_label,
    sorted_labels,
    split,
    spread,
    write_csv,
)
from metrics import classification_metrics, write_json, write_metrics
from reader import MAX_LEFT_OUT, Findings, told
from text import plain

CLEAR_LEAD = 0.1  # of the best label's probability over the next one's: no other machine's rounding reverses that
EVALUATION_BATCH_SIZE = 64  # examples; without gradients more of them fit into memory than in training
GOLDEN_FILE = "golden.json"
GOLDEN_MAX_CHARACTERS = 512  # of a text, which is cut there; no label has more
GOLDEN_POOL = 200  # texts out of which the golden rows are chosen
GOLDEN_ROWS = 20
MAX_REASON_CHARACTERS = 1000  # SageMaker keeps the first 1024 of the failure file (DescribeTrainingJob, FailureReason)
PROGRESS_LINES = 20  # about that many per run ...
PROGRESS_MAX_STEPS = 50  # ... and never further apart than this
ROUGH_HOLDOUT = 30  # examples; with fewer, one of them moves the accuracy by more than three points
MIN_TOKENS = 4
SANITY_EXAMPLES = 2
WORDS = ("a", "the", "1", "一")  # any text will do, as long as the tokenizer has it
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
    base_model: str  # as set: a Hub id, a folder or an s3:// prefix
    base_model_dir: Path | None  # the channel that SageMaker filled from the s3:// prefix
    base_model_revision: str | None
    hub_token_secret_arn: str | None
    text_column: str
    label_column: str
    max_rows_left_out: float  # share of the rows, 0 to 1
    train_dir: Path
    test_dir: Path | None
    champion_job: str | None  # None: there is no live model
    champion_dir: Path | None
    champion_data_dir: Path | None
    model_dir: Path
    output_data_dir: Path

    @classmethod
    def read(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> "Settings":
        """Read the hyperparameters and the environment. Raises TrainingError that names what is wrong."""
        parser = _Parser(prog="train.py", allow_abbrev=False)
        parser.add_argument("--epochs", type=_number(int, 1, 1000), default=3)
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
        base_model_dir = environment.get("SM_CHANNEL_BASE_MODEL")
        champion_job, champion_dir = environment.get("CHAMPION_JOB"), environment.get("SM_CHANNEL_CHAMPION")
        champion_data_dir = environment.get("SM_CHANNEL_CHAMPION_DATA")
        if bool(champion_job) != bool(champion_dir):
            raise TrainingError(
                f"CHAMPION_JOB={champion_job or ''} and a channel named 'champion' belong together; only one is set."
            )
        return cls(
            **vars(hyperparameters),
            base_model=environment["BASE_MODEL"],
            base_model_dir=Path(base_model_dir) if base_model_dir else None,
            base_model_revision=environment.get("BASE_MODEL_REVISION") or None,
            hub_token_secret_arn=environment.get("HUB_TOKEN_SECRET_ARN") or None,
            text_column=environment["TEXT_COLUMN"],
            label_column=environment["LABEL_COLUMN"],
            max_rows_left_out=_share("MAX_ROWS_LEFT_OUT", environment.get("MAX_ROWS_LEFT_OUT"), MAX_LEFT_OUT),
            train_dir=Path(environment["SM_CHANNEL_TRAIN"]),
            test_dir=Path(test_dir) if test_dir else None,
            champion_job=champion_job or None,
            champion_dir=Path(champion_dir) if champion_dir else None,
            champion_data_dir=Path(champion_data_dir) if champion_data_dir else None,
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


class Progress(transformers.TrainerCallback):
    """Prints a line for each log of the trainer, and stops a run whose loss is not a number any more."""

    def on_log(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print epoch, step and the mean loss since the last line. Raises TrainingError for a NaN or infinite loss."""
        if not logs or "loss" not in logs:
            return
        epoch, epochs = math.ceil(state.epoch or 0), math.ceil(args.num_train_epochs)
        say(f"epoch {epoch}/{epochs}  step {state.global_step}/{state.max_steps}  loss {logs['loss']:.3f}")
        _require_finite("training loss", logs["loss"], args.learning_rate)


def say(line: str) -> None:
    """Print a line at once: the job's log is read while it trains.

    In one piece: unbuffered, print writes a line's end by itself, which SageMaker's toolkit logs as a blank line.
    """
    print(plain(line) + "\n", end="", flush=True)


def _require_finite(name: str, value: float, learning_rate: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"The {name} became {value}: training diverged. Lower learning_rate (now {learning_rate:g}), for example "
            "to 2e-5, and train again."
        )


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
    room = TOLD_MAX_ROWS - 3  # two for seen_tokens, one for the rest
    rest = {"more": f"{len(rows) - room:,} more lines, in the job's log"} if len(rows) > room else {}
    return dict([*rows.items()][:room]) | rest


def seen_tokens(examples: Sequence[Example], items: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """Return for metrics.json what the model does not see of the texts.

    That is how many are cut at its maximum length, and the share of the remaining tokens that stand for what the base
    model does not know. items: the examples' tokens, as encode returns them.
    """
    longest = tokenizer.model_max_length
    full = [example.text for example, item in zip(examples, items, strict=True) if len(item["input_ids"]) == longest]
    cut = 0
    for start in range(0, len(full), TEXTS_AT_ONCE):
        encoded = inference.tokenize(full[start : start + TEXTS_AT_ONCE], tokenizer, longest + 1)
        cut += sum(len(tokens) > longest for tokens in encoded["input_ids"])
    unknown_id = tokenizer.unk_token_id
    own = [token for token in tokenizer.all_special_ids if token != unknown_id]
    tokens = sum(len(item["input_ids"]) - sum(map(item["input_ids"].count, own)) for item in items)
    unknown = sum(item["input_ids"].count(unknown_id) for item in items) if unknown_id is not None else 0
    return {"max_length": longest, "cut_texts": cut, "unknown_token_share": round(unknown / max(tokens, 1), 6)}


def told_tokens(seen: Mapping[str, Any], texts: int) -> dict[str, str]:
    """Return what seen_tokens found, of so many texts, as rows for people."""
    rows = {}
    if cut := seen["cut_texts"]:
        rows["texts cut"] = f"{cut:,} of {texts:,} ({100 * cut / texts:.1f} %), at {seen['max_length']:,} tokens"
    if share := seen["unknown_token_share"]:
        shown = f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %"
        rows["unknown tokens"] = f"{shown} of the texts' tokens stand for words that the base model does not know"
    return rows


def read_hub_token(secret_arn: str) -> str:
    """Return the HuggingFace token that a Secrets Manager secret holds: plain, or as {"token": "..."}.

    Raises TrainingError, which never contains the secret, when it cannot be read.
    """
    import boto3  # in every SageMaker training image; a laptop without a secret need not have it
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        region = secret_arn.split(":")[3]
        secret = boto3.client("secretsmanager", region_name=region).get_secret_value(SecretId=secret_arn)
        text = secret["SecretString"].strip()
    except (BotoCoreError, ClientError, IndexError, KeyError, ValueError) as error:
        raise TrainingError(
            f"The HuggingFace token cannot be read from HUB_TOKEN_SECRET_ARN={secret_arn} "
            f"({_one_line(error)}). Check that the secret exists as text and that the training role may read it."
        ) from error
    try:
        token = json.loads(text).get("token", "") if text.startswith("{") else text
    except ValueError:
        token = ""
    if not isinstance(token, str) or not token:
        raise TrainingError(
            f'The secret {secret_arn} holds no token: it must be the token itself or {{"token": "..."}}.'
        )
    return token


def load_base_model(settings: Settings, labels: Sequence[str]) -> inference.Classifier:
    """Load the base model with a new classification head for the labels, and its tokenizer.

    The tokenizer's model_max_length becomes the length that is trained on, so that serving cuts texts where training
    did. Raises TrainingError when the model cannot be loaded.
    """
    name, revision = settings.base_model, settings.base_model_revision
    folder = settings.base_model_dir or (Path(name) if Path(name).is_absolute() else None)
    if folder is None and name.startswith("s3://"):
        raise TrainingError(f"BASE_MODEL={name} needs the channel 'base_model', which the job was started without.")
    if folder is not None and not (folder / "config.json").is_file():
        raise TrainingError(
            f"BASE_MODEL={name} is not a model: there is no config.json directly in {folder}. Give the folder (or the "
            "s3:// prefix) that holds config.json, the weights and the tokenizer, or a HuggingFace Hub id."
        )
    source: dict[str, Any] = {} if folder else {"revision": revision}
    if settings.hub_token_secret_arn and not folder:
        source["token"] = read_hub_token(settings.hub_token_secret_arn)
    path = str(folder or name)
    # Neither code nor pickles from whoever made the model.
    source["trust_remote_code"] = False
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **source)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type="single_label_classification",
            ignore_mismatched_sizes=True,  # a base with a head of other labels gets a new one
            dtype=torch.float32,  # a base stored in half precision would train badly unconverted
            use_safetensors=True,
            **source,
        )
    except Exception as error:  # the libraries raise a dozen unrelated types for this one problem
        if isinstance(error, OSError) and SAFE_WEIGHTS_NAME in str(error):
            raise TrainingError(
                f"BASE_MODEL={name}, revision {revision or 'not set'}, has no weights as {SAFE_WEIGHTS_NAME}. Other "
                "files, such as pytorch_model.bin, can run code when they are loaded, so they are not. Use a model or "
                "a revision that has it, or a folder or an s3:// prefix with a copy that save_pretrained wrote."
            ) from error
        raise TrainingError(
            f"The base model cannot be loaded: BASE_MODEL={name}, revision {revision or 'not set'} "
            f"({type(error).__name__}: {_one_line(error)[:400]}). Check the name and the revision, that the training "
            "job reaches the HuggingFace Hub, and for a private or gated model HUB_TOKEN_SECRET_ARN; or give a folder "
            "or an s3:// prefix with the model's files."
        ) from error

    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise TrainingError(f"BASE_MODEL={name} has no padding token, so it cannot train in batches. Use another.")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    classifier = inference.Classifier(tokenizer, model)
    tokenizer.model_max_length = usable_length(classifier, settings)
    if settings.max_length > tokenizer.model_max_length:
        say(
            f"max_length {settings.max_length} is more than the base model takes: {tokenizer.model_max_length} tokens "
            "are used"
        )
    return classifier


def usable_length(classifier: inference.Classifier, settings: Settings) -> int:
    """Return how many tokens a text may have: max_length, or what the model takes if that is less.

    Two texts of that length go through the model, as in training, before any money is spent. Raises TrainingError when
    it does not take them, or when tokenizer and model do not belong together.
    """
    tokenizer, model = classifier
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise TrainingError(
            f"BASE_MODEL={settings.base_model}: the tokenizer has {len(tokenizer)} tokens, and the model knows "
            f"{known}. They do not belong together. Use the tokenizer that the model was saved with."
        )
    positions = int(getattr(model.config, "max_position_embeddings", None) or 0)
    longest = min(settings.max_length, int(tokenizer.model_max_length))
    longest = min(longest, positions) if positions > 0 else longest  # XLNet says -1: no limit
    # RoBERTa and its kind number positions from behind the padding token's, and lose as many.
    problem: Exception | None = None
    for length in (longest, min(longest, positions - (tokenizer.pad_token_id or 0) - 1)):
        if length < MIN_TOKENS:
            break
        try:
            shape = tuple(forward(classifier, length).shape)
        except Exception as error:  # noqa: BLE001 - each architecture has its own
            problem = problem or error
            continue
        if shape == (2, model.config.num_labels):
            return length
        raise TrainingError(
            f"BASE_MODEL={settings.base_model} gives {shape} scores for 2 texts, instead of one for each of "
            f"{model.config.num_labels} labels. Use another base model."
        )
    raise TrainingError(
        f"BASE_MODEL={settings.base_model} does not take texts of {longest} tokens"
        + (f" ({type(problem).__name__}: {_one_line(problem)[:400]})" if problem else "")
        + ". Set a smaller max_length, or use another base model."
    ) from problem


def forward(classifier: inference.Classifier, length: int) -> Any:
    """Return the scores, 2 x labels, that the model gives two texts of so many tokens and one, on the CPU."""
    tokenizer, model = classifier
    word = next((token for token in WORDS if tokenizer(token, add_special_tokens=False)["input_ids"]), WORDS[0])
    encoded = tokenizer(
        [" ".join([word] * length), word], truncation=True, max_length=length, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        return model.eval()(**encoded).logits


def encode(examples: Sequence[Example], labels: Sequence[str], tokenizer: Any) -> list[dict[str, Any]]:
    """Return one item per example: its tokens, cut at the model's maximum length and not padded, and label index."""
    index = {label: position for position, label in enumerate(labels)}
    items = []
    for start in range(0, len(examples), TEXTS_AT_ONCE):
        some = examples[start : start + TEXTS_AT_ONCE]
        encoded = inference.tokenize([example.text for example in some], tokenizer)
        items += [
            {**{key: values[row] for key, values in encoded.items()}, "labels": index[example.label]}
            for row, example in enumerate(some)
        ]
    return items


def fine_tune(
    settings: Settings, classifier: inference.Classifier, items: list[dict[str, Any]]
) -> tuple[transformers.Trainer, float]:
    """Train the classifier's model in place. Returns the trainer and the seconds that it took.

    Raises TrainingError when the loss is no longer a number or the GPU's memory does not suffice.
    """
    steps = settings.epochs * math.ceil(len(items) / settings.batch_size)
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.gettempdir(),  # required, but nothing is written: no checkpoints, no reports
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH_SIZE,
        train_sampling_strategy="group_by_length",  # less padding: half the time per epoch on short messages
        use_cpu=not torch.cuda.is_available(),  # not a Mac's GPU: containers and the model server have none
        fp16=torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        logging_steps=max(1, min(PROGRESS_MAX_STEPS, steps // PROGRESS_LINES)),
        logging_nan_inf_filter=False,  # it would show a diverged loss as a plausible number
    )
    trainer = transformers.Trainer(
        classifier.model,
        arguments,
        train_dataset=items,
        data_collator=transformers.DataCollatorWithPadding(classifier.tokenizer),
        processing_class=classifier.tokenizer,
        preprocess_logits_for_metrics=_best_two,
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    try:
        trainer.train()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"The GPU's memory does not suffice for batch_size {settings.batch_size} and max_length "
            f"{settings.max_length}. Lower one of them, or use a larger instance type."
        ) from error
    # The trainer groups evaluation by length as well, which shuffles it: predictions must stay in the rows' order.
    trainer.args.train_sampling_strategy = "sequential"
    return trainer, time.monotonic() - started


def _best_two(logits: Any, _: Any) -> Any:
    """The two largest probabilities of each row, and their indices: all logits of thousands of labels are gigabytes."""
    best = (logits[0] if isinstance(logits, tuple) else logits).float().softmax(dim=-1).topk(2, dim=-1)
    return best.values, best.indices


def save(classifier: inference.Classifier, model_dir: Path) -> None:
    """Write the weights (safetensors), config, tokenizer and the serving code into the model folder."""
    classifier.model.save_pretrained(model_dir)
    classifier.tokenizer.save_pretrained(model_dir)
    (model_dir / "code").mkdir(exist_ok=True)
    shutil.copyfile(inference.__file__, model_dir / "code" / "inference.py")


def check_saved_model(
    classifier: inference.Classifier, holdout: Sequence[Example], best_two: Any, labels: Sequence[str]
) -> None:
    """Compare the answers of the saved model, loaded as the endpoint will, with the trainer's.

    `best_two`: two arrays, hold-out examples x 2: the largest probabilities, and the indices of their labels. The rows
    compared are the clearest ones, of different predicted labels where there are any: neither the precision nor the
    batch changes their label.
    Raises TrainingError when an answer differs: no model is better than one that serves something else.
    """
    scores, predicted = best_two
    clearest: dict[int, int] = {}  # row by predicted label
    for row in sorted(range(len(holdout)), key=lambda row: scores[row][1] - scores[row][0]):
        clearest.setdefault(int(predicted[row][0]), row)
    rows = list(clearest.values())[:SANITY_EXAMPLES]
    answers = inference.predict_fn({"inputs": [holdout[row].text for row in rows]}, classifier)
    for row, answer in zip(rows, answers, strict=True):
        best, second = (labels[index] for index in predicted[row])
        nearly_tied = scores[row][0] - scores[row][1] < CLEAR_LEAD
        if answer["label"] != best and not (nearly_tied and answer["label"] == second):
            raise TrainingError(
                f"The saved model does not answer as the trained one: {shown_label(answer['label'])} instead of "
                f"{shown_label(best)} for a hold-out text. It was not handed over. Try another BASE_MODEL."
            )
    say(f"saved model: loads and answers as trained ({len(rows)} hold-out texts)")


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
    return [{"text": example.text, **answers[example.text][0]} for example in rows]


def make_readable(folder: Path) -> None:
    """Let every user read the folder: what is written there keeps its mode in model.tar.gz.

    A serverless endpoint's container does not run as root and has the permissions of "other" (developer guide,
    "Troubleshooting", serverless endpoints).
    """
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def run(settings: Settings) -> None:
    """Read, split, train, evaluate, save and check. Raises DataError or TrainingError with the reason."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(settings, Path(scratch))


def _run(settings: Settings, scratch: Path) -> None:
    train, holdout, told_of_files, champion = read_data(settings, scratch)
    check_labels(train)
    labels = sorted_labels(train)

    transformers.set_seed(settings.seed)  # python, numpy and torch, before the new head gets its random weights
    say(f"base model: {settings.base_model}  revision: {settings.base_model_revision or 'not set'}")
    classifier = load_base_model(settings, labels)
    items = encode(train, labels, classifier.tokenizer)
    held_out_items: Any = encode(holdout, labels, classifier.tokenizer)  # a list is not the type that it asks for
    seen = seen_tokens([*train, *holdout], [*items, *held_out_items], classifier.tokenizer)
    told_of_tokens = told_tokens(seen, len(train) + len(holdout))
    for what, text in told_of_tokens.items():
        say(f"data: {what}: {text}")
    trainer, seconds = fine_tune(settings, classifier, items)

    result: Any = trainer.predict(held_out_items, metric_key_prefix="eval")
    eval_loss = float(result.metrics["eval_loss"])
    _require_finite("loss on the hold-out", eval_loss, settings.learning_rate)
    figures = classification_metrics(result.label_ids.tolist(), result.predictions[1][:, 0].tolist())
    figures["eval_loss"] = eval_loss
    comparison = None
    if champion:
        classifier.model.eval()
        comparison = compare(champion, classifier, labels, train, holdout)
        for judged in comparison["sets"]:
            for which in ("live", "new"):
                values = "  ".join(f"{name} {value:.4f}" for name, value in judged[which].items())
                say(f"{judged['name']}, {judged['rows']} rows, {which} model:  {values}")
        if comparison["note"]:
            say(f"live model: {comparison['note']}")
    say("  ".join(["hold-out:", *(f"{name} {value:.4f}" for name, value in figures.items())]))
    folders = (settings.model_dir, settings.output_data_dir)
    write_metrics(
        {
            **figures,
            "train_examples": len(train),
            "holdout_examples": len(holdout),
            "label_count": len(labels),
            **seen,
            "told": told_of_files | told_of_tokens,
            "base_model": settings.base_model,
            "base_model_revision": settings.base_model_revision,
            "seed": settings.seed,
            "train_seconds": round(seconds, 1),
            "champion": comparison,
        },
        *folders,
    )
    save(classifier, settings.model_dir)
    write_csv(settings.model_dir / HOLDOUT_FILE, carry_forward(champion, holdout, labels))
    served = inference.model_fn(settings.model_dir)
    check_saved_model(served, holdout, result.predictions, labels)
    write_json(GOLDEN_FILE, golden_rows(served, holdout), *folders)
    make_readable(settings.model_dir)
    say(f"done: trained in {seconds:.1f} s")


def write_failure(reason: str, environment: Mapping[str, str]) -> None:
    """Print the reason, and leave it where SageMaker makes it the job's FailureReason."""
    reason = plain(reason, MAX_REASON_CHARACTERS)
    print(f"failed: {reason}", file=sys.stderr, flush=True)
    if output_dir := environment.get("SM_OUTPUT_DIR"):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        (Path(output_dir) / "failure").write_text(reason, encoding="utf-8")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the program. Returns its exit code: 0, or 1 with the reason in the failure file."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    try:
        run(Settings.read(arguments, environment))
    except (DataError, TrainingError) as error:
        if error.__cause__:
            traceback.print_exception(error.__cause__)
        write_failure(str(error), environment)
        return 1
    except Exception as error:  # noqa: BLE001 - the outermost handler: every failure of a job needs its reason
        traceback.print_exc()
        write_failure(
            f"Training stopped with an unexpected {type(error).__name__}: {_one_line(error)} "
            "(the job's log has the full traceback).",
            environment,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
