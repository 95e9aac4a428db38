"""The classifier head: the mean over valid frames, whole or as a running one."""

from __future__ import annotations

import pytest
import torch

from xlsr_transducer.model.heads import ClassifierHead, ClassifierOptions, LossOptions


@pytest.mark.parametrize("dim", [0, 5])
def test_logits_are_those_of_the_mean_of_each_utterances_own_frames(dim: int) -> None:
    torch.manual_seed(0)
    head = ClassifierHead(6, 4, ClassifierOptions(dim)).double()
    x = torch.randn(4, 7, 6, dtype=torch.float64)
    lens = torch.tensor([7, 1, 3, 0])
    logits = head(x, lens)
    for row, length in enumerate(lens.tolist()):
        frames = x[row, :length]
        hidden = frames if head.projection is None else head.projection(frames)
        if length:
            torch.testing.assert_close(logits[row], head.output(hidden).mean(0))
    padded = torch.cat((x, torch.full((4, 3, 6), float("nan"), dtype=torch.float64)), dim=1)
    torch.testing.assert_close(head(padded, lens), logits)
    assert torch.isfinite(logits).all()  # of no frame too


def test_a_running_mean_does_not_depend_on_the_pieces() -> None:
    torch.manual_seed(1)
    head = ClassifierHead(6, 3)
    x, lens = torch.randn(3, 9, 6), torch.tensor([9, 4, 0])
    for cuts in ([9], [1] * 9, [4, 0, 5], [2, 6, 1]):
        state, start = head.init_state(3, x.device), 0
        for size in cuts:
            valid = (lens - start).clamp(0, size)
            state = head.advance(x[:, start : start + size], valid, state)
            start += size
        torch.testing.assert_close(head.logits(state), head(x, lens), rtol=1e-6, atol=1e-6)


def test_losses_are_cross_entropies_and_infinite_of_an_unknown_label() -> None:
    torch.manual_seed(2)
    head = ClassifierHead(6, 3)
    x, lens = torch.randn(3, 5, 6), torch.tensor([5, 2, 4])
    y, y_lens = torch.tensor([[2], [0], [0]]), torch.tensor([1, 1, 0])
    found = head.losses(x, lens, y, y_lens, LossOptions(heads="classifier"))["classifier"]
    expected = -head(x, lens).double().log_softmax(1)
    torch.testing.assert_close(found[:2].double(), expected[[0, 1], [2, 0]])
    assert found[2] == float("inf")
    found[:2].sum().backward()
    assert torch.isfinite(head.output.weight.grad).all()
