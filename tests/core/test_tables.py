"""The formatter of every table."""

from __future__ import annotations

import pytest

from xlsr_transducer.core.tables import text_table

ROWS = [("set", "WER"), ("validation", "7.5"), ("a", "")]


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    expected = ["set         WER", "---------------", "validation  7.5", "a"]
    assert text_table(ROWS).split("\n") == expected


def test_numbers_stand_to_the_right() -> None:
    table = text_table([("", "a", "train"), ("hours", "1.25", "0.5")], is_right=True)
    assert table.split("\n")[2] == "hours  1.25    0.5"


def test_a_rule_is_left_out_and_a_ragged_table_is_refused() -> None:
    assert text_table(ROWS, is_ruled=False).count("\n") == 2
    with pytest.raises(ValueError):
        text_table([("a", "b"), ("c",)])
