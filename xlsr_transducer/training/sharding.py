"""``--sharding fsdp2``: parameters, gradients and optimizer state divided among processes.

For networks that one GPU cannot train, such as XLS-R 1B and 2B: PyTorch's ``fully_shard`` on each
transformer layer, and on the rest together. A layer's parameters are whole only while it computes.
Checkpoints are gathered tensor by tensor and look like any other, so that every command reads
them, and a training may resume with sharding or without. ``torch.distributed.checkpoint`` is not
used: it would gather model and optimizer, by other names, but not the running mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from xlsr_transducer.core.compat import has_fsdp2
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.distributed import map_tensors
from xlsr_transducer.training.optim import OptimOptions

SHARDING = ("none", "fsdp2")
_STATE_OF_GROUPS = ("params", "recent_norms")  # what a group holds beside options


def check_sharding(optim: OptimOptions, use_fp16: bool, world_size: int) -> None:
    """Refuses what does not go with ``--sharding fsdp2``.

    Raises:
      UserError: names the option, and why.
    """
    if not has_fsdp2():
        raise UserError(f"--sharding fsdp2 needs PyTorch 2.6 or newer, not {torch.__version__}")
    if world_size == 1:
        raise UserError("--sharding fsdp2 needs several processes: --world-size N, or torchrun")
    for flag, is_given, reason in (
        ("--use-fp16 1", use_fp16, "each process would find another loss scale; use bfloat16"),
        (
            "--freeze-encoder-steps",
            optim.freeze_encoder_steps > 0,
            "what is trained is settled when parameters are divided; make it two trainings, the "
            "second with --init-from",
        ),
        ("--lora-rank", optim.lora_rank > 0, "it needs next to no optimizer state to divide"),
    ):
        if is_given:
            raise UserError(f"--sharding fsdp2 contradicts {flag}: {reason}")


def shard(model: SpeechModel, world_size: int, device: torch.device) -> None:
    """Divides the model's parameters among ``world_size`` processes, in place.

    Every process must come with the same values. Which parameters are trained must be settled.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size,))
    if model.encoder.xlsr.has_layers:
        for layer in model.encoder.xlsr.encoder.layers.values():
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether ``shard`` divided its parameters."""
    return any(_is_divided(p) for p in model.parameters())


def _is_divided(value: Any) -> bool:
    return hasattr(value, "full_tensor")


@contextlib.contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Inside, every process has all parameters, and computes without the others.

    For validation, where each has other batches, and not as many. Of a model that is not
    sharded nothing changes.
    """
    parts = [m for m in model.modules() if hasattr(m, "unshard")]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            # The root keeps its parameters between forward and backward, as FSDP does by default.
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()


def gather(value: Any, keep: bool = True) -> Any:
    """Returns the same with every divided tensor whole, and all tensors on the CPU.

    Every process must call it with the same structure of dictionaries and lists. Without
    ``keep`` this one takes part, tensor by tensor, and gets empty tensors.
    """

    def whole_tensor(tensor: Tensor) -> Tensor:
        tensor = tensor.full_tensor() if _is_divided(tensor) else tensor
        return (tensor if keep else tensor.new_zeros(0)).detach().cpu()

    return map_tensors(whole_tensor, value)


def divided_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor divided as ``like`` is, on its device; itself if ``like`` is whole."""
    if not _is_divided(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """``load_state_dict`` of whole weights, into a model that may be sharded."""
    own = model.state_dict()
    model.load_state_dict({k: divided_like(v, own[k]) for k, v in weights.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """``load_state_dict`` of a gathered state, for parameters that may be sharded.

    Moments and what else was gathered from gradients come from the state; rates and decay stay
    those of ``optimizer``, whose options may have changed.

    Raises:
      UserError: the state is of another optimizer, or of other groups of parameters.
    """
    groups, saved = optimizer.param_groups, state["param_groups"]
    if [_kind(group) for group in groups] != [_kind(group) for group in saved]:
        raise UserError(
            "the checkpoint has the state of another optimizer, or of other groups of parameters: "
            "resume with its --optimizer, --layer-lr-decay, --encoder-lr-scale, --weight-decay, "
            "or begin anew from its weights with --init-from"
        )
    own = [{k: v for k, v in group.items() if k not in _STATE_OF_GROUPS} for group in groups]
    parameters = [p for group in groups for p in group["params"]]
    divided = {
        index: {
            name: divided_like(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": divided})
    for group, options in zip(optimizer.param_groups, own):
        group.update(options)


def _kind(group: dict[str, Any]) -> tuple[int, bool]:
    """Of a group: its size, and whether it is of ScaledAdam."""
    return len(group["params"]), "clipping_scale" in group
