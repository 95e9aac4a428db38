"""What training shows of fixed utterances: a table, and where the model puts the tokens."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.training.test_inf_check import tiny_model
from xlsr_transducer.recognition.alignment import align
from xlsr_transducer.recognition.scoring import Transcript
from xlsr_transducer.search import Hypothesis
from xlsr_transducer.training.samples import (
    ctc_occupation,
    draw_lattice,
    lattice_of,
    sample_table,
)

PIECES = [f"▁{i}" for i in range(10)]


@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("frames, tokens", [(9, [3, 1, 4]), (1, [5])])
def test_each_token_is_somewhere_and_the_picture_is_drawn(
    tmp_path: Path, rnnt_type: str, frames: int, tokens: list[int]
) -> None:
    model = tiny_model().eval()
    lattice = lattice_of(
        model, "a", torch.randn(frames, 16), tokens, Hypothesis(frames=[0]), PIECES, rnnt_type
    )
    assert lattice.occupation.shape == (len(tokens), frames)
    torch.testing.assert_close(lattice.occupation.sum(1), torch.ones(len(tokens)))
    assert lattice.pieces == [PIECES[t] for t in tokens]
    assert lattice.ctc is not None and (lattice.ctc >= 0).all() and (lattice.ctc <= 1).all()
    draw_lattice(lattice, "epoch 1", tmp_path / "alignment.png")
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["alignment.png"]


def test_a_sure_model_puts_the_tokens_where_the_best_path_does() -> None:
    torch.manual_seed(3)
    model = tiny_model().eval()
    with torch.no_grad():
        model.joiner.output_linear.weight.mul_(60)
    frames, tokens = torch.randn(8, 16), [2, 7]
    best = align(model, frames[None], torch.tensor([8]), torch.tensor([tokens]), torch.tensor([2]))
    lattice = lattice_of(model, "a", frames, tokens, best[0], PIECES)
    assert lattice.occupation.max() > 0.9
    assert lattice.occupation.argmax(1).tolist() == best[0].frames


@pytest.mark.parametrize("tokens", [[1], [1, 2], [2, 2], [1, 2, 1], [2, 2, 2]])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_ctc_puts_tokens_where_all_its_alignments_do(frames: int, tokens: list[int]) -> None:
    """Summed over every sequence of labels that reads as the text; places told by hand."""
    log_probs = torch.randn(frames, 3, generator=torch.Generator().manual_seed(frames))
    log_probs = log_probs.double().log_softmax(-1)
    expected, total = torch.zeros(len(tokens), frames, dtype=torch.float64), 0.0
    for labels in itertools.product(range(3), repeat=frames):
        runs = [list(run) for _, run in itertools.groupby(enumerate(labels), lambda x: x[1])]
        runs = [run for run in runs if run[0][1] != 0]
        if [run[0][1] for run in runs] != tokens:
            continue
        probability = float(log_probs[range(frames), labels].sum().exp())
        total += probability
        for place, run in enumerate(runs):
            expected[place, [t for t, _ in run]] += probability
    found = ctc_occupation(log_probs, tokens)
    expected = expected / total if total else expected
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


def test_a_model_with_ctc_alone_has_a_picture(tmp_path: Path) -> None:
    model = tiny_model().eval()
    del model.heads["transducer"]
    lattice = lattice_of(model, "a", torch.randn(9, 16), [3, 1], Hypothesis(frames=[0]), PIECES)
    assert lattice.occupation.shape == (2, 9) and not lattice.has_transducer
    assert (lattice.occupation.sum(0) <= 1 + 1e-6).all() and (lattice.occupation.sum(1) > 0).all()
    draw_lattice(lattice, "epoch 1", tmp_path / "alignment.png")
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_keeps_bars_inside_their_cells() -> None:
    table = sample_table([Transcript("u|1", ["a", "b"], ["a"]), Transcript("u2", [], [])])
    assert table.splitlines()[2:] == ["| u\\|1 | a b | a |", "| u2 |  |  |"]
