"""Where the curves of the benchmark of mixers cross."""

from __future__ import annotations

from benchmarks.mixers import crossing

LENGTHS = [2.0, 8.0, 32.0, 128.0]


def test_curves_cross_where_they_are_equal() -> None:
    squares, lines = ([f(s) for s in LENGTHS] for f in (lambda s: s * s, lambda s: 20 * s))
    assert crossing(LENGTHS, lines, squares) == "they cross at about 20 s, less beyond"
    assert crossing(LENGTHS, squares, lines) == "they cross at about 20 s, more beyond"
    wavy = [0.5 * a if i % 2 else 2 * a for i, a in enumerate(lines)]
    assert crossing(LENGTHS, wavy, lines).count("at about") == 3


def test_curves_that_do_not_cross_are_said_to_be_so() -> None:
    lines = [2 * s for s in LENGTHS]
    for ours, size in (([3 * s for s in LENGTHS], "more"), (LENGTHS, "less"), (lines, "equal")):
        expected = f"{size} at every length of 2 to 128 s: they do not cross"
        assert crossing(LENGTHS, ours, lines) == expected
    assert crossing(LENGTHS, [0.0, *lines[1:]], lines) == "not measurable"
