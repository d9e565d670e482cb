"""The candidate `frozen`: the base model's vectors as they are, with logistic regression."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

import linear
import parallel
from inference import Encoder, EncoderMember, Head

NAME = "frozen"
STRENGTHS = (0.003, 0.03, 0.3)
ITERATIONS = 60
TEXTS_AT_ONCE = 64  # through the encoder
WORK_PER_SECOND = 40_000_000  # rows x width x labels, of all that is fitted: measured on two cores


def embed(encoder: Encoder, texts: Sequence[str], precision: torch.dtype | None) -> torch.Tensor:
    """Return the vectors of texts, computed by all processes: texts x width, on the CPU.

    precision: as fine_tuned.faster_precision found it.
    """
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found: torch.Tensor | None = None
    kind = encoder.model.device.type
    for number, start in enumerate(range(0, len(texts), TEXTS_AT_ONCE)):
        if number % parallel.size() == parallel.rank():
            rows = by_length[start : start + TEXTS_AT_ONCE]
            with torch.autocast(kind, precision, enabled=precision is not None):
                vectors = encoder.vectors([texts[row] for row in rows])
            if found is None:
                found = torch.zeros(len(texts), vectors.shape[1])
            found[rows] = vectors
    if found is None:  # fewer texts than processes
        found = torch.zeros(len(texts), encoder.vectors([""]).shape[1])
    return parallel.total(found)


@dataclass
class FrozenCandidate:
    """Fits heads on the vectors of a fixed list of texts."""

    encoder: Encoder
    vectors: torch.Tensor

    def fit(self, chosen: list[int], targets: torch.Tensor, n_labels: int, strength: float) -> Head:
        """Fit a head on some of the texts; targets: the label of each of those."""
        return linear.fit_dense(self.vectors[chosen], targets, n_labels, strength, ITERATIONS)

    def scores(self, chosen: list[int], head: Head) -> torch.Tensor:
        """Return a head's scores for some of the texts: texts x labels."""
        return self.vectors[chosen] @ head.weight + head.bias

    def member(self, head: Head) -> EncoderMember:
        """Return what is served."""
        return EncoderMember(self.encoder, head)


def save(member: EncoderMember, folder: Path) -> None:
    """Write what inference.py loads."""
    member.encoder.model.save_pretrained(folder)
    member.encoder.tokenizer.save_pretrained(folder)
    save_file(
        {name: tensor.contiguous() for name, tensor in member.head._asdict().items()}, folder / "encoder.safetensors"
    )
