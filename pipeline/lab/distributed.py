"""Training in several processes of `torchrun`, or in one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from msinn_core.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Rank:
    """This process among those of `torchrun`."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Rank:
        read = {key: int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))}
        return cls(read["RANK"], read["WORLD_SIZE"], read["LOCAL_RANK"])


def summed(value: torch.Tensor) -> None:
    """Sum a tensor over all processes, in place."""
    dist.all_reduce(value)


def wrapper(config: TrainConfig, rank: Rank) -> Callable[[Any], Any]:
    """What makes of a network that which is called in its place; see `Trainer`."""

    def wrap(network: Any) -> Any:
        called = torch.compile(network) if config.compile else network
        if rank.world_size > 1:
            # The network's buffers are constants.
            return DistributedDataParallel(called, broadcast_buffers=False)
        return called

    return wrap


@contextlib.contextmanager
def process_group(rank: Rank, device: torch.device) -> Iterator[None]:
    """The processes of a run while the context lasts; nothing to do for one."""
    if rank.world_size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
