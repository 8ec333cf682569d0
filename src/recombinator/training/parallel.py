"""Train one network with several processes: each takes a part of every batch.

`torchrun` starts the processes. Gradients are added up by one collective operation per step. DistributedDataParallel
would overlap that with the backward pass, which does not pay for networks of less than a million weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Generator, Tensor

T = TypeVar("T")


def processes() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0. Process 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Connect the processes that torchrun started while the context lasts: by NCCL on GPUs, by gloo on CPUs.

    Args:
        device: "cpu", "cuda" or "cuda:N".

    Yields:
        The device of this process: with several processes on GPUs, one GPU for each.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "MASTER_ADDR" not in os.environ or dist.is_initialized():
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Wait until every process has reached this call."""
    if processes() > 1:
        dist.barrier()


def part_of(index: Tensor) -> Tensor:
    """Return this process's part of a batch's (B,) indices. B must be at least the number of processes."""
    return index[rank() :: processes()]


def own_generator(generator: Generator) -> Generator:
    """Return this process's source of random numbers, drawn from one that is the same in every process."""
    if processes() == 1:
        return generator
    seeds = torch.randint(2**62, (processes(),), generator=generator)
    return Generator().manual_seed(int(seeds[rank()]))


def counted(mask: Tensor) -> Tensor:
    """Return the number of terms that the loss of a (B, K) mask is divided by.

    In one process this is the number of True elements. With several, it is that of the whole batch, times this
    process's share of the images: the losses, weighted by these shares, then add up to the loss of the whole batch.
    """
    count = mask.sum()
    if processes() == 1 or not torch.is_grad_enabled():  # validation runs in one process
        return count
    total = torch.stack([count.double(), count.new_tensor(len(mask)).double()])
    dist.all_reduce(total)
    return (total[0] * len(mask) / total[1]).float()


def add_up(value: float, device: torch.device) -> float:
    """Return the sum of the processes' values."""
    if processes() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item()


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by the sum of the processes' gradients."""
    if processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(total)
    for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def from_first(compute: Callable[[], T]) -> T:
    """Return what `compute` returns in process 0, in every process."""
    if processes() == 1:
        return compute()
    box = [compute() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of process 0."""
    if processes() == 1:
        return
    for tensor in tensors:
        plain = tensor.contiguous()  # gloo takes no other layout
        dist.broadcast(plain, 0)
        tensor.copy_(plain)
