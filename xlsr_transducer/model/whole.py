"""Whether whole utterances fit in memory, asked before anything of them is computed.

A streaming view with limited left context needs no more memory for longer audio
(``XLSREncoder.encode``). Others compute an utterance in one piece, and attention may keep numbers
for every pair of its frames. Factors here are measured, see docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import os
import resource
from pathlib import Path

import torch
from torch import nn

from xlsr_transducer.core.compat import attend, attend_in_steps
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import HOP, SAMPLING_RATE

CPU = torch.device("cpu")
SAMPLES, FRAMES = SAMPLING_RATE, SAMPLING_RATE // HOP  # per second of audio
BYTES_PER_SAMPLE = 60.0  # normalisation, in float64, and the layers
BYTES_PER_CHANNEL = 2.6  # and sample: the first convolution, its norm and its activation
MASK_BYTES = 6  # per pair of frames: the mask while it is made, and as attention takes it
SCORE_BYTES = 8  # per pair of frames and head: scores and their softmax


@dataclasses.dataclass(frozen=True)
class WholeEncoder:
    """What decides how much memory an encoder needs that takes an utterance in one piece."""

    conv_width: int  # channels of the front end's first convolution
    num_heads: int
    has_mask: bool  # frames differ in what they see
    has_scores: bool  # attention is computed in steps, not by one of PyTorch's kernels
    advice: str  # what to do where memory does not suffice

    def bytes_for(self, seconds: float) -> int:
        """Returns about how much an utterance needs."""
        per_sample = BYTES_PER_SAMPLE + BYTES_PER_CHANNEL * self.conv_width
        per_pair = MASK_BYTES * self.has_mask + SCORE_BYTES * self.num_heads * self.has_scores
        frames = seconds * FRAMES
        # The front end has ended before attention begins.
        return int(max(seconds * SAMPLES * per_sample, frames * frames * per_pair))

    def check(self, name: str, seconds: float, device: torch.device = CPU) -> None:
        """Refuses audio for which the memory that is free now does not suffice.

        Raises:
          UserError: it does not; says how long the audio is and what it would need.
        """
        needed, free = self.bytes_for(seconds), free_bytes(device)
        if free is not None and needed > free:
            raise UserError(
                f"{name}: {seconds:.0f} s of audio in one piece need about "
                f"{needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free; "
                f"{self.advice}"
            )


def whole_encoder(
    encoder: nn.Module, chunk_size: int, left_context_chunks: int, advice: str
) -> WholeEncoder | None:
    """Describes an ``XLSREncoder``, scripted or not; None where ``encode`` works in blocks."""
    # Files that older versions exported have no ``encode``.
    if hasattr(encoder, "encode") and encoder.is_blockwise(chunk_size, left_context_chunks):
        return None
    width = len(encoder.xlsr.feature_extractor.state_dict()["conv_layers.0.conv.weight"])
    in_steps = attend is attend_in_steps
    return WholeEncoder(width, encoder.xlsr.num_heads, chunk_size > 0, in_steps, advice)


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process can still take on a device; None where that is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    found = []
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    if group.is_file() and group.read_text().strip().isdigit():  # of a container
        found.append(int(group.read_text()))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
    if limit != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        found.append(max(limit - pages * os.sysconf("SC_PAGE_SIZE"), 0))
    return min(found, default=None)
