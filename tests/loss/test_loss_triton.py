"""The GPU kernels do what the PyTorch loops do, run here by triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: triton looks at the variable when a kernel is defined.
PROGRAM = """
import torch
from xlsr_transducer.loss import lattice, sweeps, triton_kernel
from xlsr_transducer.loss.rnnt_loss import RNNT_TYPES, rnnt_loss

kernels = sweeps.Sweeps(triton_kernel.sweep_forward, triton_kernel.sweep_backward)
for seed, shape in enumerate([(1, 1, 1), (7, 3, 1), (9, 2, 5), (20, 3, 33), (5, 1, 64)]):
    print(shape, sweeps.sweeps_differ(kernels, torch.device("cpu"), shape, seed) or "agrees")

g = torch.Generator().manual_seed(1)
logits = torch.randn(3, 9, 6, 7, generator=g, dtype=torch.float64, requires_grad=True)
symbols = torch.randint(1, 7, (3, 5), generator=g)
boundary = torch.tensor([[0, 0, 5, 9], [0, 0, 0, 4], [1, 2, 4, 7]])
for rnnt_type in RNNT_TYPES:
    results = []
    for choice in (sweeps.TORCH_SWEEPS, kernels):
        lattice.get_sweeps = lambda device: choice
        loss = rnnt_loss(logits, symbols, 0, boundary, rnnt_type)
        results.append((loss, torch.autograd.grad(loss, logits)[0]))
    same = all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*results))
    print(rnnt_type, "agrees" if same else "differs")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (GPU only)"
)
def test_interpreted_kernels_agree_with_the_pytorch_loops():
    env = dict(os.environ, TRITON_INTERPRET="1")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8 and all(line.endswith("agrees") for line in lines), done.stdout
