"""Group weights beside the authors' values, a rule of its own in numpy, and trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.training.group_weights import GroupWeightOptions, GroupWeights

GOLDEN = Path(__file__).parents[1] / "golden" / "ctc_dro.json"
CASES = json.loads(GOLDEN.read_text())["cases"]


def names_of(count: int) -> list[str]:
    return [f"g{i}" for i in range(count)]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_weights_are_those_of_the_authors_class(case: int) -> None:
    given = CASES[case]
    options = GroupWeightOptions(
        group_weights="ctc-dro" if given["smoothing"] else "group-dro",
        dro_step_size=given["step_size"],
        dro_smoothing=given["smoothing"] or 0.3,  # of no account to group-dro
        dro_epsilon=given["epsilon"],
    )
    weights = options.of(names_of(given["groups"]))
    for batch in given["batches"]:
        weights.add(batch["group"], sum(batch["losses"]))
        np.testing.assert_allclose(weights.q, batch["q_after"], rtol=0, atol=1e-9)
        weighted = np.array(batch["losses"]) * weights.factor(batch["group"])
        np.testing.assert_allclose(weighted, batch["weighted"], rtol=1e-9, atol=1e-9)
    assert len(given["batches"]) == 40 and max(weights.q) > 1.01 * min(weights.q)


def test_no_loss_is_too_large_and_a_group_that_was_outweighed_comes_back() -> None:
    """Beside the rule in numpy's extended precision, whose exponents do not overflow here."""
    rng = np.random.default_rng(3)
    for size in (1.0, 1e3, 5e4, 2e5):
        weights = GroupWeights(names_of(3), step_size=0.01, smoothing=0.1, epsilon=1e-10)
        losses = size * (1 - 1e-3 * rng.random(3))
        for group in range(3):
            weights.add(group, losses[group])
        exponents = 0.01 * losses.astype(np.longdouble) / (np.longdouble(np.float32(1 / 3)) + 0.1)
        q = np.exp(exponents) / 3 + 1e-10
        np.testing.assert_allclose(weights.q, (q / q.sum()).astype(float), rtol=1e-9, atol=1e-12)
    for group, loss in enumerate((1e30, 0.0, 0.0)):
        weights.add(group, loss)
    assert weights.q[0] == pytest.approx(1.0, abs=1e-12) and min(weights.q) > 0
    for _ in range(60):
        for group, loss in enumerate((1.0, 1.0, 2000.0)):
            weights.add(group, loss)
    assert weights.q[2] > 0.5


def test_weights_wait_for_a_batch_of_every_group_also_across_a_checkpoint() -> None:
    weights, resumed = (GroupWeights(names_of(3), 0.01, 0.5, 1e-10) for _ in range(2))
    for group, loss in ((0, 3.0), (2, 50.0), (0, 9.0)):
        weights.add(group, loss)
        assert weights.q == pytest.approx([1 / 3] * 3)
    resumed.load(json.loads(json.dumps(weights.content())))
    for one in (weights, resumed):
        one.add(1, 10.0)
    assert weights.q == resumed.q and weights.q[2] > weights.q[1] > weights.q[0]
    expected = np.exp(0.01 * np.array([6.0, 10.0, 50.0]) / (1 / 3 + 0.5)) / 3
    np.testing.assert_allclose(weights.q, expected / expected.sum(), rtol=1e-8)
    assert weights.counts == [0, 0, 0]


def test_other_groups_in_a_checkpoint_and_one_group_are_refused_by_name() -> None:
    weights = GroupWeights(["et", "lv"], 0.01, 0.5, 1e-10)
    for names in (["et", "fi", "lv"], ["et", "fi"]):
        with pytest.raises(UserError, match=rf"{len(names)} groups \(et, fi.*2 groups \(et, lv\)"):
            weights.load(GroupWeights(names, 0.01, 0.5, 1e-10).content())
    with pytest.raises(UserError, match="only the group 'et'"):
        GroupWeightOptions("ctc-dro").of(["et"])


def test_the_log_names_few_groups_and_the_ends_of_many() -> None:
    assert GroupWeights(["et", "lv"], 0.01, 0.5, 1e-10).describe() == "q et 0.500, lv 0.500"
    weights = GroupWeights(names_of(100), 0.01, 0.5, 1e-10)
    for group in range(100):
        weights.add(group, float(group))
    assert weights.describe() == f"q g0 {weights.q[0]:.4f} to g99 {weights.q[99]:.4f}"
