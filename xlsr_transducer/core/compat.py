"""Differences between environments: PyTorch 1.13 or a current one, with k2 or without."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.core.errors import UserError

# float32 means float32, in every command, as all of them import this module. TF32, PyTorch's
# default for convolutions on newer GPUs, keeps three digits: features would differ from one GPU to
# the next, and streaming from what is simulated.
torch.set_float32_matmul_precision("highest")
torch.backends.cudnn.allow_tf32 = False


def attend_in_steps(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], dropout: float
) -> Tensor:
    """softmax(q k' / sqrt(d)) v; ``mask`` is True where a key is seen."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(-1), p=dropout, training=dropout > 0.0)
    return torch.matmul(weights, v)


if hasattr(F, "scaled_dot_product_attention"):

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], dropout: float) -> Tensor:
        """``attend_in_steps`` in one of PyTorch's kernels."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)

else:
    attend = attend_in_steps


if torch.__version__.startswith("1."):

    def gelu(x: Tensor) -> Tensor:
        """``F.gelu``, whose gradient in PyTorch 1.13 reads stray memory on a CPU when the
        gradient that arrives is a transposed view."""
        return 0.5 * x * (1.0 + torch.erf(x * 0.7071067811865476))

else:
    gelu = F.gelu


if torch.__version__.startswith("1."):
    from torch import _weights_only_unpickler

    class _Operations(dict):
        """Handlers of pickle's operations by code."""

        def __missing__(self, code: int) -> Any:
            raise pickle.UnpicklingError(f"operation {code} is not among those of plain values")

    class _PlainUnpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
        """PyTorch 1.13's own for ``weights_only`` cannot read floats. This one reads them, and
        otherwise allows what that one does: its operations, and the types that it lists.
        """

        _NAMES = (
            "APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE "
            "BUILD EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET "
            "LONG_BINPUT MARK NEWFALSE NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS "
            "SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3"
        )
        _all = pickle._Unpickler.dispatch  # type: ignore[attr-defined]
        dispatch = _Operations()
        for _name in _NAMES.split():
            dispatch[getattr(pickle, _name)[0]] = _all[getattr(pickle, _name)[0]]

        def find_class(self, module: str, name: str) -> Any:
            allowed = _weights_only_unpickler._get_allowed_globals()
            if f"{module}.{name}" not in allowed:
                raise pickle.UnpicklingError(f"it holds a {module}.{name}")
            return allowed[f"{module}.{name}"]

        def load_build(self) -> None:
            # On anything but the attributes of a state dict this could change code.
            if type(self.stack[-2]) is not OrderedDict:
                raise pickle.UnpicklingError(f"it changes a {type(self.stack[-2]).__name__}")
            state = self.stack.pop()
            self.stack[-1].__dict__.update(state)

        dispatch[pickle.BUILD[0]] = load_build

    # What torch.load(weights_only=True) uses.
    _weights_only_unpickler.Unpickler = _PlainUnpickler


def has_fast_linear() -> bool:
    """Returns whether this PyTorch has oneDNN and lets us call it."""
    ours = hasattr(torch.ops.mkldnn, "_linear_pointwise") or hasattr(
        torch.ops.mkldnn_prepacked, "conv2d_prepack"
    )
    return torch.backends.mkldnn.is_available() and ours


def fast_linear(weight: Tensor, bias: Optional[Tensor]) -> Callable[[Tensor], Tensor]:
    """``F.linear`` in float32 on a CPU by oneDNN: (R, D) -> (R, E)."""
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return _linear_as_convolution(weight, bias)


FEW_ROWS = 64  # below, a transposing copy costs less than the slower kernel for scattered rows


def _linear_as_convolution(weight: Tensor, bias: Optional[Tensor]) -> Callable[[Tensor], Tensor]:
    """PyTorch 1.13 lets oneDNN arrange weights beforehand for convolutions only: a 1 x 1 one."""
    ops = torch.ops.mkldnn_prepacked
    width_out, width = weight.shape
    packed = ops.conv2d_prepack(
        weight[:, :, None, None], bias, [1, 1], [0, 0], [1, 1], 1, [1, width, FEW_ROWS, 1], "none"
    )

    def linear(x: Tensor) -> Tensor:
        rows = len(x)
        if rows == 0:
            return x.new_zeros(0, width_out)
        if rows < FEW_ROWS:
            out = ops.conv2d_run(x.t().reshape(1, width, rows, 1), packed)
            return out.view(width_out, rows).t().contiguous()
        image = x.contiguous().as_strided((1, width, rows, 1), (rows * width, 1, width, width))
        return ops.conv2d_run(image, packed).permute(0, 2, 3, 1).reshape(rows, width_out)

    return linear


# In the place of fairseq's class, by its name: holds the fields of one and can do nothing.
FAIRSEQ_DICTIONARY = type("Dictionary", (), {"__module__": "fairseq.data.dictionary"})


def load_tensors(path: str | Path) -> Any:
    """``torch.load`` that can only make tensors and plain values, on the CPU.

    ``argparse.Namespace`` is let through where PyTorch can (older fairseq files hold one), and
    fairseq's dictionaries, as objects with their fields and no methods.

    Raises:
      UserError: the file is damaged, or holds objects that would run code when loaded.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([argparse.Namespace, FAIRSEQ_DICTIONARY])
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise UserError(
            f"{path}: refused, as it holds more than tensors and plain values, or is damaged "
            f"({_reason(e)}); save its state dict alone and load that"
        ) from e
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError) as e:
        raise UserError(
            f"{path}: not a PyTorch file, or truncated ({_reason(e)}); copy or make it again"
        ) from e


def _reason(error: Exception) -> str:
    """Returns the first line of PyTorch's message, without its advice to load the file
    unprotected."""
    text = str(error).strip() or type(error).__name__
    found = re.search(r"[Uu]nsupported (?:global: )?((?:GLOBAL|operand) [\w.]+)", text)
    line = found[1] if found else text.splitlines()[0]
    return type(error).__name__ if "weights_only" in line else line[:200]


def shapes_only() -> contextlib.AbstractContextManager:
    """Modules made inside have shapes and no values (where PyTorch can do that)."""
    if torch.__version__.startswith("1."):
        return contextlib.nullcontext()
    return torch.device("meta")


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Inside, the same numbers come out every time on a CPU, to the bit.

    PyTorch 1.13's convolutions by oneDNN change their last bits with where the data lie, and its
    fused TorchScript those of every formula.
    """
    if not torch.__version__.startswith("1."):
        yield
        return
    fuses = torch._C._jit_texpr_fuser_enabled()
    torch._C._jit_set_texpr_fuser_enabled(False)
    try:
        with torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        torch._C._jit_set_texpr_fuser_enabled(fuses)


def has_fsdp2() -> bool:
    """Returns whether PyTorch has ``torch.distributed.fsdp.fully_shard`` (from 2.6 on)."""
    from torch.distributed import fsdp

    return hasattr(fsdp, "fully_shard")


def fused_adamw() -> dict[str, bool]:
    """Returns the argument of ``torch.optim.AdamW`` for one kernel for all of a step.

    PyTorch 2.4 and newer have it on CPUs too; 1.13 does not know the argument.
    """
    version = tuple(int(n) for n in torch.__version__.split(".")[:2])
    return {"fused": True} if version >= (2, 4) else {}


def grad_scaler(enabled: bool) -> Any:
    """Returns the loss scaler for float16 on a GPU, under its name in this PyTorch.

    It begins low, as gradients are of a sum over thousands of tokens.
    """
    if hasattr(torch, "amp") and hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda", init_scale=16.0, enabled=enabled)
    return torch.cuda.amp.GradScaler(init_scale=16.0, enabled=enabled)


def import_k2(wanted_by: str) -> ModuleType:
    """Returns the module k2.

    Raises:
      UserError: it does not import; names what is ``wanted_by``, and what to install.
    """
    try:
        import k2
    except Exception as e:  # a k2 built for another torch fails with more than ImportError
        raise UserError(
            f"{wanted_by}: k2 does not import ({type(e).__name__}: {e}); install the k2 wheel "
            "made for this torch and CUDA (https://k2-fsa.github.io/k2/installation), or "
            "Python 3.10 with requirements-k2.txt and requirements-k2-wheel.txt"
        ) from e
    return k2
