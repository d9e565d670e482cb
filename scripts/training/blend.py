"""The candidate `blend`: the averaged probabilities of others, by weights that are learnt from out-of-fold answers."""

from collections.abc import Sequence

import torch

NAME = "blend"
TEMPERATURES = tuple(1.1**power for power in range(-10, 21))  # 0.39 to 6.7
ROUNDS = 200  # of expectation and maximization; the weights have converged long before
LEAST_WEIGHT = 0.05  # a member with less changes nothing, and costs its time at every request


def temperature(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """Return what scores are to be divided by for the least log loss (C. Guo et al., On Calibration, 2017)."""
    losses = [float(torch.nn.functional.cross_entropy(scores / value, targets)) for value in TEMPERATURES]
    return TEMPERATURES[losses.index(min(losses))]


def weights(probabilities: Sequence[torch.Tensor], targets: torch.Tensor) -> list[float]:
    """Return the members' weights with the least log loss of the average; 0 for one that adds next to nothing.

    probabilities: of each member, texts x labels. By expectation and maximization, which finds the one optimum.
    """
    right = torch.stack([found.gather(1, targets[:, None]).squeeze(1) for found in probabilities], dim=1)
    right = right.double().clamp(min=1e-12)
    found = torch.full((len(probabilities),), 1 / len(probabilities), dtype=torch.float64)
    for _ in range(ROUNDS):
        shares = right * found
        found = (shares / shares.sum(dim=1, keepdim=True)).mean(dim=0)
    found[found < LEAST_WEIGHT] = 0
    return [float(weight) for weight in found / found.sum()]


def average(probabilities: Sequence[torch.Tensor], by: Sequence[float]) -> torch.Tensor:
    """Return the weighted average of the members' probabilities."""
    return torch.stack([weight * found for weight, found in zip(by, probabilities, strict=True)]).sum(dim=0)
