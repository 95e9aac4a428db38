"""Chooses the library that multiplies matrices faster on this CPU: PyTorch's own or oneDNN.

It is measured once per machine and kept in the user's cache folder, so that the numbers of one
machine do not change from run to run; within a process the choice is the same for any rows.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.core.compat import fast_linear, has_fast_linear
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_text

AUTO, PYTORCH, ONEDNN = "auto", "pytorch", "onednn"
CPU_LAYERS = (AUTO, PYTORCH, ONEDNN)

SMALL_WIDTH = 256  # below, products cost next to nothing: PyTorch's, unmeasured
ROWS = (16, 64, 256)  # of a product: one stream's chunk, several, an utterance
REPEATS = 4  # the first of them does not count
CLEARLY = 0.97  # of PyTorch's time: a tie is PyTorch's, whatever the noise


@functools.cache
def choose_layers(width: int) -> str:
    """``pytorch`` or ``onednn`` for a network of this hidden size; measured if not known."""
    if width < SMALL_WIDTH or not has_fast_linear():
        return PYTORCH
    key = _machine(width)
    known = _read()
    if known.get(key) in (PYTORCH, ONEDNN):
        return known[key]
    ratio = measure(width)
    choice = ONEDNN if ratio < CLEARLY else PYTORCH
    logging.info(
        f"--cpu-layers {choice}: oneDNN takes {ratio:.2f} of the time of PyTorch's layers"
    )
    try:
        write_text(cache_file(), json.dumps({**known, key: choice}, indent=1) + "\n")
    except (UserError, OSError) as e:
        logging.info(f"not kept for the next time: {e}")
    return choice


def cache_file() -> Path:
    """Returns where choices are kept."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not folder.is_absolute():
        folder = Path(os.path.expanduser("~/.cache"))
    return folder / "xlsr_transducer" / "cpu_layers.json"


@torch.inference_mode()
def measure(width: int) -> float:
    """oneDNN's time relative to PyTorch's, the geometric mean over ``ROWS``; one or two seconds.

    Both take turns with the products of a transformer layer, and each ratio is a median, so that
    other load changes little.
    """
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    weights = [torch.full(shape, 0.01) for shape in shapes]
    plain = [functools.partial(F.linear, weight=weight) for weight in weights]
    fast = [fast_linear(weight, None) for weight in weights]
    ratios = []
    for rows in ROWS:
        inputs = [torch.full((rows, weight.shape[1]), 0.01) for weight in weights]
        pairs = [(_seconds(fast, inputs), _seconds(plain, inputs)) for _ in range(REPEATS)]
        ratios.append(statistics.median(a / b for a, b in pairs[1:]))
    return math.exp(statistics.fmean(map(math.log, ratios)))


def _seconds(layers: Sequence[Callable[[Tensor], Tensor]], inputs: Sequence[Tensor]) -> float:
    """Returns the time of all layers: the processor's where one thread works, as other load adds
    none."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for layer, x in zip(layers, inputs):
        layer(x)
    return max(clock() - start, 1e-9)


def _read() -> dict[str, str]:
    try:
        content = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _machine(width: int) -> str:
    """Returns what a choice depends on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    fields = dict(line.partition(":")[::2] for line in lines)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    names = ("vendor_id", "cpu family", "model", "model name")
    cpu = " ".join(values[name] for name in names if name in values) or cpu
    threads = torch.get_num_threads()
    return f"{cpu}, torch {torch.__version__}, {threads} threads, width {width}"
