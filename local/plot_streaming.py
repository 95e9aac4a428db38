"""Draws the two pictures of docs/streaming.md from the real mask and the real state.

    python -m local.plot_streaming [--out docs]

streaming-view.png   who sees whom: the attention mask, and the reach of the positional
                     convolution as its gradient shows it
streaming-state.png  what the state holds: the frames in the slots of the attention cache, step
                     by step, recognised by their keys in a stream of a tiny encoder; and the
                     bytes of each part at XLS-R 300M size
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from xlsr_transducer.core.compat import shapes_only
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.options import Parser
from xlsr_transducer.model.chunking import ChunkSettings, cache_mask, chunk_mask
from xlsr_transducer.model.encoder import StreamingXLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.wav2vec2_layers import PositionalConv
from xlsr_transducer.model.xlsr_config import XlsrConfig

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  after the choice of the backend
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import ListedColormap  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

EXAMPLE = ChunkSettings(chunk_size=8, left_context_chunks=2, attention_sink_size=4)
FRAMES = 48
CPU = torch.device("cpu")
NOTHING, OWN, LEFT, SINK, TWICE = "#ffffff", "#1f5a94", "#8fbbe0", "#e8963c", "#d9d9d9"
TINY = XlsrConfig(
    conv_dim=(16,) * 7,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)


def view_kinds(chunk: ChunkSettings, frames: int) -> Tensor:
    """(T, T): 0 not seen, 1 own chunk, 2 left context, 3 seen as a sink only."""

    def mask(left: int, sinks: int) -> Tensor:
        return chunk_mask(frames, chunk.chunk_size, left, sinks, CPU).long()

    own = mask(0, 0)
    left = mask(chunk.left_context_chunks, 0)
    sinks = mask(chunk.left_context_chunks, chunk.attention_sink_size)
    return 3 * sinks - left - own


def convolution_reach(chunk_size: int, frames: int) -> Tensor:
    """(T, T) bool: whether input ``column`` changes output ``row`` of the convolution."""
    torch.manual_seed(0)
    conv = PositionalConv(TINY).double()
    x = torch.randn(1, frames, TINY.hidden_size, dtype=torch.float64, requires_grad=True)
    out = conv(x, chunk_size)[0]
    rows = [torch.autograd.grad(row.sum(), x, retain_graph=True)[0][0] for row in out]
    return torch.stack(rows).abs().sum(2) > 0


def draw_matrix(axes: Axes, kinds: Tensor, colours: list[str], title: str) -> None:
    axes.imshow(kinds, cmap=ListedColormap(colours), vmin=0, vmax=len(colours) - 1)
    for edge in range(EXAMPLE.chunk_size, FRAMES, EXAMPLE.chunk_size):
        axes.axhline(edge - 0.5, color="0.45", linewidth=0.7)
        axes.axvline(edge - 0.5, color="0.45", linewidth=0.7)
    axes.set_xticks(range(0, FRAMES, EXAMPLE.chunk_size))
    axes.set_yticks(range(0, FRAMES, EXAMPLE.chunk_size))
    axes.set_xlabel("frame that is seen (20 ms each)")
    axes.set_ylabel("frame that sees")
    axes.set_title(title, fontsize=11)


def draw_view(path: Path) -> None:
    """Draws who sees whom."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 6.1))
    draw_matrix(left, view_kinds(EXAMPLE, FRAMES), [NOTHING, OWN, LEFT, SINK], "self-attention")
    reach = convolution_reach(EXAMPLE.chunk_size, FRAMES).long()
    own = view_kinds(ChunkSettings(EXAMPLE.chunk_size, 0), FRAMES)
    title = f"positional convolution (kernel {TINY.num_conv_pos_embeddings} here, 128 in XLSR)"
    draw_matrix(right, reach * (2 - own), [NOTHING, OWN, LEFT], title)
    labels = ((OWN, "own chunk"), (LEFT, "earlier chunks"), (SINK, "attention sinks"))
    patches = [Patch(facecolor=colour, edgecolor="0.45", label=label) for colour, label in labels]
    figure.legend(handles=patches, loc="lower center", ncol=3, frameon=False)
    figure.suptitle(
        f"Who sees whom: chunk size {EXAMPLE.chunk_size}, left context "
        f"{EXAMPLE.left_context_chunks} chunks, {EXAMPLE.attention_sink_size} sinks",
        fontsize=13,
    )
    figure.tight_layout(rect=(0, 0.09, 1, 0.98))
    save(figure, path)


@torch.inference_mode()
def cached_frames(chunk: ChunkSettings, steps: int) -> list[list[int]]:
    """For each step, the frame in each slot of the first layer's cache; -1 is an empty slot.

    The keys of the first layer do not depend on the left context, so those of a stream that
    keeps all of them tell which frame a key belongs to.
    """
    torch.manual_seed(0)
    encoder = StreamingXLSREncoder(TINY, EncoderOptions(encoder_dim=32)).double().eval()
    everything = ChunkSettings(chunk.chunk_size, -1, 0)
    states = {}
    for view in (chunk, everything):
        encoder.set_chunk(view)
        states[view] = encoder.get_init_states(1, CPU)
    lens = torch.tensor([chunk.chunk_size * 320])
    table = []
    for _ in range(steps):
        x = 0.05 * torch.randn(1, int(lens), dtype=torch.float64)
        for view in states:
            encoder.set_chunk(view)
            _, _, states[view] = encoder.streaming_forward(x, lens, states[view])
        kept, known = (states[view].xlsr.cache[0, 0, 0].flatten(2) for view in (chunk, everything))
        kept, known = kept.transpose(0, 1).flatten(1), known.transpose(0, 1).flatten(1)
        match = (kept.unsqueeze(1) - known).abs().amax(2) < 1e-9
        table.append([int(m.nonzero()[0]) if bool(m.any()) else -1 for m in match])
    return table


def slot_colours(chunk: ChunkSettings, table: list[list[int]]) -> list[list[str]]:
    """Returns the colour of each slot: what it counts as in the next step, by that step's mask."""
    sinks, size = chunk.attention_sink_size, chunk.chunk_size
    colours = []
    for step, frames in enumerate(table):
        done = torch.tensor([(step + 1) * size])
        new = torch.tensor([size])
        counts = cache_mask(done, new, size, size, chunk.left_context_chunks, len(frames), sinks)
        counts = counts[0, 0, 0]
        row = [SINK if slot < sinks else LEFT for slot in range(len(frames))]
        row = [colour if counts[i] else TWICE for i, colour in enumerate(row)]
        colours.append([c if f >= 0 else NOTHING for c, f in zip(row, frames)])
    return colours


def draw_slots(axes: Axes, chunk: ChunkSettings, table: list[list[int]]) -> None:
    """The slots of the cache, a row for each step."""
    sinks, slots, gap = chunk.attention_sink_size, len(table[0]), 0.6
    colours = slot_colours(chunk, table)
    for step, frames in enumerate(table):
        for slot, frame in enumerate(frames):
            x, colour = slot + (gap if slot >= sinks else 0.0), colours[step][slot]
            axes.add_patch(plt.Rectangle((x, step), 1, 0.8, facecolor=colour, edgecolor="0.45"))
            text = "" if frame < 0 else str(frame)
            axes.text(x + 0.5, step + 0.4, text, ha="center", va="center", fontsize=8)
    axes.set_xlim(-0.2, slots + gap + 0.2)
    axes.set_ylim(len(table), -0.2)
    axes.set_yticks([i + 0.4 for i in range(len(table))])
    axes.set_yticklabels([f"after chunk {i}" for i in range(len(table))])
    axes.set_xticks([sinks / 2, sinks + gap + (slots - sinks) / 2])
    axes.set_xticklabels(["sinks", "left context, latest frame last"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    labels = ((SINK, "sink"), (LEFT, "left context"), (TWICE, "not counted: it is a sink already"))
    labels = (*labels, (NOTHING, "empty"))
    patches = [Patch(facecolor=colour, edgecolor="0.45", label=label) for colour, label in labels]
    axes.legend(
        handles=patches, loc="upper center", bbox_to_anchor=(0.45, -0.1), ncol=4, frameon=False
    )
    axes.set_title(
        f"Frames in the attention cache: chunk size {chunk.chunk_size}, left context "
        f"{chunk.left_context_chunks} chunks, {sinks} sinks",
        fontsize=11,
    )


def part_bytes(chunk: ChunkSettings) -> dict[str, int]:
    """Bytes per stream of each part of the state, at XLS-R 300M size in float32."""
    with shapes_only():
        encoder = StreamingXLSREncoder(XlsrConfig(), EncoderOptions(), chunk=chunk)
        device = encoder.like.device
    state = encoder.get_init_states(1, device)
    fields = {
        "keys and values of 24 layers": state.xlsr.cache,
        "last 64 frames, positional convolution": state.xlsr.history,
        "last 4 frames, adapter": state.adapter,
        "last 80 samples": state.xlsr.tail,
        "sums for normalisation": state.xlsr.stats,
        "frames so far": state.xlsr.done,
    }
    return {name: tensor.numel() * tensor.element_size() for name, tensor in fields.items()}


def readable(size: int) -> str:
    return (
        f"{size / 1e6:.1f} MB"
        if size >= 1e6
        else f"{size / 1e3:.1f} kB"
        if size >= 1e3
        else f"{size} B"
    )


def draw_bytes(axes: Axes, settings: list[ChunkSettings]) -> None:
    """Bytes of each part, for several chunk sizes."""
    height = 0.8 / len(settings)
    for i, chunk in enumerate(settings):
        parts = part_bytes(chunk)
        for row, size in enumerate(parts.values()):
            y = row + (i - (len(settings) - 1) / 2) * height
            label = f"chunk {chunk.chunk_size}: {readable(sum(parts.values()))}"
            colour = ("#b7d3ec", "#6fa5d6", "#1f5a94")[i]
            axes.barh(y, size, height, color=colour, label=None if row else label)
            if len(settings) == i + 1 and row:
                axes.text(size * 1.3, row, readable(size), va="center", fontsize=9)
            elif row == 0:
                axes.text(size * 1.3, y, readable(size), va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(1, 3e9)
    axes.set_yticks(range(len(parts)))
    axes.set_yticklabels(parts)
    axes.invert_yaxis()
    axes.set_xlabel("bytes per stream, float32 (logarithmic)")
    axes.legend(title="whole state", loc="lower right", frameon=False)
    first = settings[0]
    axes.set_title(
        f"Size at XLS-R 300M, left context {first.left_context_chunks} chunks, "
        f"{first.attention_sink_size} sinks",
        fontsize=11,
    )


def draw_state(path: Path) -> None:
    """Draws what the state holds."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(10.5, 8.4), gridspec_kw={"height_ratios": (1, 1.1)}
    )
    draw_slots(top, EXAMPLE, cached_frames(EXAMPLE, steps=5))
    draw_bytes(bottom, [ChunkSettings(size, 2, 4) for size in (16, 32, 64)])
    figure.tight_layout()
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    with replacing(path) as [temporary]:
        figure.savefig(temporary, dpi=110, metadata={"Software": None}, format="png")
    plt.close(figure)
    print(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args(argv)
    draw_view(args.out / "streaming-view.png")
    draw_state(args.out / "streaming-state.png")


if __name__ == "__main__":
    run_command(main)
