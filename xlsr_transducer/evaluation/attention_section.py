"""The section about attention: sums over a set, the effect of sinks, maps of utterances."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.evaluation.attention import (
    DISTANCE_NAMES,
    Mass,
    mean_attention,
    utterance_maps,
)
from xlsr_transducer.evaluation.drawing import (
    COLOURS,
    SHADES,
    drawing,
    mark_cells,
    plain_map,
    styled,
)
from xlsr_transducer.evaluation.experiment import Experiment
from xlsr_transducer.evaluation.rows import setting_name
from xlsr_transducer.evaluation.section import Column, Figure, Section, Table
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.decoding import decode_device

SINKS = (0, 4, 16)
LONGEST = 30.0  # seconds of an utterance: a map of a layer has frames squared times heads numbers
MOST_SHOWN = 4  # utterances
KINDS = ("own chunk", "left context", "sinks")


def attention_section(experiment: Experiment, count: int, show: Sequence[str]) -> Section:
    """Returns who attends to what in an experiment's own setting, and with 0, 4 and 16 sinks.

    Args:
      count: utterances of each set to average over.
      show: ids of utterances to draw; without any, the first.

    Raises:
      UserError: there is no utterance of such an id.
    """
    section = Section("attention", f"Attention of {experiment.name}")
    waves = _waves(experiment, count)
    if not waves:
        section.notes.append(f"No utterance of at most {LONGEST:.0f} s could be read.")
        return section
    encoder, own = experiment.loaded.model.encoder, experiment.own
    settings = (
        [own]
        if own.is_full_context or own.left_context_chunks < 0
        else list(
            dict.fromkeys([own, *(dataclasses.replace(own, attention_sink_size=n) for n in SINKS)])
        )
    )
    masses = {chunk: mean_attention(encoder, waves.values(), chunk) for chunk in settings}
    section.paragraphs.append(
        f"Means over {len(waves)} utterances. Weights are the softmax of the model's own queries "
        "and keys. The positional convolution, which also looks into the left context, is no part "
        "of them. Frames of the first chunk do not count, as all that they see is their own chunk."
    )
    if masses[own].frames == 0:
        section.notes.append("No utterance is longer than a chunk: there is nothing to compare.")
        return section
    if len(settings) > 1:
        by_sinks = sorted(masses.values(), key=lambda mass: mass.chunk.attention_sink_size)
        by_sinks = [mass for mass in by_sinks if mass.frames]
        section.finding = _finding(by_sinks, own)
        section.figures.append(_layers(by_sinks))
        section.tables.append(_sinks(by_sinks, own))
        heads = [mass for mass in by_sinks if mass.chunk.attention_sink_size]
        section.figures += [_heads(heads)] if heads else []
    section.figures.append(_distances(masses[own]))
    section.figures += [
        _maps(utterance_maps(encoder, wave, own), own, name, number)
        for number, (name, wave) in enumerate(_shown(experiment, waves, show).items())
    ]
    section.data = {"utterances": len(waves), "settings": [_data(m) for m in masses.values()]}
    return section


def _waves(experiment: Experiment, count: int) -> dict[str, Tensor]:
    """Returns the first readable utterances of each set, on the model's device."""
    found = {}
    for one in experiment.sets:
        short = (c for c in one.audio.cuts if c.duration <= LONGEST and c.id in one.texts)
        for cut in islice(short, count):
            found[cut.id] = torch.from_numpy(read_audio(cut)).float().to(decode_device())
    return found


def _shown(
    experiment: Experiment, waves: dict[str, Tensor], show: Sequence[str]
) -> dict[str, Tensor]:
    """Returns the utterances to draw."""
    if not show:
        return dict(islice(waves.items(), 1))
    cuts = {cut.id: cut for one in experiment.sets for cut in one.audio.cuts if cut.id in show}
    for name in show:
        if name not in cuts:
            raise UserError(f"--show {name}: no utterance of the sets has this id")
        if cuts[name].duration > LONGEST:
            raise UserError(f"--show {name}: longer than {LONGEST:.0f} s, too large to draw")
    if len(show) > MOST_SHOWN:
        raise UserError(f"--show: {len(show)} utterances, but at most {MOST_SHOWN} are drawn")
    return {i: torch.from_numpy(read_audio(cuts[i])).float().to(decode_device()) for i in show}


def _finding(masses: Sequence[Mass], own: ChunkSettings) -> str:
    with_sinks = [mass for mass in masses if mass.chunk.attention_sink_size]
    if not with_sinks:
        return ""
    said = [
        f"{100 * float(mass.shares()[2].mean()):.1f} % of the attention with "
        f"{mass.chunk.attention_sink_size} of them"
        for mass in with_sinks
    ]
    alike = " and ".join(f"{100 * mass.uniform_share():.1f} %" for mass in with_sinks)
    return (
        f"Sinks get {' and '.join(said)}; if all frames in view got alike, they would get {alike}."
    )


def _sinks(masses: Sequence[Mass], own: ChunkSettings) -> Table:
    columns = [Column("sinks"), *(Column(kind, "%", 1) for kind in KINDS)]
    columns += [
        Column("sinks, if all alike", "%", 1, "the sinks' share of the frames in view"),
        Column("sinks, most in one head", "%", 1),
        Column("that head"),
        Column("frames", "", 0),
    ]
    rows = []
    for mass in masses:
        shares, size = mass.shares(), mass.chunk.attention_sink_size
        layer, head = divmod(int(shares[2].argmax()), shares.shape[2])
        most = [100 * float(shares[2].max()), f"layer {layer + 1}, head {head + 1}"]
        rows.append(
            [str(size), *(100 * float(shares[k].mean()) for k in range(3)),
             100 * mass.uniform_share(), *(most if size else [None, None]), mass.frames]
        )  # fmt: skip
    marked = [i for i, mass in enumerate(masses) if mass.chunk == own]
    caption = "Means over all layers and heads. Marked: the model's own number of sinks."
    return Table("Where attention goes", columns, rows, caption, marked)


@styled
def _layers(masses: Sequence[Mass]) -> Figure:
    """Draws the kinds of keys as bars, a bar per layer, a panel per number of sinks."""
    number_of_layers = masses[0].kinds.shape[1]
    size = max(2.6, 0.12 * number_of_layers)
    figure, axes = drawing(size * len(masses), 2.6, 1, len(masses), sharey=True)
    for panel, mass in zip(axes[0], masses):
        bottom = torch.zeros(number_of_layers, dtype=torch.float64)
        for kind, (name, shares) in enumerate(zip(KINDS, 100 * mass.shares().mean(2))):
            x = range(1, number_of_layers + 1)
            panel.bar(x, shares, 0.8, bottom, color=COLOURS[(0, 5, 1)[kind]], label=name)
            bottom = bottom + shares
        panel.set(title=f"{mass.chunk.attention_sink_size} sinks", xlabel="layer", ylim=(0, 100))
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("share of attention (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
    caption = "What the frames of each layer attend to, as means over heads and frames."
    return Figure("attention-layers", figure, caption, "Shares of attention by layer")


@styled
def _heads(masses: Sequence[Mass]) -> Figure:
    """Draws the attention that goes to sinks as a map of layers and heads."""
    layers, heads = masses[0].kinds.shape[1:]
    width = max(2.6, 0.42 * heads)
    figure, axes = drawing(width * len(masses), 0.9 + 0.28 * layers, 1, len(masses), sharey=True)
    most = max(float(mass.shares()[2].max()) for mass in masses)
    for panel, mass in zip(axes[0], masses):
        values = (100 * mass.shares()[2]).tolist()
        panel.imshow(values, cmap=SHADES, aspect="auto", vmin=0, vmax=100 * most)
        mark_cells(panel, values, 0)
        panel.set(title=f"{mass.chunk.attention_sink_size} sinks", xlabel="head")
        panel.set_xticks(range(heads), range(1, heads + 1))
        panel.set_yticks(range(layers), range(1, layers + 1))
        plain_map(panel)
    axes[0][0].set_ylabel("layer")
    caption = "Attention that goes to the sinks (%), by layer and head."
    return Figure("attention-sinks", figure, caption, "Attention to sinks by layer and head")


@styled
def _distances(mass: Mass) -> Figure:
    """Draws the attention by distance as a map of layers and classes."""
    values = (100 * mass.by_distance().mean(2)).t()
    layers = len(values)
    figure, [[axes]] = drawing(8.2, 1.0 + 0.28 * layers)
    axes.imshow(values.tolist(), cmap=SHADES, aspect="auto", vmin=0)
    mark_cells(axes, values.tolist(), 0)
    axes.set_xticks(range(len(DISTANCE_NAMES)), DISTANCE_NAMES)
    axes.set_yticks(range(layers), range(1, layers + 1))
    axes.set(xlabel="how long ago the key was, from (ms); below 0: still to come", ylabel="layer")
    plain_map(axes)
    caption = (
        f"Attention (%) by distance, a row per layer, as means over its heads; "
        f"{setting_name(mass.chunk)}. Classes get wider with distance."
    )
    return Figure("attention-distance", figure, caption, "Attention by layer and distance")


@styled
def _maps(maps: Tensor, chunk: ChunkSettings, name: str, number: int) -> Figure:
    """Draws the maps of an utterance in its first, middle and last layer."""
    layers = sorted({0, (len(maps) - 1) // 2, len(maps) - 1})
    figure, axes = drawing(2.9 * len(layers), 3.3, 1, len(layers), sharey=True)
    frames = maps.shape[1]
    extent = (0, frames * 0.02, frames * 0.02, 0)
    for panel, layer in zip(axes[0], layers):
        shown = maps[layer].masked_fill(maps[layer] == 0, float("nan")).pow(0.4)
        panel.imshow(shown, cmap=SHADES, extent=extent, interpolation="nearest")
        panel.set(title=f"layer {layer + 1}", xlabel="key (s)")
        plain_map(panel)
    axes[0][0].set_ylabel("frame that attends (s)")
    caption = (
        f"Attention in {name}, as means over heads; {setting_name(chunk)}. The darker, the more "
        "(to the power of 0.4); nothing is drawn where a frame does not see."
    )
    alt = f"Attention maps of utterance {name}"
    return Figure(f"attention-map-{number + 1}", figure, caption, alt)


def _data(mass: Mass) -> dict[str, object]:
    return {
        "setting": mass.chunk.describe(),
        "frames": mass.frames,
        "own_left_sinks": mass.shares().tolist(),  # [kind][layer][head]
        "sinks_if_all_alike": mass.uniform_share(),
        "distance_from_ms": list(DISTANCE_NAMES),
        "by_distance": mass.by_distance().tolist(),  # [class][layer][head]
    }
