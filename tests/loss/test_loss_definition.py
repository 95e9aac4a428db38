"""The losses are what their definition says, independently of k2.

Sums over every path written out, finite differences, slices instead of boundaries, and a watch
on the size of every tensor made.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.loss import get_backend
from xlsr_transducer.loss.rnnt_loss import (
    RNNT_TYPES,
    do_rnnt_pruning,
    get_rnnt_prune_ranges,
    rnnt_loss,
    rnnt_loss_pruned,
    rnnt_loss_simple,
    rnnt_loss_smoothed,
)

BLANK = 0


def path_scores(
    logp: Tensor,
    symbols: list[int],
    rnnt_type: str,
    delay: float = 0.0,
    cells: set[tuple[int, int]] | None = None,
) -> list[float]:
    """Scores of all paths from (s, t) = (0, 0) to (S, T), by walking each of them.

    logp: (T, S + 1, V) log-probabilities; cells: those (s, t) that may be used, None: all.
    """
    T, S = logp.shape[0], len(symbols)
    found = []

    def allowed(s: int, t: int) -> bool:
        return cells is None or (s, t) in cells

    def walk(s: int, t: int, score: float) -> None:
        if t == T:
            if s == S:
                found.append(score)
            return
        if not allowed(s, t):
            return
        walk(s, t + 1, score + logp[t, s, BLANK].item())
        if s == S:
            return
        emit = score + logp[t, s, symbols[s]].item() + delay * ((T - 1) / 2 - t)
        if rnnt_type == "regular":
            walk(s + 1, t, emit)
        elif rnnt_type == "modified":
            walk(s + 1, t + 1, emit)
        elif allowed(s + 1, t):
            walk(s + 1, t + 1, emit + logp[t, s + 1, BLANK].item())

    walk(0, 0, 0.0)
    return found


def negative_log_sum(scores: list[float]) -> float:
    return (
        -torch.logsumexp(torch.tensor(scores, dtype=torch.float64), 0).item()
        if scores
        else math.inf
    )


@pytest.mark.parametrize("delay", [0.0, 0.1])
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("T,S", [(1, 0), (1, 1), (3, 0), (4, 3), (3, 3), (5, 2), (2, 3)])
def test_full_and_pruned_loss_are_the_sum_over_all_paths(T, S, rnnt_type, delay):
    g = torch.Generator().manual_seed(100 * T + S)
    logits = torch.randn(1, T, S + 1, 6, generator=g, dtype=torch.float64)
    symbols = torch.randint(1, 6, (1, S), generator=g)
    logp = logits[0].log_softmax(-1)
    args = dict(rnnt_type=rnnt_type, delay_penalty=delay, reduction="none")

    paths = path_scores(logp, symbols[0].tolist(), rnnt_type, delay)
    loss = rnnt_loss(logits, symbols, BLANK, **args)
    assert loss.item() == pytest.approx(negative_log_sum(paths), rel=1e-12)

    for R in range(1, S + 2):
        start = [min(max(0, S + 1 - R), t) for t in range(T)]
        ranges = torch.tensor(start).reshape(1, T, 1) + torch.arange(R)
        index = ranges.unsqueeze(3).expand(1, T, R, 6)
        cells = {(s, t) for t in range(T) for s in range(start[t], start[t] + R)}
        paths = path_scores(logp, symbols[0].tolist(), rnnt_type, delay, cells)
        loss = rnnt_loss_pruned(logits.gather(2, index), symbols, ranges, BLANK, **args)
        assert loss.item() == pytest.approx(negative_log_sum(paths), rel=1e-12)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("lm_scale,am_scale", [(0.0, 0.0), (0.25, 0.0), (0.2, 0.3)])
def test_smoothed_loss_is_the_full_loss_of_the_mixed_log_probabilities(
    rnnt_type, lm_scale, am_scale
):
    g = torch.Generator().manual_seed(7)
    am = torch.randn(2, 5, 4, generator=g, dtype=torch.float64)
    lm = torch.randn(2, 4, 4, generator=g, dtype=torch.float64)
    symbols = torch.randint(1, 4, (2, 3), generator=g)
    am_, lm_ = am.unsqueeze(2), lm.unsqueeze(1)
    unigram = lm.softmax(-1).mean((0, 1)).log()
    mixed = (am_ + lm_).log_softmax(-1) * (1 - lm_scale - am_scale)
    mixed = mixed + lm_.log_softmax(-1) * lm_scale + (am_ + unigram).log_softmax(-1) * am_scale
    loss = rnnt_loss_smoothed(
        lm, am, symbols, BLANK, lm_scale, am_scale, rnnt_type=rnnt_type, reduction="none"
    )
    for b in range(2):
        paths = path_scores(mixed[b], symbols[b].tolist(), rnnt_type)
        assert loss[b].item() == pytest.approx(negative_log_sum(paths), rel=1e-12)


BOUNDARY = torch.tensor([[0, 0, 3, 5], [0, 0, 0, 3], [0, 0, 1, 1], [1, 1, 3, 4]])


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_gradients_are_those_of_finite_differences(rnnt_type):
    g = torch.Generator().manual_seed(11)
    symbols = torch.randint(1, 4, (4, 3), generator=g)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_(True)

    am, lm, weights = leaf(4, 5, 4), leaf(4, 4, 4), torch.tensor([1.0, -2.0, 0.5, 3.0])
    common = dict(boundary=BOUNDARY, rnnt_type=rnnt_type, delay_penalty=0.05, reduction="none")

    def smoothed(am: Tensor, lm: Tensor) -> Tensor:
        loss = rnnt_loss_smoothed(lm, am, symbols, BLANK, 0.2, 0.1, **common)
        return (loss * weights).sum()

    def full(logits: Tensor) -> Tensor:
        return (rnnt_loss(logits, symbols, BLANK, **common) * weights).sum()

    ranges = torch.tensor([0, 0, 1, 1, 1]).reshape(1, 5, 1) + torch.arange(3)
    ranges = ranges.repeat(4, 1, 1)
    ranges[1:3] -= ranges[1:3, :, :1].clone()

    def pruned(am: Tensor, lm: Tensor) -> Tensor:
        logits = torch.tanh(torch.add(*do_rnnt_pruning(am, lm, ranges)))
        loss = rnnt_loss_pruned(logits, symbols, ranges, BLANK, **common)
        return (loss * weights).sum()

    assert torch.autograd.gradcheck(smoothed, (am, lm))
    assert torch.autograd.gradcheck(full, (leaf(4, 5, 4, 4),))
    assert torch.isfinite(pruned(am, lm))
    assert torch.autograd.gradcheck(pruned, (am, lm))


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_boundary_gives_what_the_slice_alone_gives_with_zero_gradient_outside(rnnt_type):
    g = torch.Generator().manual_seed(12)
    logits = torch.randn(4, 5, 4, 6, generator=g, dtype=torch.float64, requires_grad=True)
    symbols = torch.randint(1, 6, (4, 3), generator=g)
    loss = rnnt_loss(logits, symbols, BLANK, BOUNDARY, rnnt_type, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    for b, (s0, t0, s1, t1) in enumerate(BOUNDARY.tolist()):
        part = logits[b : b + 1, t0:t1, s0 : s1 + 1]
        alone = rnnt_loss(part, symbols[b : b + 1, s0:s1], BLANK, rnnt_type=rnnt_type)
        assert loss[b].item() == pytest.approx(alone.item(), rel=1e-12)
        (alone_grad,) = torch.autograd.grad(alone, logits)
        torch.testing.assert_close(grad[b], alone_grad[b], rtol=1e-10, atol=1e-14)


def test_occupations_add_up_to_symbols_and_frames():
    g = torch.Generator().manual_seed(13)
    am, lm = torch.randn(3, 9, 5, generator=g), torch.randn(3, 5, 5, generator=g)
    symbols = torch.randint(1, 5, (3, 4), generator=g)
    boundary = torch.tensor([[0, 0, 4, 9], [0, 0, 2, 7], [0, 0, 0, 1]])
    for rnnt_type in RNNT_TYPES:
        _, (px_grad, py_grad) = rnnt_loss_simple(
            lm, am, symbols, BLANK, boundary, rnnt_type, return_grad=True
        )
        S, T = boundary[:, 2].float(), boundary[:, 3].float()
        torch.testing.assert_close(px_grad.sum((1, 2)), S)
        blanks = T if rnnt_type == "regular" else T - S
        torch.testing.assert_close(py_grad.sum((1, 2)), blanks)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_float32_occupations_of_a_long_utterance_keep_their_digits(rnnt_type):
    g = torch.Generator().manual_seed(14)
    am = 3 * torch.randn(1, 1500, 30, generator=g)
    lm = 3 * torch.randn(1, 121, 30, generator=g)
    symbols = torch.randint(1, 30, (1, 120), generator=g)
    single, double = (
        rnnt_loss_simple(lm.to(d), am.to(d), symbols, BLANK, None, rnnt_type, return_grad=True)
        for d in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single[0].double(), double[0], rtol=1e-6, atol=0)
    for a, b in zip(single[1], double[1]):  # noqa: B905
        torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-4)


def test_utterance_without_a_path_is_infinite_with_zero_gradient():
    g = torch.Generator().manual_seed(15)
    logits = torch.randn(2, 4, 4, 5, generator=g, requires_grad=True)
    symbols = torch.randint(1, 5, (2, 3), generator=g)
    boundary = torch.tensor([[0, 0, 3, 4], [0, 0, 3, 2]])
    loss = rnnt_loss(logits, symbols, BLANK, boundary, "modified", reduction="none")
    assert loss[0].isfinite() and loss[1] == math.inf
    loss.sum().backward()
    assert logits.grad[0].abs().sum() > 0 and logits.grad[1].abs().sum() == 0
    assert rnnt_loss(logits, symbols, BLANK, boundary, "regular").isfinite()


@pytest.mark.parametrize("regular", [True, False])
def test_prune_ranges_start_at_0_never_fall_and_reach_the_end(regular):
    g = torch.Generator().manual_seed(16)
    B, T, S = 5, 30, 12
    boundary = torch.tensor(
        [[0, 0, 12, 30], [0, 0, 12, 12], [0, 0, 0, 9], [0, 0, 1, 1], [0, 0, 5, 20]]
    )
    for R in (2, 4, 13, 50):
        px_grad = torch.rand(B, S, T + int(regular), generator=g)
        py_grad = torch.rand(B, S + 1, T, generator=g)
        ranges = get_rnnt_prune_ranges(px_grad, py_grad, boundary, R)
        width = min(R, S + 1)
        assert ranges.shape == (B, T, width)
        start = ranges[:, :, 0]
        assert torch.equal(ranges, start.unsqueeze(2) + torch.arange(width))
        steps = start[:, 1:] - start[:, :-1]
        assert (start[:, 0] == 0).all() and steps.min() >= 0
        assert steps.max() <= (width - 1 if regular else 1)
        for b, (_, _, S_b, T_b) in enumerate(boundary.tolist()):
            if regular or T_b > S_b:
                assert S_b in ranges[b, T_b - 1]


class LargestStorage(TorchDispatchMode):
    """Remembers the most elements that any tensor made under it holds memory for."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                storage = t.untyped_storage() if hasattr(t, "untyped_storage") else t.storage()
                self.elements = max(self.elements, storage.nbytes() // t.element_size())
        return out


def test_no_tensor_is_larger_than_the_pruned_logits_in_either_direction():
    B, T, S, V, R = 2, 60, 40, 50, 3
    g = torch.Generator().manual_seed(17)
    am = torch.randn(B, T, V, generator=g, requires_grad=True)
    lm = torch.randn(B, S + 1, V, generator=g, requires_grad=True)
    symbols = torch.randint(1, V, (B, S), generator=g)
    boundary = torch.tensor([[0, 0, S, T]] * B)
    with LargestStorage() as watch:
        simple, grads = rnnt_loss_smoothed(
            lm, am, symbols, BLANK, 0.2, 0.1, boundary, return_grad=True
        )
        ranges = get_rnnt_prune_ranges(*grads, boundary, R)
        logits = torch.tanh(torch.add(*do_rnnt_pruning(am, lm, ranges)))
        pruned = rnnt_loss_pruned(logits, symbols, ranges, BLANK, boundary)
        (simple + pruned).backward()
    assert am.grad.isfinite().all() and lm.grad.isfinite().all()
    assert B * T * R * V <= watch.elements < 1.5 * B * T * R * V


def test_bad_arguments_are_refused_by_name():
    am, lm, symbols = torch.zeros(1, 4, 5), torch.zeros(1, 3, 5), torch.ones(1, 2).long()
    with pytest.raises(UserError, match="rnnt_type 'standard'"):
        rnnt_loss_simple(lm, am, symbols, BLANK, rnnt_type="standard")
    with pytest.raises(UserError, match="delay_penalty is -1"):
        rnnt_loss_simple(lm, am, symbols, BLANK, delay_penalty=-1.0)
    with pytest.raises(UserError, match="reduction 'avg'"):
        rnnt_loss_simple(lm, am, symbols, BLANK, reduction="avg")
    with pytest.raises(ValueError, match="utterance 0 is"):
        rnnt_loss_simple(lm, am, symbols, BLANK, boundary=torch.tensor([[0, 0, 2, 5]]))
    with pytest.raises(ValueError, match="symbols are"):
        rnnt_loss_simple(lm, am, torch.ones(1, 3).long(), BLANK)
    with pytest.raises(UserError, match="unknown loss backend 'cuda'"):
        get_backend("cuda")


def test_auto_backend_is_k2_where_it_imports_and_torch_elsewhere():
    try:
        import k2

        expected, function = "k2", k2.rnnt_loss_pruned
    except Exception:
        expected, function = "torch", rnnt_loss_pruned
        with pytest.raises(UserError, match="--loss-backend k2: k2 does not import.*install"):
            get_backend("k2")
    backend = get_backend("auto")
    assert backend.name == expected and backend.rnnt_loss_pruned is function
    assert get_backend("torch").rnnt_loss_pruned is rnnt_loss_pruned
