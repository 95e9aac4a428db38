"""Pictures of the grid: WER over latency, the effect of sinks, a map of all settings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from xlsr_transducer.evaluation.drawing import (
    COLOURS,
    FAINT,
    PAPER,
    SHADES,
    drawing,
    mark_cells,
    plain_map,
    styled,
)
from xlsr_transducer.evaluation.rows import Row, pareto
from xlsr_transducer.evaluation.section import Figure

LEFT = {-1: "all"}  # how a left context is written


def _streaming(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of settings that stream and have a WER: without words there is none."""
    return [r for r in rows if math.isfinite(r.latency) and math.isfinite(r.total.wer.percent)]


@styled
def wer_over_latency(grids: Sequence[Sequence[Row]]) -> Figure:
    """Draws all settings, and the Pareto front of each experiment with its names."""
    figure, [[axes]] = drawing(7.6, 4.2)
    grids = [[row for row in rows if math.isfinite(row.total.wer.percent)] for rows in grids]
    for number, rows in enumerate(grids):
        colour = COLOURS[number % len(COLOURS)]
        streaming = _streaming(rows)
        _draw_settings(axes, streaming, colour)
        _draw_front(axes, pareto(streaming), colour, number)
        for row in rows:
            if math.isinf(row.latency):
                wer = row.total.wer.percent
                label = f"{row.experiment}, whole utterance: {wer:.2f} %"
                axes.axhline(wer, color=colour, linestyle=(0, (5, 3)), linewidth=1.1, label=label)
    axes.set_xscale("log", base=2)
    ticks = sorted({row.latency for rows in grids for row in rows if math.isfinite(row.latency)})
    axes.set_xticks(ticks, [f"{1000 * t:.0f}" for t in ticks], minor=False)
    if ticks:
        axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.75)
    axes.set(xlabel="algorithmic latency (ms)", ylabel="WER (%)", ylim=(0, None))
    axes.legend(loc="upper right", fontsize=8.5)
    return Figure(
        "wer-over-latency",
        figure,
        "Every setting, a dot, and its WER over all sets. The line is the Pareto front: no other "
        "setting has less latency and a WER as low. Bars are 95 % intervals of the front.",
        "WER over algorithmic latency: " + _spoken(grids),
    )


def _draw_settings(axes: Axes, rows: Sequence[Row], colour: str) -> None:
    points = [(row.latency, row.total.wer.percent) for row in rows]
    axes.plot(*zip(*points) if points else ([], []), "o", ms=4.5, color=colour, alpha=0.35, mew=0)


def _draw_front(axes: Axes, front: Sequence[Row], colour: str, number: int) -> None:
    if not front:
        return
    x, y = zip(*[(row.latency, row.total.wer.percent) for row in front])
    bounds = [(p - row.total.wer.low, row.total.wer.high - p) for p, row in zip(y, front)]
    style = {"color": colour, "mec": PAPER, "mew": 1.0, "ms": 7.5, "elinewidth": 0.9}
    axes.errorbar(
        x, y, list(zip(*bounds)), fmt="o-", capsize=2.5, label=front[0].experiment, **style
    )
    for row in front:
        sinks = row.chunk.attention_sink_size
        left = row.chunk.left_context_chunks
        text = f"{row.chunk.chunk_size * 20} ms\nleft {LEFT.get(left, left)}, sinks {sinks}"
        axes.annotate(
            text,
            (row.latency, row.total.wer.percent),
            (9, 7 if number % 2 == 0 else -24),
            textcoords="offset points",
            fontsize=8,
            linespacing=1.25,
        )


def _spoken(grids: Sequence[Sequence[Row]]) -> str:
    fronts = [row for rows in grids for row in pareto(rows)]
    return "; ".join(
        f"{row.experiment}, {row.name}: {row.total.wer.percent:.2f} %" for row in fronts
    )


@styled
def sink_effect(rows: Sequence[Row]) -> Figure | None:
    """Draws WER over the number of sinks, a line per left context, a panel per chunk size.

    Returns:
      None where fewer than two numbers of sinks were tried.
    """
    streaming = _streaming(rows)
    sinks = sorted({row.chunk.attention_sink_size for row in streaming})
    sizes = sorted({row.chunk.chunk_size for row in streaming})
    if len(sinks) < 2:
        return None
    figure, axes = drawing(max(1.75 * len(sizes), 4.4), 2.7, 1, len(sizes), sharey=True)
    for panel, size in zip(axes[0], sizes):
        of_size = [row for row in streaming if row.chunk.chunk_size == size]
        lefts = sorted({row.chunk.left_context_chunks for row in of_size}, key=lambda n: n % 2**31)
        for number, left in enumerate(lefts):
            found = {
                row.chunk.attention_sink_size: row.total.wer.percent
                for row in of_size
                if row.chunk.left_context_chunks == left
            }
            x = [sinks.index(n) for n in sorted(found)]
            y = [found[n] for n in sorted(found)]
            label = f"left {LEFT.get(left, left)}"
            panel.plot(x, y, "o-", ms=4.5, color=COLOURS[number % len(COLOURS)], label=label)
        panel.set_xticks(range(len(sinks)), list(map(str, sinks)))
        panel.set(title=f"{size * 20} ms", xlabel="sinks")
        panel.set_xlim(-0.35, len(sinks) - 0.65)
    most = max(row.total.wer.percent for row in streaming)
    axes[0][0].set(ylabel="WER (%)", ylim=(0, 1.1 * most + 0.1))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8.5)
    return Figure(
        "sinks",
        figure,
        "WER over the number of attention sinks, for each chunk size and left context.",
        "WER over the number of sinks for each chunk size and left context",
    )


@styled
def wer_map(rows: Sequence[Row]) -> Figure | None:
    """Draws the WER of every setting as a map; None without streaming settings."""
    streaming = _streaming(rows)
    if not streaming:
        return None
    sizes = sorted({row.chunk.chunk_size for row in streaming})
    views = {(r.chunk.left_context_chunks, r.chunk.attention_sink_size) for r in streaming}
    ordered = sorted(views, key=lambda view: (view[0] % 2**31, view[1]))
    found = {tuple(row.chunk): row.total.wer.percent for row in streaming}
    values = [
        [found.get((size, left, sinks), math.nan) for size in sizes] for left, sinks in ordered
    ]
    figure, [[axes]] = drawing(1.9 + 0.95 * len(sizes), 1.0 + 0.3 * len(ordered))
    axes.imshow(values, cmap=SHADES, aspect="auto")
    mark_cells(axes, values, 2)
    axes.set_xticks(range(len(sizes)), [f"{size * 20} ms" for size in sizes])
    names = [f"left {LEFT.get(left, left)}, sinks {sinks}" for left, sinks in ordered]
    axes.set_yticks(range(len(ordered)), names)
    axes.xaxis.set_ticks_position("top")
    plain_map(axes)
    axes.spines[:].set_color(FAINT)
    return Figure("wer-map", figure, "WER (%) of every setting.", "WER of every setting as a map")


@styled
def delay_curves(rows: Sequence[Row]) -> Figure | None:
    """Draws the distribution of word delays of the Pareto front; None without any word."""
    front = [row for row in pareto(_streaming(rows)) if len(row.delays)]
    if not front:
        return None
    figure, [[axes]] = drawing(7.6, 3.0)
    for number, row in enumerate(front):
        delays = sorted(1000 * row.delays)
        shares = [(i + 1) / len(delays) for i in range(len(delays))]
        axes.step(
            delays, shares, where="post", color=COLOURS[number % len(COLOURS)], label=row.name
        )
    for share in (0.5, 0.9):
        axes.axhline(share, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set(xlabel="delay of a word (ms)", ylabel="share of words", ylim=(0, 1.02))
    axes.legend(loc="lower right", fontsize=8.5)
    return Figure(
        "word-delays",
        figure,
        "How late words are there, after their end in the forced alignment, for the settings of "
        "the Pareto front: the share of words with at most this delay.",
        "Distribution of word delays of the settings of the Pareto front",
    )
