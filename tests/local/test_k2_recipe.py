"""A model trained with the real k2's losses: it learns, decodes, and is what ours would be.

Runs only where k2 imports (requirements-k2.txt).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.tiny_recipe import run_train
from xlsr_transducer import decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.loss import get_backend

try:
    get_backend("k2")
except UserError as e:
    pytest.skip(str(e), allow_module_level=True)


def test_a_model_trained_with_k2_decodes_and_its_losses_are_ours(
    corpus: Path, tmp_path: Path
) -> None:
    pruned = {}
    for backend in ("k2", "torch"):
        run_train(corpus, tmp_path / backend, "--loss-backend", backend)
        history = json.loads((tmp_path / backend / "history.json").read_text())
        pruned[backend] = [e[part]["pruned"] for e in history for part in ("train", "valid")]
    # The same numbers to rounding, which two epochs of training enlarge.
    assert pruned["k2"] == pytest.approx(pruned["torch"], rel=0.02)
    assert pruned["k2"][2] < pruned["k2"][0]

    exp = tmp_path / "k2"
    arguments = [f"--exp-dir={exp}", f"--data-dir={corpus}", "--num-workers=0"]
    decode.main([*arguments, "--split=test_seen", "--blank-penalty=4"])
    [recogs] = (exp / "greedy_search").glob("recogs-test_seen-*")
    assert recogs.read_text(encoding="utf-8").count("hyp=") == 5
