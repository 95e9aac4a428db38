"""Where this process runs, and what the processes of a training tell each other.

The processes and their errors follow torchrun's conventions; gradients are reduced by
``DistributedDataParallel`` (step.py) or ``fully_shard`` (sharding.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from xlsr_transducer.core.errors import INTERRUPTED, UserError
from xlsr_transducer.core.options import Options, option

# Seconds that a process with an error lives on, so that whoever looks after the processes sees the
# cause before its consequences: the loss of another process is one, and what all processes find is
# reported by the main one alone.
LATER, MUCH_LATER = 0.5, 2.0


@dataclasses.dataclass(frozen=True)
class ProcessOptions(Options):
    """Processes."""

    world_size: int = option(
        1,
        "processes to start on this machine, one per GPU; torchrun starts its own",
        at_least=1,
        at_most=1024,
    )
    process_timeout: float = option(
        1800.0,
        "seconds that processes wait for one that does not answer, before the training stops",
        above=0,
    )


@dataclasses.dataclass(frozen=True)
class Process:
    """One process of a training run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and logs."""
        return self.rank == 0

    def describe(self) -> str:
        """For the log."""
        many = f"process {self.rank} of {self.world_size}, " if self.world_size > 1 else ""
        return f"{many}device {self.device}"

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The values of all processes, as many of each, in float64 and in the order of ranks."""
        if self.world_size == 1:
            return [list(values)]
        here = torch.tensor(values, dtype=torch.float64, device=self.device)
        found = [torch.empty_like(here) for _ in range(self.world_size)]
        dist.all_gather(found, here)
        return [part.tolist() for part in found]

    def any(self, here: bool) -> bool:
        """Whether it holds on any process."""
        return self.sum([float(here)])[0] > 0

    def largest(self, value: int) -> int:
        """The largest value of all processes."""
        if self.world_size == 1:
            return value
        found = torch.tensor(value, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors, on any device, with those of the main process."""
        if self.world_size > 1:
            for tensor in tensors:
                sent = tensor.detach().to(self.device)
                dist.broadcast(sent, src=0)
                tensor.detach().copy_(sent)

    def union(self, names: Iterable[str]) -> list[str]:
        """Returns all names that any process has, in alphabetical order."""
        found: list[Any] = [set(names)]
        if self.world_size > 1:
            found = [None] * self.world_size
            dist.all_gather_object(found, set(names))
        return sorted(set().union(*found))

    def from_main(self, value: Any = None) -> Any:
        """Returns the value of the main process: tensors in dictionaries, lists and tuples, and
        plain objects. What other processes give is ignored; they get the tensors on the CPU."""
        if self.world_size == 1:
            return value
        box = [map_tensors(lambda tensor: tensor.to("meta"), value) if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        if not self.is_main:
            value = map_tensors(lambda shape: torch.empty_like(shape, device="cpu"), box[0])
        tensors: list[Tensor] = []
        map_tensors(tensors.append, value)
        self.copy_from_main(tensors)
        return value


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Returns ``value`` with ``function`` of each tensor in its dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, item) for item in value)
    return value


@contextlib.contextmanager
def joined(timeout: float) -> Iterator[Process]:
    """This process among those of its training, as torchrun or ``launch`` describe them in the
    environment; alone without such a description.

    Of several processes, one that raises an exception reports it and ends at once, and whoever
    started the processes ends the others. The block's end waits for all of them.

    Args:
      timeout: seconds that processes wait for one that does not answer.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size == 1:
        yield Process(0, 1, this_device())
        return
    try:
        device = this_device()
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=datetime.timedelta(seconds=timeout),
        )
        yield Process(rank, world_size, device)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException as e:
        _leave(e, rank)


def _leave(error: BaseException, rank: int) -> None:
    """Reports the error in log and torchrun's error file, and ends this process.

    Nothing is waited for: a collective operation may never end.
    """
    is_plain = isinstance(error, (UserError, OSError))
    status = 2 if is_plain else 1
    if isinstance(error, KeyboardInterrupt):
        status = INTERRUPTED
        if rank == 0:
            print("interrupted", file=sys.stderr)
    else:
        if isinstance(error, Exception):
            get_error_handler().record_exception(error)
        time.sleep(LATER * (rank > 0) + MUCH_LATER * has_lost_another(error))
        message = " ".join(str(error).split()) if is_plain else traceback.format_exc()
        logging.error(f"process {rank} failed: {message}")
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def has_lost_another(error: BaseException) -> bool:
    """Whether a collective operation failed, as another process ended or does not answer."""
    return isinstance(error, RuntimeError) and re.search("gloo|NCCL", str(error)) is not None


def this_device() -> torch.device:
    """This process's GPU, or the CPU where there is none.

    Raises:
      UserError: there are more processes than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0))
    if index >= torch.cuda.device_count():
        raise UserError(
            f"process {index} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            "start one process per GPU"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
