"""The candidate `fine-tuned`: the base model trained on, starting from the frozen candidate's head.

The head comes first, then all layers (A. Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution, 2022). The token embeddings stay as they are: they are half of a small model's weights, and a few
thousand texts have few of the tokens.
"""

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import parallel
from inference import Encoder, EncoderMember, Head, tokenize

NAME = "fine-tuned"
LEGS = 4  # of a run; after each, the caller decides whether to go on
FIRST_LEG_STEPS = 125  # at most: enough to see whether it gains anything
HEAD_RATE = 10  # times the learning rate
WARM_UP = 0.06  # share of the steps
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
BATCHES_PER_POOL = 50  # out of which batches of similar length are made
TEXTS_AT_ONCE = 256  # through the tokenizer, which keeps all of a text in memory, not just the part that is used
TRIAL_BATCHES = 3  # to see which precision is faster


class Diverged(ArithmeticError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Plan:
    """How to train."""

    epochs: int
    learning_rate: float
    batch_size: int  # texts, of all processes together
    seed: int
    precision: torch.dtype | None  # for autocast; None: as the weights are

    def steps(self, texts: int) -> int:
        """Return the number of steps for so many texts."""
        return self.epochs * math.ceil(texts / self.batch_size)

    def legs(self, texts: int) -> list[int]:
        """Return the steps after which a leg ends; the last one is the last step."""
        steps = self.steps(texts)
        first = max(min(steps // LEGS, FIRST_LEG_STEPS), 1)
        rest = [first + round((steps - first) * leg / LEGS) for leg in range(1, LEGS + 1)]
        return sorted({first, *rest})


class _Network(torch.nn.Module):
    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.body, self.encoder = encoder.model, encoder
        self.weight = torch.nn.Parameter(head.weight.to(encoder.model.device).clone())
        self.bias = torch.nn.Parameter(head.bias.to(encoder.model.device).clone())

    def forward(self, encoded: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.encoder.pooled(encoded) @ self.weight + self.bias


def fine_tune(
    base: Encoder,
    head: Head,
    texts: Sequence[str],
    targets: torch.Tensor,
    plan: Plan,
    after_leg: Callable[[int, EncoderMember], bool],
    resume: tuple[int, dict[str, torch.Tensor]] | None = None,
) -> tuple[EncoderMember, int]:
    """Train a copy of the base model and the head on all processes; returns them, on the base's device, and the steps.

    after_leg: called with the steps so far and the model, in evaluation mode, after each leg; False ends the training.
    resume: the steps that were done before, and the weights after them (of state).
    Raises Diverged, and torch.OutOfMemoryError where the GPU's memory does not suffice.
    """
    torch.manual_seed(plan.seed)
    encoder = Encoder(base.tokenizer, copy.deepcopy(base.model))
    encoder.model.get_input_embeddings().weight.requires_grad_(False)
    network: Any = _Network(encoder, head)
    done = 0
    if resume:
        done, weights = resume
        network.load_state_dict(weights, strict=False)
    trained = network
    if parallel.size() > 1:
        # A base model may have layers that no score depends on, as a decoder.
        network = torch.nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)
    body = [parameter for parameter in trained.body.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": body},
        {"params": [trained.weight, trained.bias], "lr": plan.learning_rate * HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    steps, legs = plan.steps(len(texts)), plan.legs(len(texts))
    rates = [group["lr"] for group in optimizer.param_groups]
    device = encoder.model.device
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision is torch.float16)
    ids = _tokens(texts, encoder.tokenizer)
    while done < steps:
        epoch, skip = divmod(done, math.ceil(len(texts) / plan.batch_size))
        for batch in _batches([len(item["input_ids"]) for item in ids], plan, epoch)[skip:]:
            trained.train()
            own = batch[parallel.rank() :: parallel.size()] or batch[:1]
            encoded = encoder.tokenizer.pad([ids[row] for row in own], return_tensors="pt").to(device)
            with torch.autocast(device.type, plan.precision, enabled=plan.precision is not None):
                scores = network(encoded)
            loss = torch.nn.functional.cross_entropy(scores.float(), targets[own].to(device))
            share = min((done + 1) / max(WARM_UP * steps, 1), (steps - done) / steps, 1)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            scaled: Any = scaler.scale(loss)
            scaled.backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(body, GRADIENT_NORM)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            if done in legs:
                if not math.isfinite(parallel.total(loss.detach().clone()).item()):
                    raise Diverged(f"its loss became {loss.item()}")
                member = _member(trained, encoder)
                if not after_leg(done, member):
                    return member, done
    return _member(trained, encoder), done


def state(member: EncoderMember) -> dict[str, torch.Tensor]:
    """Return the weights that fine_tune resumes from."""
    weights = {f"body.{name}": tensor.cpu().clone() for name, tensor in member.encoder.model.state_dict().items()}
    return weights | {name: tensor.cpu().clone() for name, tensor in member.head._asdict().items()}


def load_state(base: Encoder, weights: dict[str, torch.Tensor]) -> EncoderMember:
    """Return the member whose state this is."""
    encoder = Encoder(base.tokenizer, copy.deepcopy(base.model))
    body = {name.removeprefix("body."): tensor for name, tensor in weights.items() if name.startswith("body.")}
    encoder.model.load_state_dict(body)
    return EncoderMember(encoder, Head(weights["weight"], weights["bias"]))


def _member(network: Any, encoder: Encoder) -> EncoderMember:
    network.eval()
    return EncoderMember(encoder, Head(network.weight.detach().cpu().clone(), network.bias.detach().cpu().clone()))


def _tokens(texts: Sequence[str], tokenizer: Any) -> list[dict[str, list[int]]]:
    items = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        encoded = tokenize(texts[start : start + TEXTS_AT_ONCE], tokenizer)
        items += [{key: values[row] for key, values in encoded.items()} for row in range(len(encoded["input_ids"]))]
    return items


def _batches(lengths: Sequence[int], plan: Plan, epoch: int) -> list[list[int]]:
    """Return the rows of an epoch in batches of similar length, in random order."""
    chance = random.Random(f"{plan.seed} {epoch}")
    order = list(range(len(lengths)))
    chance.shuffle(order)
    batches = []
    pool = plan.batch_size * BATCHES_PER_POOL
    for start in range(0, len(order), pool):
        rows = sorted(order[start : start + pool], key=lambda row: lengths[row])
        batches += [rows[at : at + plan.batch_size] for at in range(0, len(rows), plan.batch_size)]
    chance.shuffle(batches)
    return batches


def faster_precision(encoder: Encoder, texts: Sequence[str]) -> torch.dtype | None:
    """Return the precision in which the encoder is fastest, measured on a few texts: None means as the weights are.

    float16 only where a GPU has no bfloat16.
    """
    device = encoder.model.device
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    seconds: dict[torch.dtype | None, float] = {}
    for _ in range(TRIAL_BATCHES):
        for precision in (None, torch.bfloat16):
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision is not None):
                encoder.vectors(texts)  # on the CPU at the end: the GPU has finished
            seconds[precision] = min(seconds.get(precision, math.inf), time.perf_counter() - started)
    return parallel.first(lambda: min(seconds, key=lambda precision: seconds[precision]))
