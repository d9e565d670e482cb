"""Multinomial logistic regression, of dense or sparse rows."""

import warnings
from typing import Any

import torch

from inference import Head, Rows

HISTORY = 10  # steps that L-BFGS remembers
SCORES_AT_ONCE = 20_000_000  # rows x labels: 80 MB, a few times over
EPSILON = 1e-6  # below that, a column does not vary


def fit(features: torch.Tensor, targets: torch.Tensor, n_labels: int, strength: float, iterations: int) -> Head:
    """Return the head with the least mean log loss plus |weight|² / (2 · strength · rows), as scikit-learn's C counts.

    features: rows x columns, dense or sparse (CSR); targets: the index of each row's label.
    By L-BFGS with the exact gradient, at most so many iterations. Raises FloatingPointError when the loss is no longer
    a number.
    """
    n_rows, n_columns = features.shape
    parts = _parts(features, targets, max(SCORES_AT_ONCE // n_labels, 1))
    weight = torch.zeros(n_columns, n_labels, requires_grad=True)
    # From the labels' shares: the optimum of a head without features.
    shares = torch.bincount(targets, minlength=n_labels).float() + 1
    bias = (shares / shares.sum()).log().requires_grad_(True)
    optimizer: Any = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
    )

    def loss() -> torch.Tensor:
        with torch.no_grad():
            penalty = 1 / (strength * n_rows)
            found = penalty / 2 * weight.square().sum()
            weight.grad, bias.grad = penalty * weight, torch.zeros_like(bias)
            for some, turned, of_some in parts:
                logarithms = (some @ weight + bias).log_softmax(dim=-1)
                found -= logarithms.gather(1, of_some[:, None]).sum() / n_rows
                residual = logarithms.exp_()
                residual[torch.arange(len(of_some)), of_some] -= 1
                residual /= n_rows
                weight.grad += turned @ residual
                bias.grad += residual.sum(dim=0)
            return found

    reached = float(optimizer.step(loss))
    if not torch.isfinite(torch.tensor(reached)) or not weight.isfinite().all():
        raise FloatingPointError(f"the loss of a logistic regression became {reached}")
    return Head(weight.detach(), bias.detach())


def _parts(
    features: torch.Tensor, targets: torch.Tensor, rows: int
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return some rows after the other: features, the same turned, and targets."""
    if features.layout != torch.sparse_csr:
        parts = [slice(at, at + rows) for at in range(0, len(targets), rows)]
        return [(features[part], features[part].t(), targets[part]) for part in parts]
    starts, indices, values = features.crow_indices(), features.col_indices(), features.values()
    found = []
    for at in range(0, len(targets), rows):
        own = starts[at : at + rows + 1]
        part = slice(int(own[0]), int(own[-1]))
        some = _csr(own - own[0], indices[part], values[part], features.shape[1])
        found.append((some, some.t().to_sparse_csr(), targets[at : at + rows]))
    return found


def standardize(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dense features with mean 0 and standard deviation 1 per column, and what they were: mean, deviation."""
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    deviation[deviation < EPSILON] = 1
    return (features - mean) / deviation, mean, deviation


def fit_dense(features: torch.Tensor, targets: torch.Tensor, n_labels: int, strength: float, iterations: int) -> Head:
    """As fit, on standardized features; the head that is returned takes them as they are."""
    standard, mean, deviation = standardize(features)
    weight, bias = fit(standard, targets, n_labels, strength, iterations)
    weight = weight / deviation[:, None]
    return Head(weight.contiguous(), bias - mean @ weight)


def sparse(rows: Rows, columns: int) -> torch.Tensor:
    """Return rows as a sparse matrix."""
    return _csr(*rows.tensors(), columns)


def _csr(starts: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, columns: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "beta state"
        return torch.sparse_csr_tensor(starts, indices, values, (len(starts) - 1, columns))


def pick(rows: Rows, chosen: list[int]) -> Rows:
    """Return some of the rows, in that order."""
    picked = Rows.none()
    for row in chosen:
        start, end = rows.starts[row], rows.starts[row + 1]
        picked.indices.extend(rows.indices[start:end])
        picked.values.extend(rows.values[start:end])
        picked.starts.append(len(picked.indices))
    return picked
