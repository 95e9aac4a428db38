"""Who attends to what: the attention of XLSR's layers, by the model's own projections.

The maps are never kept: those of a layer are summed up as soon as it has computed them.
Letters: L layers, H heads, T frames of 20 ms, K keys, D width, B classes of distance.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from xlsr_transducer.core.geometry import num_frames
from xlsr_transducer.model.chunking import ChunkSettings, chunk_mask
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.wav2vec2_layers import Attention

# Bounds of the classes of distance, in frames from the key to the frame that attends to it:
# below 0 are later frames of its own chunk, 0 is itself. The names are milliseconds.
DISTANCES = (-63, -31, -15, -7, -3, 0, 1, 4, 8, 16, 32, 64, 128, 256)
DISTANCE_NAMES = tuple("-1280+ -640 -320 -160 -80 -20 0 20 80 160 320 640 1280 2560 5120+".split())

See = Callable[[int, Tensor], None]


def attention_weights(
    attention: Attention, x: Tensor, keys: Tensor, mask: Tensor | None
) -> Tensor:
    """Returns how much each frame attends to each key: (N, H, T, K), rows summing to one.

    Args:
      attention: of a layer; its own projection makes the queries.
      x: (N, T, D), what enters it.
      keys: (N, H, K, D / H), as the layer made them.
      mask: bool over (N, H, T, K), True where a key is seen; None: all are.
    """
    heads, width = attention.num_heads, attention.head_dim
    queries = attention.q_proj(x).view(*x.shape[:2], heads, width).transpose(1, 2)
    scores = queries @ keys.transpose(-2, -1) * width**-0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


@contextlib.contextmanager
def watched(encoder: XLSREncoder, see: See) -> Iterator[None]:
    """Inside, ``see`` gets the number and the weights (N, H, T, K) of each layer that computes."""

    def look(number: int, attention: Attention, inputs: tuple, output: Tensor) -> None:
        x, keys, _, mask = inputs
        see(number, attention_weights(attention, x, keys, mask))

    layers = encoder.xlsr.encoder.layers.values()
    handles = [
        layer.attention.register_forward_hook(functools.partial(look, number))
        for number, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def key_kinds(frames: int, chunk: ChunkSettings, device: torch.device) -> Tensor:
    """Returns (3, T, T) bool: whether a key is of the frame's own chunk, an earlier one, or a
    sink of an earlier chunk. A sink that is in the left context too counts as a sink."""
    number = torch.arange(frames, device=device)
    own_chunk = number // chunk.chunk_size if chunk.chunk_size > 0 else torch.zeros_like(number)
    own = own_chunk.unsqueeze(1) == own_chunk
    is_sink = (number < chunk.attention_sink_size).expand(frames, -1)
    return torch.stack((own, ~own & ~is_sink, ~own & is_sink))


@dataclasses.dataclass
class Mass:
    """Attention summed over the frames of utterances, in float64.

    Frames count from the first chunk that has all sinks behind it.
    """

    chunk: ChunkSettings
    kinds: Tensor  # (3, L, H): own chunk, left context, sinks
    distances: Tensor  # (B, L, H)
    frames: int = 0
    uniform: float = 0.0  # the sinks' share if all keys that a frame sees had the same

    @classmethod
    def nothing(cls, encoder: XLSREncoder, chunk: ChunkSettings) -> Mass:
        """Returns the sum over no utterance."""
        layers = list(encoder.xlsr.encoder.layers.values())
        shape = (len(layers), layers[0].attention.num_heads)
        zeros = functools.partial(torch.zeros, dtype=torch.float64)
        return cls(chunk, zeros(3, *shape), zeros(len(DISTANCE_NAMES), *shape))

    @property
    def first_frame(self) -> int:
        """The first frame that counts."""
        size = self.chunk.chunk_size
        if size < 0:
            return 0
        return max(-(-self.chunk.attention_sink_size // size), 1) * size

    def shares(self) -> Tensor:
        """Returns (3, L, H), each sum over the kinds being one; nan without frames."""
        return self.kinds / (self.frames or float("nan"))

    def by_distance(self) -> Tensor:
        """Returns (B, L, H), each sum over the classes being one; nan without frames."""
        return self.distances / (self.frames or float("nan"))

    def uniform_share(self) -> float:
        """Returns what the sinks would get if a frame attended to all that it sees alike."""
        return self.uniform / self.frames if self.frames else float("nan")


@torch.no_grad()
def add_utterance(mass: Mass, encoder: XLSREncoder, wave: Tensor) -> None:
    """Adds the attention of an utterance.

    Args:
      wave: (n,) samples at 16 kHz in [-1, 1], on the encoder's device.
    """
    frames, first = max(num_frames(len(wave)), 1), mass.first_frame
    kinds, classes, visible = (
        x[..., first:, :] for x in _classes(frames, mass.chunk, wave.device)
    )
    if first >= frames:
        return

    def see(number: int, weights: Tensor) -> None:
        rows = weights[0, :, first:].double()  # (H, T', T)
        for kind in range(3):
            mass.kinds[kind, number] += (rows * kinds[kind]).sum((1, 2)).cpu()
        sums = rows.new_zeros(len(rows), len(DISTANCE_NAMES))
        sums.index_add_(1, classes.flatten(), rows.flatten(1))
        mass.distances[:, number] += sums.t().cpu()

    with watched(encoder, see):
        encoder(wave[None], torch.tensor([len(wave)], device=wave.device), *mass.chunk)
    mass.frames += frames - first
    mass.uniform += float((kinds[2].sum(1) / visible.sum(1)).sum())


def _classes(
    frames: int, chunk: ChunkSettings, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the kinds of keys (3, T, T), the class of each distance (T, T) int64, and whether a
    key is seen (T, T)."""
    number = torch.arange(frames, device=device)
    bounds = torch.tensor(DISTANCES, device=device)
    classes = torch.bucketize(number.unsqueeze(1) - number, bounds, right=True)
    seen = torch.ones_like(classes, dtype=torch.bool)
    if not chunk.is_full_context:
        seen = chunk_mask(frames, *chunk, device)
    return key_kinds(frames, chunk, device), classes, seen


def mean_attention(encoder: XLSREncoder, waves: Iterable[Tensor], chunk: ChunkSettings) -> Mass:
    """Returns the attention over some utterances, each of (n,) samples."""
    mass = Mass.nothing(encoder, chunk)
    for wave in waves:
        add_utterance(mass, encoder, wave)
    return mass


@torch.no_grad()
def utterance_maps(encoder: XLSREncoder, wave: Tensor, chunk: ChunkSettings) -> Tensor:
    """Returns the maps of an utterance, as means over the heads: (L, T, T), on the CPU."""
    maps: list[Tensor] = []
    with watched(encoder, lambda number, weights: maps.append(weights[0].mean(0).cpu())):
        encoder(wave[None], torch.tensor([len(wave)], device=wave.device), *chunk)
    return torch.stack(maps)
