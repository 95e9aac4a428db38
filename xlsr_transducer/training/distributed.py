"""Where this process runs, and what the processes of a training tell each other.

Gradients are summed here, once per optimizer step, rather than by PyTorch's
DistributedDataParallel. That one wants every parameter to take part in every backward, the same
ones on every process, and as many backwards on each. Here layers thaw and are dropped, a process
may have no batch of a step, and one may leave out a batch that does not fit into its memory. A
sum over whatever gradients there are allows all that, needs no second copy of the model's hooks,
and accumulates for free. What it gives up is sending while backward still computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.training.watchdog import Watchdog

# A dead process is noticed by the watchdog; until this, processes wait for one that is slow.
PATIENCE = datetime.timedelta(hours=2)
BUCKET = 2**24  # numbers that are sent at once


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

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives every process the sum of all their gradients.

        A parameter that has a gradient on some processes counts as zero on the others; one
        that has none anywhere keeps none, so that the optimizer leaves it alone.

        Args:
          parameters: the same ones in the same order on every process.
        """
        if self.world_size == 1:
            return
        everything = list(parameters)
        has = torch.tensor([float(p.grad is not None) for p in everything], device=self.device)
        dist.all_reduce(has)
        for bucket in _buckets([p for p, n in zip(everything, has.tolist()) if n > 0]):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([g.reshape(-1) for g in gradients])
            dist.all_reduce(flat)
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket])):
                parameter.grad = part.view_as(parameter)

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors with those of the main process."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def text_from_main(self, text: str) -> str:
        """What the main process gave."""
        if self.world_size == 1:
            return text
        length = int(self.sum([len(text.encode()) if self.is_main else 0])[0])
        coded = list(text.encode()) if self.is_main else [0] * length
        sent = torch.tensor(coded, dtype=torch.uint8, device=self.device)
        self.copy_from_main([sent])
        return bytes(sent.tolist()).decode()


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in groups of about ``BUCKET`` numbers."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(p.numel() for p in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


@contextlib.contextmanager
def joined() -> Iterator[Process]:
    """This process among those of its training, as torchrun or ``launch`` describe them in the
    environment; alone without such a description.

    An exception ends the other processes too, with its message. With several processes, the
    block's end waits for all of them.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = this_device()
    if world_size == 1:
        yield Process(0, 1, device)
        return
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=PATIENCE))
    # torchrun may keep the store when it starts the processes again: the addresses that those
    # before left there would be waited for.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=world_size,
        timeout=PATIENCE,
    )
    process = Process(rank, world_size, device)
    # Unlike its address, this is new whenever torchrun starts the processes again.
    token = int(process.sum([torch.seed() % 2**31 if rank == 0 else 0])[0])
    watchdog = Watchdog(rank, world_size, token)
    with watchdog.reporting():
        yield process
        dist.barrier()
    watchdog.stop()
    dist.barrier()  # nobody leaves while another still looks after it
    dist.destroy_process_group()


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
