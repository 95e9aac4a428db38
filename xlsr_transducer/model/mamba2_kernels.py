"""The scan of Mamba-2 by the kernels of ``mamba_ssm``, on a GPU where that package imports.

The first call on a device is compared with PyTorch's result; kernels that differ are not used.
Letters: N batch, T frames, H heads, P head width, S state size.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any, Tuple

import torch
from torch import Tensor

CHUNK = 256  # frames that the kernels compute together, as in the reference


@functools.cache
def _kernel() -> Any:
    """Returns the function of ``mamba_ssm``; None where it does not import."""
    try:
        return importlib.import_module(
            "mamba_ssm.ops.triton.ssd_combined"
        ).mamba_chunk_scan_combined
    except Exception:  # noqa: BLE001  of its compiled parts too, whatever they raise
        return None


@torch.jit.unused
def are_usable(u: Tensor) -> bool:
    """Returns whether the kernels can compute what belongs to ``u`` (N, T, H, P)."""
    is_for_them = u.is_cuda and u.dtype == torch.float32 and not torch.jit.is_tracing()
    return is_for_them and _kernel() is not None and _agree(u.device, u.shape[2], u.shape[3])


@torch.jit.unused
def scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> Tuple[Tensor, Tensor]:
    """``mamba2.scan`` by the kernels."""
    y, state = _kernel()(
        u.contiguous(),
        dt.contiguous(),
        a,
        b.unsqueeze(2).contiguous(),
        c.unsqueeze(2).contiguous(),
        chunk_size=CHUNK,
        initial_states=state.contiguous(),
        return_final_states=True,
    )
    return y, state


@functools.cache
def _agree(device: torch.device, heads: int, width: int) -> bool:
    """Whether the kernels give the numbers of the plain recurrence on a small random input."""
    generator = torch.Generator().manual_seed(0)
    u, dt, b, c = (
        torch.randn(shape, generator=generator)
        for shape in ((2, 40, heads, width), (2, 40, heads), (2, 40, 16), (2, 40, 16))
    )
    dt, a = 0.1 * dt.abs(), -torch.arange(1, heads + 1).float()
    state = torch.randn(2, heads, width, 16, generator=generator)
    expected = [recurrence(u, dt, a, b, c, state)]
    try:
        found = scan(*(x.to(device) for x in (u, dt, a, b, c, state)))
    except Exception as e:  # noqa: BLE001  a kernel that does not compile here
        logging.warning(f"mamba_ssm's kernels fail here ({e}): PyTorch computes the scans")
        return False
    is_close = all(
        torch.allclose(x.cpu(), y, rtol=1e-2, atol=1e-2) for x, y in zip(found, expected[0])
    )
    if not is_close:
        logging.warning("mamba_ssm's kernels give other numbers: PyTorch computes the scans")
    return is_close


def recurrence(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> Tuple[Tensor, Tensor]:
    """``mamba2.scan`` frame by frame, as it is defined."""
    outputs = []
    for t in range(u.shape[1]):
        decay = (dt[:, t] * a).exp()[:, :, None, None]
        fed = (dt[:, t, :, None] * u[:, t]).unsqueeze(3) * b[:, t, None, None]
        state = decay * state + fed
        outputs.append((state * c[:, t, None, None]).sum(3))
    return torch.stack(outputs, dim=1), state
