"""The grid's sections: what comes first on the page, all settings, and their latency and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.evaluation.delays import quantiles
from xlsr_transducer.evaluation.experiment import Experiment
from xlsr_transducer.evaluation.grid_plots import (
    delay_curves,
    sink_effect,
    wer_map,
    wer_over_latency,
)
from xlsr_transducer.evaluation.rows import Row, best_within, pareto
from xlsr_transducer.evaluation.section import NOTHING, Cell, Column, Fact, Section, Table
from xlsr_transducer.recognition.decoding import decode_device
from xlsr_transducer.recognition.scoring import ErrorRate

XLSR_WIDTH = 1024  # of XLSR-53 and XLS-R 300M, the smallest
SIZE = (
    Column("chunk", "ms", 0, "audio computed together"),
    Column("left", "", None, "earlier chunks that a frame sees"),
    Column("sinks", "", None, "first frames of the utterance, always seen"),
)


def is_small(experiment: Experiment) -> bool:
    """Whether the network is smaller than any published XLSR."""
    return experiment.loaded.config.xlsr.hidden_size < XLSR_WIDTH


def size_cells(row: Row) -> list[Cell]:
    """Returns the cells of ``SIZE``."""
    chunk = row.chunk
    if chunk.is_full_context:
        return ["whole utterance", None, None]
    left = "all" if chunk.left_context_chunks < 0 else str(chunk.left_context_chunks)
    return [chunk.chunk_size * 20, left, str(chunk.attention_sink_size)]


def interval(rate: ErrorRate) -> str:
    """Returns the 95 % interval as text."""
    return f"{rate.low:.2f} to {rate.high:.2f}" if math.isfinite(rate.high) else NOTHING


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None or math.isinf(seconds) else 1000 * seconds


def summary_section(
    experiments: Sequence[Experiment], grids: Sequence[Sequence[Row]], budgets: Sequence[float]
) -> Section:
    """Returns what model, what data, how good, how fast, and what to choose."""
    first, rows = experiments[0], grids[0]
    own = next(row for row in rows if row.chunk == first.own)
    section = Section("summary", "Summary", _finding(first, own, rows))
    section.facts = [_model(first), _data(first), _error(own), _latency(own)]
    section.tables = [
        _budgets(experiments, grids, budgets),
        _sets(experiments, grids),
    ]
    for experiment in experiments:
        section.notes += [f"{experiment.name}: {note}" for note in experiment.notes]
        if is_small(experiment):
            width = experiment.loaded.config.xlsr.hidden_size
            section.notes.append(
                f"{experiment.name}: the network is a small one (width {width}; XLSR's is "
                f"{XLSR_WIDTH} or more). Its figures tell nothing about XLSR."
            )
    section.notes.append(
        "The settings of the table were chosen on the data that they are reported on: for a "
        "choice that is to hold elsewhere, choose on validation data."
    )
    section.data = {
        "experiments": [_about(experiment) for experiment in experiments],
        "budgets_s": list(budgets),
        "best": [
            [best.flat() if (best := best_within(rows, budget)) else None for budget in budgets]
            for rows in grids
        ],
    }
    return section


def _finding(first: Experiment, own: Row, rows: Sequence[Row]) -> str:
    wer = own.total.wer
    if not wer.num_ref:
        return f"The references have no words: there is no word error rate of {first.name}."
    said = f"Model {first.name}: {wer.percent:.2f} errors in 100 words"
    if own.chunk.is_full_context:
        return said + " with the whole utterance in view."
    said += f" at {1000 * own.latency:.0f} ms of latency ({own.name})"
    full = next((row for row in rows if row.chunk.is_full_context), None)
    return said + (f"; {full.total.wer.percent:.2f} in full context." if full else ".")


def _model(experiment: Experiment) -> Fact:
    config, model = experiment.loaded.config, experiment.loaded.model
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    name = Path(config.features.xlsr).name
    layers, width = config.xlsr.num_hidden_layers, config.xlsr.hidden_size
    detail = f"{experiment.checkpoint.describe()}, on {name}: {layers} layers of width {width}, "
    return Fact("model", experiment.name, detail + f"{millions:.1f} M parameters")


def _data(experiment: Experiment) -> Fact:
    seconds = sum(sum(one.seconds.values()) for one in experiment.sets)
    count = sum(len(one.texts) + len(one.unread) for one in experiment.sets)
    names = ", ".join(one.name for one in experiment.sets)
    value = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
    return Fact("data", value, f"{count:,} utterances: {names}")


def _error(row: Row) -> Fact:
    wer = row.total.wer
    if not wer.num_ref:
        return Fact("word error rate", NOTHING, "the references have no words")
    detail = f"95 % interval {interval(wer)}; {row.name}"
    return Fact("word error rate", f"{wer.percent:.2f} %", detail)


def _latency(row: Row) -> Fact:
    if row.chunk.is_full_context:
        return Fact("latency", "whole utterance", "nothing is there before the audio ends")
    late = quantiles(row.delays)
    detail = "algorithmic"
    if late["p50"] is not None:
        detail += f"; half of the words are there {1000 * late['p50']:.0f} ms after their end, "
        detail += f"90 % within {1000 * late['p90']:.0f} ms"
    return Fact("latency", f"{1000 * row.latency:.0f} ms", detail)


def _budgets(
    experiments: Sequence[Experiment], grids: Sequence[Sequence[Row]], budgets: Sequence[float]
) -> Table:
    columns = [
        Column("latency of at most"),
        *([Column("experiment")] * (len(grids) > 1)),
        *SIZE,
        Column("WER", "%", 2),
        Column("95 % interval", "%"),
        Column("CER", "%", 2),
        Column("word delay, p50", "ms", 0),
        Column("p90", "ms", 0),
        Column("step", "ms", 1, "time of a step of one stream, here"),
    ]
    table = []
    for budget in (*budgets, math.inf):
        for experiment, rows in zip(experiments, grids):
            if math.isfinite(budget) and experiment.own.is_full_context:
                continue  # nothing of it is there before the end of an utterance
            best = best_within(rows, budget)
            name = "no bound" if math.isinf(budget) else f"{1000 * budget:.0f} ms"
            named = [name] + [experiment.name] * (len(grids) > 1)
            if best is None:
                table.append([*named, "none fits", *[None] * (len(columns) - len(named) - 1)])
                continue
            late = quantiles(best.delays)
            wer = best.total.wer
            table.append(
                [*named, *size_cells(best), wer.percent, interval(wer), best.total.cer.percent,
                 _ms(late["p50"]), _ms(late["p90"]), best.cost and 1000 * best.cost.seconds]
            )  # fmt: skip
    caption = "Of the settings that were tried, the one with the lowest WER over all sets."
    return Table("Best setting for each latency", columns, table, caption)


def _sets(experiments: Sequence[Experiment], grids: Sequence[Sequence[Row]]) -> Table:
    columns = [
        Column("set"),
        *([Column("experiment")] * (len(grids) > 1)),
        Column("utterances", "", 0),
        Column("unread", "", 0, "could not be read; their words count as deleted"),
        Column("audio", "min", 1),
        Column("words", "", 0),
        Column("WER", "%", 2),
        Column("95 % interval", "%"),
        Column("CER", "%", 2),
        Column("WER, whole utterance", "%", 2),
    ]
    table = []
    for number, one in enumerate(experiments[0].sets):
        for experiment, rows in zip(experiments, grids):
            found = experiment.sets[number]
            by_chunk = {row.chunk: row.scores[found.name] for row in rows}
            own = by_chunk[experiment.own]
            full = next((s for c, s in by_chunk.items() if c.is_full_context), None)
            table.append(
                [one.name, *([experiment.name] * (len(grids) > 1)), own.num_utterances,
                 own.num_unread, sum(found.seconds.values()) / 60, own.wer.num_ref,
                 own.wer.percent, interval(own.wer), own.cer.percent, full and full.wer.percent]
            )  # fmt: skip
    caption = "With each model's own setting, the one that it was validated with."
    return Table("Sets", columns, table, caption)


def _about(experiment: Experiment) -> dict[str, object]:
    config = experiment.loaded.config
    return {
        "name": experiment.name,
        "weights": experiment.checkpoint.describe(),
        "model_sha256": experiment.digest,
        "xlsr": Path(config.features.xlsr).name,
        "xlsr_sha256": config.features.sha256,
        "layers": config.xlsr.num_hidden_layers,
        "width": config.xlsr.hidden_size,
        "search": experiment.search.suffix(),
        "own_setting": experiment.own.describe(),
        "trained_settings": sorted(s.describe() for s in config.streaming.all_settings())
        if config.streaming.streaming
        else ["full"],
        "sets": [
            {"name": one.name, "sha256": one.audio.digest, "utterances": len(one.texts),
             "unread": len(one.unread), "seconds": sum(one.seconds.values())}
            for one in experiment.sets
        ],
    }  # fmt: skip


def grid_section(
    experiments: Sequence[Experiment], grids: Sequence[Sequence[Row]], normalized: str
) -> Section:
    """Returns error rates of all settings, with pictures.

    Args:
      normalized: how texts were normalised before they were scored, in words.
    """
    section = Section("grid", "Chunk size, left context, sinks")
    front = [row for row in pareto(grids[0]) if math.isfinite(row.latency)]
    if front and front[0].total.wer.num_ref:
        fast, good = front[0], front[-1]
        section.finding = (
            f"WER is {fast.total.wer.percent:.2f} % at the least latency "
            f"({1000 * fast.latency:.0f} ms) and {good.total.wer.percent:.2f} % at the best "
            f"setting that streams ({1000 * good.latency:.0f} ms)."
        )
    section.paragraphs.append(
        "Whole utterances are recognised, each frame seeing what it would see in a stream. "
        f"Normalisation before scoring: {normalized}. An interval is the WER with 1.96 standard "
        "deviations to both sides, over sets of utterances drawn with replacement."
    )
    has_words = grids[0][0].total.wer.num_ref > 0
    if has_words and any(len(rows) > 1 for rows in grids):
        section.figures.append(wer_over_latency(grids))
    for drawn in (sink_effect(grids[0]), wer_map(grids[0])):
        if drawn is not None:
            section.figures.append(drawn)
    section.tables = [_settings(experiment, rows) for experiment, rows in zip(experiments, grids)]
    section.notes = [note for rows in grids for note in _streamed_notes(rows)]
    section.data = {"settings": [row.flat() for rows in grids for row in rows]}
    return section


def _settings(experiment: Experiment, rows: Sequence[Row]) -> Table:
    names = [one.name for one in experiment.sets]
    columns = [*SIZE, Column("WER", "%", 2), Column("95 % interval", "%")]
    columns += [Column(name, "%", 2, f"WER of {name}") for name in names] * (len(names) > 1)
    columns += [Column("CER", "%", 2), Column("95 % interval", "%"), Column("ins/del/sub")]
    table: list[list[Cell]] = []
    for row in rows:
        wer, cer = row.total.wer, row.total.cer
        kinds = f"{wer.insertions}/{wer.deletions}/{wer.substitutions}"
        by_set = [row.scores[name].wer.percent for name in names] * (len(names) > 1)
        rates = [wer.percent, interval(wer), *by_set, cer.percent, interval(cer), kinds]
        table.append([*size_cells(row), *rates])
    best = pareto(rows)
    marked = [i for i, row in enumerate(rows) if row in best]
    caption = "Marked: no other setting has less latency and a WER as low (the Pareto front)."
    heading = f"Settings of {experiment.name}"
    return Table(heading, columns, table, caption, marked)


def _streamed_notes(rows: Sequence[Row]) -> list[str]:
    tried = [row for row in rows if row.num_streamed]
    if not tried:
        return []
    different = [row for row in tried if row.num_differing]
    count = f"{tried[0].num_streamed} utterances were also streamed with each setting"
    if not different:
        return [f"{tried[0].experiment}: {count}: the same tokens at the same times."]
    names = "; ".join(f"{row.num_differing} with {row.name}" for row in different)
    return [f"{tried[0].experiment}: {count}, and some differ: {names}."]


def latency_section(experiments: Sequence[Experiment], grids: Sequence[Sequence[Row]]) -> Section:
    """Returns how late words are, and what a step costs."""
    section = Section("latency", "Latency and cost")
    own = next(row for row in grids[0] if row.chunk == experiments[0].own)
    late = quantiles(own.delays)
    if late["p50"] is not None:
        section.finding = (
            f"With {own.name}, half of the words are there {1000 * late['p50']:.0f} ms after "
            f"their end, and 90 % within {1000 * late['p90']:.0f} ms."
        )
    section.paragraphs = [
        "Algorithmic latency is the longest wait of a frame for its chunk: on average it waits "
        "half as long. The delay of a word counts from its end in the forced alignment, by the "
        "same model with the whole utterance in view, to the arrival of the chunk that holds its "
        "last token; words that were recognised correctly count. Computing takes no time here.",
        "A step is one chunk of one stream, from samples to tokens, on "
        f"{decode_device()}: the median of some, with whatever else the machine did. It keeps up "
        "where its share is below 100 %. The state is what a stream keeps between two steps.",
    ]
    curves = delay_curves(grids[0])
    if curves is not None:
        section.figures.append(curves)
    section.tables = [_costs(e, rows) for e, rows in zip(experiments, grids)]
    for experiment in experiments:
        section.notes += _alignment_notes(experiment)
    return section


def _costs(experiment: Experiment, rows: Sequence[Row]) -> Table:
    columns = [
        *SIZE,
        Column("algorithmic latency", "ms", 0),
        Column("word delay, mean", "ms", 0),
        Column("p50", "ms", 0),
        Column("p90", "ms", 0),
        Column("p99", "ms", 0),
        Column("words", "", 0),
        Column("step", "ms", 1),
        Column("share of real time", "%", 1),
        Column("state", "MB", 3),
    ]
    table: list[list[Cell]] = []
    for row in rows:
        late = [_ms(value) for value in quantiles(row.delays).values()]
        cost = row.cost
        costs = [1000 * cost.seconds, 100 * cost.share, cost.state_bytes / 1e6] if cost else []
        costs = costs or [None] * 3
        table.append([*size_cells(row), _ms(row.latency), *late, len(row.delays), *costs])
    return Table(f"Latency and cost of {experiment.name}", columns, table)


def _alignment_notes(experiment: Experiment) -> list[str]:
    notes = []
    for one in experiment.sets:
        if one.not_aligned:
            name, reason = next(iter(one.not_aligned.items()))
            notes.append(
                f"{experiment.name}: {len(one.not_aligned)} utterances of {one.name} could not "
                f"be aligned and have no word delays; the first is {name}: {reason}."
            )
    return notes
