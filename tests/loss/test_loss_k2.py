"""Both backends side by side on random ragged batches; the seed is in each test's name.

Runs only where k2 imports (requirements-k2.txt).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.loss import LossBackend, get_backend

BLANK = 0
OURS = get_backend("torch")
try:
    K2 = get_backend("k2")
except UserError as e:
    pytest.skip(str(e), allow_module_level=True)


def random_case(seed: int) -> dict:
    """Inputs in float64: 1 to 4 utterances of up to 24 frames and as many symbols."""
    g = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=g))

    def choice(*options):
        return options[integer(0, len(options) - 1)]

    B, T, V = integer(1, 4), integer(1, 24), integer(2, 20)
    S = integer(1, T)
    lens = []
    for b in range(B):
        T_b = T if b == 0 else integer(1, T)
        S_b = S if b == 0 else integer(0, min(S, T_b))
        lens.append([0, 0, S_b, T_b])
    scale = choice(0.3, 1.0, 3.0)
    return dict(
        am=scale * torch.randn(B, T, V, generator=g, dtype=torch.float64),
        lm=scale * torch.randn(B, S + 1, V, generator=g, dtype=torch.float64),
        W=0.7 * torch.randn(V, V, generator=g, dtype=torch.float64),
        symbols=torch.randint(1, V, (B, S), generator=g),
        boundary=choice(torch.tensor(lens), torch.tensor(lens), torch.tensor(lens), None),
        rnnt_type=choice("regular", "modified", "constrained"),
        delay_penalty=choice(0.0, 0.0, 0.01, 0.1),
        scales=choice((0.0, 0.0), (0.25, 0.0), (0.1, 0.1), (0.0, 0.3)),
        prune_range=integer(2, 8),
        weights=torch.rand(B, generator=g, dtype=torch.float64),
    )


def results(
    backend: LossBackend, case: dict, dtype: torch.dtype, ranges: Tensor | None
) -> dict[str, Tensor]:
    """Losses, occupations, prune ranges and gradients; prunes by ``ranges`` where given."""
    am, lm, W = (case[k].to(dtype).requires_grad_(True) for k in ("am", "lm", "W"))
    weights = case["weights"].to(dtype)
    common = {k: case[k] for k in ("boundary", "rnnt_type", "delay_penalty")}
    common["reduction"] = "none"
    out = {}
    out["simple"] = backend.rnnt_loss_simple(lm, am, case["symbols"], BLANK, **common)
    out["smoothed"], (out["px_grad"], out["py_grad"]) = backend.rnnt_loss_smoothed(
        lm, am, case["symbols"], BLANK, *case["scales"], return_grad=True, **common
    )
    B, T, _ = am.shape
    S = case["symbols"].shape[1]
    boundary = case["boundary"]
    if boundary is None:
        boundary = torch.tensor([[0, 0, S, T]] * B)
    if ranges is None:
        ranges = backend.get_rnnt_prune_ranges(
            out["px_grad"], out["py_grad"], boundary, case["prune_range"]
        )
    out["ranges"] = ranges
    logits = torch.tanh(torch.add(*backend.do_rnnt_pruning(am, lm, ranges))) @ W
    out["pruned"] = backend.rnnt_loss_pruned(logits, case["symbols"], ranges, BLANK, **common)
    logits = torch.tanh(am.unsqueeze(2) + lm.unsqueeze(1)) @ W
    out["full"] = backend.rnnt_loss(logits, case["symbols"], BLANK, **common)
    for name in ("simple", "smoothed", "pruned", "full"):
        total = (out[name] * weights).sum()
        leaves = dict(am=am, lm=lm, W=W)
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        for leaf, grad in zip(leaves, grads):  # noqa: B905 (one each)
            if grad is not None:
                out[f"{name} gradient of {leaf}"] = grad
    return out


@pytest.mark.parametrize("seed", range(200))
def test_torch_backend_gives_what_the_installed_k2_gives(seed):
    case = random_case(seed)
    theirs = results(K2, case, torch.float64, None)
    ours = results(OURS, case, torch.float64, theirs["ranges"])
    single = results(OURS, case, torch.float32, theirs["ranges"])
    assert ours.keys() == theirs.keys() == single.keys()
    for name, expected in theirs.items():
        size = float(expected.abs().max())
        torch.testing.assert_close(
            ours[name], expected, rtol=1e-9, atol=1e-9 * max(size, 1e-3), msg=f"{name}, float64"
        )
        torch.testing.assert_close(
            single[name].to(expected.dtype), expected, rtol=1e-5, atol=1e-5 * max(size, 1.0),
            msg=f"{name}, float32",
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(200))
def test_prune_ranges_of_the_same_occupations_are_the_installed_k2s(seed):
    case = random_case(seed)
    B, T, S = len(case["am"]), case["am"].shape[1], case["symbols"].shape[1]
    boundary = case["boundary"]
    if boundary is None:
        boundary = torch.tensor([[0, 0, S, T]] * B)
    for dtype in (torch.float64, torch.float32):
        _, occupations = K2.rnnt_loss_simple(
            case["lm"].to(dtype), case["am"].to(dtype), case["symbols"], BLANK, case["boundary"],
            case["rnnt_type"], return_grad=True,
        )  # fmt: skip
        for R in (2, case["prune_range"], S + 1):
            ours, theirs = (f.get_rnnt_prune_ranges(*occupations, boundary, R) for f in (OURS, K2))
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seed", range(40))
def test_boundaries_that_begin_later_count_as_in_the_installed_k2(seed):
    case = random_case(seed)
    g = torch.Generator().manual_seed(seed)
    T, S = case["am"].shape[1], case["symbols"].shape[1]
    ends = torch.tensor([[S, T]] * len(case["am"]))
    begins = (torch.rand(ends.shape, generator=g) * ends).long()
    case["boundary"] = torch.cat((begins, ends), 1)
    kw = {k: case[k] for k in ("boundary", "rnnt_type", "delay_penalty")}
    args = (case["lm"], case["am"], case["symbols"], BLANK)
    ours, theirs = (f.rnnt_loss_simple(*args, reduction="none", **kw) for f in (OURS, K2))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
