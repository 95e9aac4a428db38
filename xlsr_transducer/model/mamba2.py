"""Mamba-2: a linear recurrence over frames whose state has constant size.

T. Dao and A. Gu, "Transformers are SSMs", ICML 2024. Of each head, with decay a_t = exp(dt_t A)::

    state_t = a_t state_(t-1) + dt_t u_t B_t^T        y_t = state_t C_t + D u_t

Blocks of frames are computed by matrix products ("state-space duality"), for whole utterances and
for the next chunk of a stream alike. Parameters have the names and shapes of ``Mamba2Mixer`` in
transformers, with one group and an inner width of the model's. Letters: N batch, T frames,
D width, H heads, P head width, S state size, K kernel of the convolution, Q frames of a block,
B blocks.
"""

from __future__ import annotations

import math
from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.model import mamba2_kernels

HEAD_DIM, STATE_SIZE, KERNEL = 64, 128, 4
BLOCK = 64  # frames; within them the work grows with the square
DT_RANGE, A_RANGE = (0.001, 0.1), (1.0, 16.0)  # of the reference's random start


class GatedNorm(nn.Module):
    """RMS norm of x * silu(gate)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """(N, T, D), (N, T, D) -> (N, T, D)."""
        x = x * F.silu(gate)
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


class Mamba2(nn.Module):
    """A scan in one direction, over whole utterances or the next frames of streams."""

    def __init__(self, width: int):
        super().__init__()
        self.head_dim = math.gcd(width, HEAD_DIM)
        self.num_heads = width // self.head_dim
        self.state_size = STATE_SIZE
        self.history = KERNEL - 1
        self.width, self.conv_width = width, width + 2 * STATE_SIZE
        self.in_proj = nn.Linear(width, width + self.conv_width + self.num_heads, bias=False)
        self.conv1d = nn.Conv1d(self.conv_width, self.conv_width, KERNEL, groups=self.conv_width)
        self.dt_bias = nn.Parameter(_drawn_dt_bias(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads).uniform_(*A_RANGE).log())
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.norm = GatedNorm(width)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, conv: Tensor, ssm: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Computes frames after their past.

        Args:
          x: (N, T, D). conv: (N, K - 1, D + 2 S), the last inputs of the convolution.
          ssm: (N, H, P, S), the state before the first frame, in float32 at least.

        Returns:
          (N, T, D), and both states after the last frame.
        """
        gate, seen, dt = self.in_proj(x).split(
            [self.width, self.conv_width, self.num_heads], dim=2
        )
        seen = torch.cat((conv.to(seen.dtype), seen), dim=1)
        inputs = F.silu(self.conv1d(seen.transpose(1, 2)).transpose(1, 2))
        # Sums over whole utterances need float32.
        u, b, c = inputs.to(ssm.dtype).split([self.width, self.state_size, self.state_size], dim=2)
        u = u.view(u.shape[0], u.shape[1], self.num_heads, self.head_dim)
        dt = F.softplus(dt.to(ssm.dtype) + self.dt_bias.to(ssm.dtype))
        y, ssm = scan(u, dt, -self.A_log.to(ssm.dtype).exp(), b, c, ssm)
        y = y + self.D.to(ssm.dtype).unsqueeze(1) * u
        y = self.norm(y.flatten(2), gate.to(ssm.dtype)).to(x.dtype)
        return self.out_proj(y), seen[:, seen.shape[1] - self.history :], ssm

    def init_states(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> Tuple[Tensor, Tensor]:
        """Returns the states before the first frame: zeros."""
        conv, ssm = state_shapes(self.width)
        return (
            torch.zeros([batch_size] + conv, dtype=dtype, device=device),
            torch.zeros([batch_size] + ssm, dtype=sum_dtype(dtype), device=device),
        )


class BiMamba2(nn.Module):
    """Two scans, added: forwards over the whole past, backwards from the end of each chunk.

    Of a whole utterance as one chunk it is the BiMamba-2 of M. He and P. N. Garner, "Joint
    Fine-tuning and Conversion of Pretrained Speech and Language Models towards Linear
    Complexity", ICLR 2025.
    """

    def __init__(self, width: int, has_residual: bool = False):
        """``has_residual``: the output is that of the scans and the input once more."""
        super().__init__()
        self.has_residual = has_residual
        self.forwards = Mamba2(width)
        self.backwards = Mamba2(width)

    def forward(
        self, x: Tensor, lens: Tensor, chunk_size: int, conv: Tensor, ssm: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Computes frames after their past.

        Args:
          x: (N, T, D), of which ``lens`` (N,) int64 count; the others do not matter.
          chunk_size: C, counted from the first frame of ``x``; -1: all of it.
          conv, ssm: the states of the scan forwards, as ``Mamba2`` takes them.

        Returns:
          (N, T, D), anything beyond ``lens``, and both states after frame T.
        """
        out, conv, ssm = self.forwards(x, conv, ssm)
        out = out + self._backwards(x, lens, chunk_size)
        return (out + x if self.has_residual else out), conv, ssm

    def _backwards(self, x: Tensor, lens: Tensor, chunk_size: int) -> Tensor:
        batch, frames, width = x.shape
        if chunk_size < 0 or chunk_size >= frames:
            return self._scan_reversed(x, lens)
        chunks = (frames + chunk_size - 1) // chunk_size
        x = F.pad(x, (0, 0, 0, chunks * chunk_size - frames))
        first = torch.arange(chunks, device=x.device) * chunk_size
        own = (lens.unsqueeze(1) - first).clamp(0, chunk_size).flatten()
        out = self._scan_reversed(x.reshape(batch * chunks, chunk_size, width), own)
        return out.reshape(batch, chunks * chunk_size, width)[:, :frames]

    def _scan_reversed(self, x: Tensor, lens: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        mirrored = lens.unsqueeze(1) - 1 - place
        place = torch.where(mirrored >= 0, mirrored, place).unsqueeze(2).expand(-1, -1, x.shape[2])
        conv, ssm = self.backwards.init_states(x.shape[0], x.device, x.dtype)
        out = self.backwards(x.gather(1, place), conv, ssm)[0]
        return out.gather(1, place)


def state_shapes(
    width: int, head_dim: int = HEAD_DIM, state_size: int = STATE_SIZE, kernel: int = KERNEL
) -> Tuple[List[int], List[int]]:
    """Returns the shapes of both states of a stream: of the convolution, and of the recurrence."""
    head_dim = math.gcd(width, head_dim)
    return [kernel - 1, width + 2 * state_size], [width // head_dim, head_dim, state_size]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the precision of sums over utterances for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, block: int = BLOCK
) -> Tuple[Tensor, Tensor]:
    """Runs the recurrence, without the term of D.

    Args:
      u: (N, T, H, P), dt: (N, T, H) above 0, a: (H,) below 0, b and c: (N, T, S).
      state: (N, H, P, S). block: most frames that are computed together.

    Returns:
      y (N, T, H, P) and the state after the last frame.
    """
    if not torch.jit.is_scripting():
        if mamba2_kernels.are_usable(u):
            return mamba2_kernels.scan(u, dt, a, b, c, state)
    frames = u.shape[1]
    block = max(min(frames, block), 1)
    missing = (block - frames % block) % block
    # A frame with dt = 0 changes nothing.
    u, dt = F.pad(u, (0, 0, 0, 0, 0, missing)), F.pad(dt, (0, 0, 0, missing))
    b, c = F.pad(b, (0, 0, 0, missing)), F.pad(c, (0, 0, 0, missing))
    blocks = (frames + missing) // block
    batch, _, heads, width = u.shape
    fed = (u * dt.unsqueeze(3)).view(batch, blocks, block, heads, width).transpose(2, 3)
    b = b.view(batch, blocks, 1, block, state.shape[3])
    c = c.view(batch, blocks, 1, block, state.shape[3])
    # Differences of sums: in float32 they would lose what the sums have more than they.
    logs = (dt.double() * a.double()).view(batch, blocks, block, heads).transpose(2, 3).cumsum(3)
    total = logs[:, :, :, -1]  # (N, B, H)

    within = _decay(logs, u.dtype) * (c @ b.transpose(3, 4))
    y = within @ fed  # (N, B, H, Q, P)
    to_end = (total.unsqueeze(3) - logs).exp().to(u.dtype).unsqueeze(4)
    added = fed.transpose(3, 4) @ (to_end * b)  # (N, B, H, P, S)

    # States before each block and after the last: the same sum over blocks.
    added = torch.cat((state.unsqueeze(1), added), dim=1).transpose(1, 2).flatten(3)
    until = F.pad(total, (0, 0, 1, 0)).transpose(1, 2).cumsum(2)  # (N, H, B + 1)
    states = _decay(until, u.dtype) @ added  # (N, H, B + 1, P S)
    states = states.view(batch, heads, blocks + 1, width, state.shape[3]).transpose(1, 2)
    y = y + (c * logs.exp().to(u.dtype).unsqueeze(4)) @ states[:, :-1].transpose(3, 4)
    y = y.transpose(2, 3).reshape(batch, frames + missing, heads, width)[:, :frames]
    return y, states[:, -1]


def _decay(logs: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns exp(logs_t - logs_s) for s <= t, else 0: (*, Q) float64 -> (*, Q, Q) of ``dtype``,
    in which training keeps it."""
    differences = (logs.unsqueeze(-1) - logs.unsqueeze(-2)).to(dtype)
    place = torch.arange(logs.shape[-1], device=logs.device)
    is_later = place.unsqueeze(0) > place.unsqueeze(1)
    return differences.masked_fill(is_later, -float("inf")).exp()


def _drawn_dt_bias(num_heads: int) -> Tensor:
    """Returns biases for which softplus gives steps spread evenly, on a log scale, over
    ``DT_RANGE``."""
    low, high = (math.log(value) for value in DT_RANGE)
    dt = torch.empty(num_heads).uniform_(low, high).exp()
    return dt + torch.log(-torch.expm1(-dt))
