"""Several processes as one: data-parallel training under SageMaker's own launcher (torchrun), or a single process.

Every process runs the whole program. What is computed once runs in `first`, in the first process, and the others get
the result; so all of them take the same decisions.
"""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")
WAIT = timedelta(hours=6)  # the others wait while the first one works: longer than any such part


def start(environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes, if the launcher started any."""
    if int(environment.get("WORLD_SIZE") or 1) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(environment.get("LOCAL_RANK") or 0))
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT)


def stop() -> None:
    """Leave the other processes."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return which process this is; 0 is the first."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def first(compute: Callable[[], T]) -> T:
    """Compute something in the first process, and return it in all of them; what it raises is raised in all of them."""
    if size() == 1:
        return compute()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = compute()
        except Exception as error:  # noqa: BLE001 - raised below, in every process
            box[1] = error
    distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    result: T = box[0]
    return result


def total(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of all processes' tensors."""
    if size() > 1:
        distributed.all_reduce(tensor)
    return tensor
