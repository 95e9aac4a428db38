"""What the toy network is pre-trained on: synthesized Estonian with a phoneme for every frame.

Random strings of everyday words, none of which the demo's grammar has, in voices other than
those that the demo keeps for its test. No PyTorch here, so that worker processes start fast.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Sequence

import numpy as np
from scipy.signal import resample_poly

from local.demo.espeak import Speech, Synthesizer
from local.demo.make_corpus import SEEN_VOICES, UNSEEN_VOICES, grammar_words, record
from local.demo.words import WORDS
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import HOP, RECEPTIVE_FIELD, SAMPLING_RATE

VOICES = SEEN_VOICES + (
    "et+m5", "et+m6", "et+m8", "et+f4", "et+Annie", "et+Andy", "et+Alex", "et+Denis", "et+Hugo",
    "et+Mario", "et+Michael", "et+Mike", "et+belinda", "et+steph", "et+victor", "et+zac",
)  # fmt: skip
# Every tenth word is kept for the held-out sentences.
HELD_OUT_WORDS = WORDS[::10]
TRAINING_WORDS = tuple(word for word in WORDS if word not in set(HELD_OUT_WORDS))
PAUSE = "_"
PADDING = -1
SHARDS = 2  # worker processes; part of the recipe, as each has random numbers of its own


@dataclasses.dataclass(frozen=True)
class Utterance:
    """Clean speech and its phonemes."""

    samples: np.ndarray  # int16, 16 kHz
    starts: np.ndarray  # first sample of each phoneme, ascending
    phonemes: tuple[str, ...]  # espeak's names, stress and length of pauses dropped


def check_separation() -> None:
    """Sees to it that neither words nor test voices of the demo are trained on.

    Raises:
      UserError: names what they share.
    """
    words = set(WORDS) & grammar_words()
    voices = set(VOICES) & set(UNSEEN_VOICES)
    if words or voices:
        shared = ", ".join(sorted(words | voices))
        raise UserError(
            f"the toy network's pre-training and the demo share {shared}; change "
            "local/demo/words.py or local/demo/speech.py"
        )


def synthesize(seed: int, training: int, held_out: int) -> tuple[list[Utterance], list[Utterance]]:
    """So many utterances to train on, and of other words to test with.

    In processes of their own: the synthesizer starts from the same state in each, so the same
    seed gives the same utterances.
    """
    check_separation()
    tasks = [(seed, 0, held_out, HELD_OUT_WORDS)]
    for shard in range(SHARDS):
        count = training * (shard + 1) // SHARDS - training * shard // SHARDS
        tasks.append((seed, 1 + shard, count, TRAINING_WORDS))
    with multiprocessing.get_context("spawn").Pool(SHARDS, maxtasksperchild=1) as pool:
        first, *shards = pool.map(_synthesize_shard, tasks, chunksize=1)
    return [utterance for shard in shards for utterance in shard], first


def _synthesize_shard(task: tuple[int, int, int, tuple[str, ...]]) -> list[Utterance]:
    seed, shard, count, words = task
    rng = np.random.default_rng([seed, shard])
    synthesizer = Synthesizer()
    return [_speak(synthesizer, rng, words) for _ in range(count)]


def _speak(synthesizer: Synthesizer, rng: np.random.Generator, words: Sequence[str]) -> Utterance:
    speech = synthesizer.speak(
        " ".join(rng.choice(words, rng.integers(3, 7))),
        VOICES[rng.integers(len(VOICES))],
        rate=int(rng.integers(145, 200)),
        pitch=int(rng.integers(32, 68)),
        pitch_range=int(rng.integers(30, 70)),
        word_gap=int(rng.integers(0, 4)),
    )
    return to_utterance(speech)


def to_utterance(speech: Speech) -> Utterance:
    """At 16 kHz."""
    common = int(np.gcd(SAMPLING_RATE, speech.sampling_rate))
    up, down = SAMPLING_RATE // common, speech.sampling_rate // common
    samples = resample_poly(speech.samples.astype(np.float32), up, down)
    starts = [at * SAMPLING_RATE // speech.sampling_rate for at, _ in speech.phonemes]
    names = [PAUSE if name.startswith(PAUSE) else name for _, name in speech.phonemes]
    samples = np.round(samples.clip(-32768, 32767)).astype(np.int16)
    return Utterance(samples, np.array(starts, dtype=np.int64), tuple(names))


def phoneme_inventory(utterances: Sequence[Utterance]) -> dict[str, int]:
    """Name -> number; the pause is 0 and stands for any name that is not in it."""
    names = {name for utterance in utterances for name in utterance.phonemes}
    return {name: i for i, name in enumerate([PAUSE, *sorted(names - {PAUSE})])}


def frame_labels(starts: np.ndarray, numbers: np.ndarray, num_samples: int) -> np.ndarray:
    """The phoneme that sounds in the middle of each frame's 400 samples; 0 before the first."""
    num_frames = max((num_samples - RECEPTIVE_FIELD) // HOP + 1, 0)
    middle = np.arange(num_frames) * HOP + RECEPTIVE_FIELD // 2
    return np.concatenate(([0], numbers))[np.searchsorted(starts, middle, side="right")]


def noisy_rows(
    utterances: Sequence[Utterance], inventory: dict[str, int], rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each utterance in a room drawn with ``rng``: float32 samples, and the frames' labels."""
    rows, labels = [], []
    for utterance in utterances:
        noisy, before = record(utterance.samples, SAMPLING_RATE, rng)
        numbers = np.array([inventory.get(name, 0) for name in utterance.phonemes], dtype=np.int64)
        rows.append(noisy.astype(np.float32) / 32768)
        labels.append(frame_labels(utterance.starts + before, numbers, len(noisy)))
    return rows, labels


def batches_by_length(utterances: Sequence[Utterance], seconds: float) -> list[list[int]]:
    """Indices of utterances of like length, together up to ``seconds`` with their padding."""
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i].samples))
    batches: list[list[int]] = [[]]
    for i in order:
        if batches[-1] and (len(batches[-1]) + 1) * len(utterances[i].samples) > (
            seconds * SAMPLING_RATE
        ):
            batches.append([])
        batches[-1].append(i)
    return batches
