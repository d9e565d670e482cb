"""The base model: chosen, loaded and tried before any money is spent."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from inference import Encoder, tokenize
from text import one_line

AUTO = "auto"
MIN_TOKENS = 4
WORDS = ("a", "the", "1", "一")  # any text will do, as long as the tokenizer has it
# Above either of these, a tokenizer was made for another language. An English one needs 0.28 tokens per character of
# English reviews (blanks not counted), 0.36 of text messages, 0.39 to 0.42 of German, Spanish or French, 0.5 of
# Vietnamese, 1 of Russian.
MAX_TOKENS_PER_CHARACTER = 0.375
MAX_UNKNOWN_SHARE = 0.01
MEASURED_TEXTS = 2000


class BaseModelError(Exception):
    """The base model cannot be used; the text says why and what to do."""


class Source(NamedTuple):
    """Where a base model comes from."""

    name: str  # as set: a Hub id, a folder or an s3:// prefix
    revision: str | None = None
    folder: Path | None = None  # the channel that SageMaker filled from the s3:// prefix

    @classmethod
    def read(cls, text: str) -> "Source":
        """Read "name@revision"."""
        name, _, revision = text.partition("@")
        return cls(name, revision or None)


class Fit(NamedTuple):
    """How well a tokenizer suits texts."""

    unknown_share: float  # of the tokens
    tokens_per_character: float

    @property
    def good(self) -> bool:
        """Whether the tokenizer was made for such texts."""
        return self.unknown_share <= MAX_UNKNOWN_SHARE and self.tokens_per_character <= MAX_TOKENS_PER_CHARACTER

    def __str__(self) -> str:
        unknown = f"{100 * self.unknown_share:.1f} % of the tokens unknown"
        return f"{unknown}, {self.tokens_per_character:.2f} tokens per character"


def measure(texts: Sequence[str], tokenizer: Any) -> Fit:
    """Return how well a tokenizer suits some of the texts, spread over all of them."""
    some = texts[:: max(len(texts) // MEASURED_TEXTS, 1)][:MEASURED_TEXTS]
    # Enough of each text to tell its language.
    tokens = [
        token
        for row in tokenize([text[:2000] for text in some], tokenizer, 2000, add_special_tokens=False)["input_ids"]
        for token in row
    ]
    characters = sum(len("".join(text[:2000].split())) for text in some)
    unknown = tokens.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
    return Fit(unknown / max(len(tokens), 1), len(tokens) / max(characters, 1))


def read_hub_token(secret_arn: str) -> str:
    """Return the HuggingFace token that a Secrets Manager secret holds: plain, or as {"token": "..."}.

    Raises BaseModelError, which never contains the secret, when it cannot be read.
    """
    import boto3  # in every SageMaker training image; a laptop without a secret need not have it
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        region = secret_arn.split(":")[3]
        secret = boto3.client("secretsmanager", region_name=region).get_secret_value(SecretId=secret_arn)
        text = secret["SecretString"].strip()
    except (BotoCoreError, ClientError, IndexError, KeyError, ValueError) as error:
        raise BaseModelError(
            f"The HuggingFace token cannot be read from HUB_TOKEN_SECRET_ARN={secret_arn} "
            f"({one_line(error)}). Check that the secret exists as text and that the training role may read it."
        ) from error
    try:
        token = json.loads(text).get("token", "") if text.startswith("{") else text
    except ValueError:
        token = ""
    if not isinstance(token, str) or not token:
        raise BaseModelError(
            f'The secret {secret_arn} holds no token: it must be the token itself or {{"token": "..."}}.'
        )
    return token


def choose(sources: Sequence[Source], texts: Sequence[str], secret_arn: str | None) -> tuple[Source, str]:
    """Return the English base model for texts that its tokenizer suits, else the multilingual one, and why, in words.

    sources: the English one and the multilingual one.
    Raises BaseModelError when the English one's tokenizer cannot be loaded.
    """
    english, multilingual = sources
    fit = measure(texts, _loaded(english, secret_arn, "AutoTokenizer"))
    chosen, other = (english, "") if fit.good else (multilingual, f"{english.name} was made for other texts: ")
    return chosen, f"{chosen.name} ({other}{fit})"


def load(source: Source, max_length: int, secret_arn: str | None, say: Callable[[str], None]) -> Encoder:
    """Load a base model and its tokenizer, on the GPU where there is one.

    The tokenizer's model_max_length becomes the length that is trained on, so that serving cuts texts where training
    did. Raises BaseModelError when the model cannot be loaded or used.
    """
    tokenizer = _loaded(source, secret_arn, "AutoTokenizer")
    model = _loaded(
        source,
        secret_arn,
        "AutoModel",
        dtype=torch.float32,  # a base stored in half precision would train badly unconverted
        use_safetensors=True,
    )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BaseModelError(
                f"BASE_MODEL={source.name} has no padding token, so it cannot train in batches. Use another."
            )
        tokenizer.pad_token = tokenizer.eos_token
    encoder = Encoder(tokenizer, model.eval())
    tokenizer.model_max_length = usable_length(encoder, source.name, max_length)
    if max_length > tokenizer.model_max_length:
        say(f"max_length {max_length} is more than the base model takes: {tokenizer.model_max_length} tokens are used")
    encoder.model.to(device())
    return encoder


def _loaded(source: Source, secret_arn: str | None, kind: str, **options: Any) -> Any:
    # Late: a job that needs no base model starts seconds earlier.
    import transformers
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import SAFE_WEIGHTS_NAME

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    name, revision, folder = source
    folder = folder or (Path(name) if Path(name).is_absolute() else None)
    if folder is None and name.startswith("s3://"):
        raise BaseModelError(f"BASE_MODEL={name} needs the channel 'base_model', which the job was started without.")
    if folder is not None and not (folder / "config.json").is_file():
        raise BaseModelError(
            f"BASE_MODEL={name} is not a model: there is no config.json directly in {folder}. Give the folder (or the "
            "s3:// prefix) that holds config.json, the weights and the tokenizer, or a HuggingFace Hub id."
        )
    if not folder:
        options["revision"] = revision
        if secret_arn:
            options["token"] = read_hub_token(secret_arn)
    try:
        # Neither code nor pickles from whoever made the model.
        return getattr(transformers, kind).from_pretrained(str(folder or name), trust_remote_code=False, **options)
    except Exception as error:  # the libraries raise a dozen unrelated types for this one problem
        if isinstance(error, OSError) and SAFE_WEIGHTS_NAME in str(error):
            raise BaseModelError(
                f"BASE_MODEL={name}, revision {revision or 'not set'}, has no weights as {SAFE_WEIGHTS_NAME}. Other "
                "files, such as pytorch_model.bin, can run code when they are loaded, so they are not. Use a model or "
                "a revision that has it, or a folder or an s3:// prefix with a copy that save_pretrained wrote."
            ) from error
        raise BaseModelError(
            f"The base model cannot be loaded: BASE_MODEL={name}, revision {revision or 'not set'} "
            f"({type(error).__name__}: {one_line(error)[:400]}). Check the name and the revision, that the training "
            "job reaches the HuggingFace Hub, and for a private or gated model HUB_TOKEN_SECRET_ARN; or give a folder "
            "or an s3:// prefix with the model's files."
        ) from error


def usable_length(encoder: Encoder, name: str, max_length: int) -> int:
    """Return how many tokens a text may have: max_length, or what the model takes if that is less.

    Two texts of that length go through the model, as in training, before any money is spent. Raises BaseModelError when
    it does not take them, or when tokenizer and model do not belong together.
    """
    tokenizer, model = encoder.tokenizer, encoder.model
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise BaseModelError(
            f"BASE_MODEL={name}: the tokenizer has {len(tokenizer)} tokens, and the model knows {known}. They do not "
            "belong together. Use the tokenizer that the model was saved with."
        )
    positions = int(getattr(model.config, "max_position_embeddings", None) or 0)
    longest = min(max_length, int(tokenizer.model_max_length))
    longest = min(longest, positions) if positions > 0 else longest  # XLNet says -1: no limit
    # RoBERTa and its kind number positions from behind the padding token's, and lose as many.
    problem: Exception | None = None
    for length in (longest, min(longest, positions - (tokenizer.pad_token_id or 0) - 1)):
        if length < MIN_TOKENS:
            break
        try:
            found = forward(encoder, length)
        except Exception as error:  # noqa: BLE001 - each architecture has its own
            problem = problem or error
            continue
        if found.ndim == 2 and len(found) == 2 and found.isfinite().all():
            return length
        raise BaseModelError(
            f"BASE_MODEL={name} gives {tuple(found.shape)} numbers for 2 texts, or some that are none, instead of a "
            "vector for each. Use another base model."
        )
    raise BaseModelError(
        f"BASE_MODEL={name} does not take texts of {longest} tokens"
        + (f" ({type(problem).__name__}: {one_line(problem)[:400]})" if problem else "")
        + ". Set a smaller max_length, or use another base model."
    ) from problem


def forward(encoder: Encoder, length: int) -> torch.Tensor:
    """Return the vectors, 2 x width, of a text of so many tokens and one of one, on the CPU."""
    tokenizer = encoder.tokenizer
    word = next((token for token in WORDS if tokenizer(token, add_special_tokens=False)["input_ids"]), WORDS[0])
    encoded = tokenizer(
        [" ".join([word] * length), word], truncation=True, max_length=length, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        return encoder.pooled(encoded)


def device() -> torch.device:
    """Return this process's GPU, or the CPU. Not a Mac's GPU: containers and the model server have none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
