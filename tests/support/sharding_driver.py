"""Two processes train a tiny model, sharded or not; ``run`` is one of them.

The first writes to OUT what both ways must agree in.
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from tests.training.test_inf_check import LOSS, tiny_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.scaled_adam import ScaledAdam
from xlsr_transducer.training.sharding import (
    gather,
    is_sharded,
    load_optimizer,
    load_weights,
    shard,
    whole,
)

WORLD_SIZE = 2


def batch(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 20, 8, generator=generator)
    y = torch.randint(1, 10, (2, 4), generator=generator)
    return x, torch.tensor([20, 13]), y, torch.tensor([4, 2])


def steps(
    model: SpeechModel, optimizer: torch.optim.Optimizer, rank: int, numbers: range
) -> list[float]:
    """The sums of the losses, in steps whose gradient is the sum over the processes."""
    totals = []
    for step in numbers:
        losses = model(*batch(100 * rank + step), LOSS, ChunkSettings())
        total = torch.stack(losses).sum() / 8
        (total * WORLD_SIZE if is_sharded(model) else total).backward()
        if not is_sharded(model):
            for parameter in model.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
        totals.append(total.item())
    return totals


def train(rank: int, is_divided: bool, make_optimizer: Callable) -> dict:
    """Five steps, a validation, a gathered checkpoint, and three steps after it."""

    def fresh() -> tuple[SpeechModel, torch.optim.Optimizer]:
        model = tiny_model().eval()
        model.encoder.xlsr.encoder.layers["0"].requires_grad_(False)
        if is_divided:
            shard(model, WORLD_SIZE, torch.device("cpu"))
        # With a large eps: keys' biases have no gradient but rounding, which Adam would blow up.
        return model, make_optimizer(model.parameters(), lr=0.01, eps=1e-3)

    model, optimizer = fresh()
    steps(model, optimizer, rank, range(5))
    valid = []
    with whole(model), torch.no_grad():
        for i in range(1 + rank):  # not as many on each process
            out, lens = model.encoder(*batch(i)[:2])
            valid.append(model.joiner.encoder_proj(out).sum().item())
            valid.append(model(*batch(i), LOSS, ChunkSettings()).simple.sum().item())
    content = copy.deepcopy({"model": gather(model.state_dict()), "valid": valid[:2]})
    content["optimizer"] = copy.deepcopy(gather(optimizer.state_dict()))
    dropped = [
        gather(x, keep=False) for x in (model.state_dict(), optimizer.state_dict()["state"])
    ]
    values = [*dropped[0].values(), *(x for state in dropped[1].values() for x in state.values())]
    content["dropped"] = sum(x.numel() for x in values if isinstance(x, torch.Tensor))
    content["straight"] = steps(model, optimizer, rank, range(5, 8))
    model, optimizer = fresh()
    load_weights(model, content["model"])
    load_optimizer(optimizer, content["optimizer"])
    content["resumed"] = steps(model, optimizer, rank, range(5, 8))
    content["last"] = gather(model.state_dict())
    return content


def run(rank: int, store: Path, out: Path) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=WORLD_SIZE,
        timeout=datetime.timedelta(seconds=240),
    )
    found = {
        cls.__name__: {way: train(rank, way == "sharded", cls) for way in ("plain", "sharded")}
        for cls in (torch.optim.AdamW, ScaledAdam)
    }
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()
