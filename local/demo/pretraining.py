"""Pre-trains the toy network: first its convolutions, then all of it.

The convolutions learn to predict the log-mel spectrum of what they see. Then the whole network,
with full context, learns to classify every frame by the phoneme of the synthesizer's time stamps.

Letters: N batch, n samples, T frames of 20 ms, M mel bands, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from local.demo.speech import (
    HOP,
    PADDING,
    RECEPTIVE_FIELD,
    SAMPLING_RATE,
    Utterance,
    batches_by_length,
    noisy_rows,
    phoneme_inventory,
    synthesize,
)
from xlsr_transducer.core import compat
from xlsr_transducer.model.normalize import normalize_cumulative, normalize_utterance
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.wav2vec2_layers import zero_padding

MEL_SHARE = 1 / 6  # of the steps go to the convolutions alone
MAX_UTTERANCES = 1600
HELD_OUT_UTTERANCES = 60
BATCH_SECONDS = 8.0
GRAIN = 4000  # samples: lengths of batches are multiples, as a new shape costs as much as a step
PEAK_LR = 4e-3
UTTERANCE_NORM_SHARE = 0.3  # of the batches; the others are normalised cumulatively
MEL_BANDS = 40
FFT_SIZE = 512
MEL_MEAN, MEL_STD = 3.3, 2.9  # of the log-mel spectra computed here


@dataclasses.dataclass(frozen=True)
class Batch:
    """Noisy utterances with the phoneme of each frame."""

    audio: Tensor  # (N, n)
    lens: Tensor  # (N,) samples
    labels: Tensor  # (N, T), PADDING beyond the end


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How pre-training went."""

    hours: float  # of different speech synthesized for training
    mel_losses: list[float]  # of each step
    phoneme_losses: list[float]
    accuracy: float  # share of held-out frames whose phoneme is right


def pretrain(network: Wav2Vec2, steps: int, seed: int) -> Outcome:
    """Trains ``network`` in place, on the CPU. The same seed gives the same weights."""
    count = min(MAX_UTTERANCES, 4 * steps)
    training, held_out = synthesize(seed, count, min(HELD_OUT_UTTERANCES, count))
    inventory = phoneme_inventory(training)
    hours = sum(len(u.samples) for u in training) / SAMPLING_RATE / 3600
    logging.info("synthesized %.2f hours of speech, %d phonemes", hours, len(inventory))
    with repeatable(seed):
        mel_steps = int(steps * MEL_SHARE)
        batches = endless_batches(training, inventory, np.random.default_rng([seed, 1]))
        network.train()
        mel_losses = train(MelTask(network), batches, mel_steps, "log-mel")
        task = PhonemeTask(network, len(inventory))
        phoneme_losses = train(task, batches, steps - mel_steps, "phonemes")
        network.eval()
        accuracy = task.accuracy(held_out, inventory, np.random.default_rng([seed, 2]))
    logging.info("phoneme right in %.1f %% of held-out frames", 100 * accuracy)
    return Outcome(hours, mel_losses, phoneme_losses, accuracy)


@contextlib.contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Random numbers from ``seed``, and one thread.

    Sums do not depend on the machine's number of cores then. Batches as small as these gain
    little from a second thread, and lose by it where other programs run.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), compat.repeatable():
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def endless_batches(
    utterances: Sequence[Utterance], inventory: dict[str, int], rng: np.random.Generator
) -> Iterator[Batch]:
    """The utterances again and again, in new order and new noise, normalised either way."""
    groups = batches_by_length(utterances, BATCH_SECONDS)
    while True:
        for group in rng.permutation(len(groups)):
            batch = make_batch([utterances[i] for i in groups[group]], inventory, rng)
            if rng.random() < UTTERANCE_NORM_SHARE:
                audio = normalize_utterance(batch.audio, batch.lens)
            else:
                audio = normalize_cumulative(batch.audio, HOP, RECEPTIVE_FIELD - HOP)
            yield dataclasses.replace(batch, audio=audio)


def make_batch(
    utterances: Sequence[Utterance], inventory: dict[str, int], rng: np.random.Generator
) -> Batch:
    """A batch whose audio is not normalised yet."""
    rows, labels = noisy_rows(utterances, inventory, rng)
    num_samples = -(-max(map(len, rows)) // GRAIN) * GRAIN
    num_frames = (num_samples - RECEPTIVE_FIELD) // HOP + 1
    return Batch(
        torch.from_numpy(_padded(rows, num_samples, 0)),
        torch.tensor([len(row) for row in rows]),
        torch.from_numpy(_padded(labels, num_frames, PADDING)),
    )


def _padded(rows: Sequence[np.ndarray], length: int, value: int) -> np.ndarray:
    return np.stack([np.pad(r, (0, length - len(r)), constant_values=value) for r in rows])


def train(task: nn.Module, batches: Iterator[Batch], steps: int, name: str) -> list[float]:
    """Takes ``steps`` steps of AdamW, with warm-up and cosine. Returns the loss of each."""
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = min(100, 1 + steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 1) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    losses = []
    progress = tqdm(range(steps), desc=f"toy network: {name}", disable=None)
    for _ in progress:
        loss = task(next(batches))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix_str(f"loss {np.mean(losses[-20:]):.3f}", refresh=False)
    return losses


def convolve(network: Wav2Vec2, audio: Tensor) -> Tensor:
    """The front end, (N, n) normalised samples -> (N, T, D).

    The same as the network's own for layer norm, but with channels last, which takes less
    than half the time in training.
    """
    x = audio.unsqueeze(2)
    for layer in network.feature_extractor.conv_layers:
        weight, stride = layer.conv.weight.unsqueeze(2), (1, layer.conv.stride[0])
        x = F.conv2d(x.transpose(1, 2).unsqueeze(2), weight, layer.conv.bias, stride)
        x = F.gelu(layer.layer_norm(x.squeeze(2).transpose(1, 2)))
    return x


class MelTask(nn.Module):
    """Mean square error of the log-mel spectrum, predicted from the convolutions' output."""

    def __init__(self, network: Wav2Vec2):
        super().__init__()
        # In a tuple, for the task to train the convolutions only.
        self._network = (network,)
        self.feature_extractor = network.feature_extractor
        self.head = nn.Linear(network.feature_projection.projection.in_features, MEL_BANDS)
        self.register_buffer("filters", mel_filters())
        self.register_buffer("window", torch.hann_window(RECEPTIVE_FIELD))

    def forward(self, batch: Batch) -> Tensor:
        predicted = self.head(convolve(self._network[0], batch.audio))
        frames = batch.audio.unfold(1, RECEPTIVE_FIELD, HOP) * self.window
        power = torch.fft.rfft(frames, n=FFT_SIZE).abs().square()
        wanted = ((power @ self.filters + 1e-2).log() - MEL_MEAN) / MEL_STD
        valid = batch.labels != PADDING
        return F.mse_loss(predicted[valid], wanted[valid])


class PhonemeTask(nn.Module):
    """Cross entropy of each frame's phoneme, classified by the top of the network."""

    def __init__(self, network: Wav2Vec2, num_phonemes: int):
        super().__init__()
        self.network = network
        self.head = nn.Linear(network.hidden_size, num_phonemes)

    def forward(self, batch: Batch) -> Tensor:
        lens = (batch.labels != PADDING).sum(1)
        x = self.network.feature_projection(convolve(self.network, batch.audio))
        x = self.network.encoder(zero_padding(x, lens), lens, -1, -1, 0)
        return F.cross_entropy(self.head(x).transpose(1, 2), batch.labels, ignore_index=PADDING)

    @torch.no_grad()
    def accuracy(
        self,
        utterances: Sequence[Utterance],
        inventory: dict[str, int],
        rng: np.random.Generator,
    ) -> float:
        """Returns the share of frames classified right, by the network as it will be used."""
        right = total = 0
        for group in batches_by_length(utterances, BATCH_SECONDS):
            batch = make_batch([utterances[i] for i in group], inventory, rng)
            x, _ = self.network(batch.audio, batch.lens)
            valid = batch.labels != PADDING
            right += int((self.head(x).argmax(2) == batch.labels)[valid].sum())
            total += int(valid.sum())
        return right / total


def mel_filters() -> Tensor:
    """(FFT_SIZE / 2 + 1, M) triangles, evenly spaced in mel from 60 to 7600 Hz."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (60, 7600))
    corners = 700 * (10 ** (torch.linspace(low, high, MEL_BANDS + 2) / 2595) - 1)
    hz = torch.linspace(0, SAMPLING_RATE / 2, FFT_SIZE // 2 + 1).unsqueeze(1)
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (hz - left) / (middle - left), (right - hz) / (right - middle)
    return torch.minimum(rising, falling).clamp(min=0.0)
