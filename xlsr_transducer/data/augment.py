"""Augmentation of the training data: of the waveform, or of stored features.

Every draw comes from the seed, the epoch and the utterance's id, so that workers, processes
and restarts change nothing. The plan of the epoch draws speeds and pauses, as batches depend on
them. The signal processing is lhotse's, but for pauses and levels.
Letters: n samples, T frames, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lhotse.audio.mixer import AudioMixer
from lhotse.augmentation import ReverbWithImpulseResponse
from lhotse.augmentation.utils import FastRandomRIRGenerator
from lhotse.cut import Cut
from lhotse.dataset import SpecAugment
from scipy.signal import lfilter

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.data.audio import cut_of_file, read_audio

SPEEDS = (0.9, 1.0, 1.1)
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph")
# icefall's SpecAugment, which counts frames of 10 ms and 80 channels, in frames of 20 ms; a
# third of the channels is hidden at most, as there.
WARP_FRAMES, MASK_FRAMES, NUM_TIME_MASKS = 40, 50, 10
CHANNEL_SHARE, NUM_CHANNEL_MASKS = 27 / 80, 2
SHORTEST = 14  # frames: lhotse cannot mask fewer
PAUSE_DB = (-70.0, -25.0)  # least and greatest level of the sound in a pause


@dataclasses.dataclass(frozen=True)
class AugmentOptions(Options):
    """Augmentation of training data."""

    speed_perturb: bool = option(
        False, "play each utterance at 0.9, 1 or 1.1 times its speed, drawn anew each epoch"
    )
    pause_prob: float = option(
        0.0,
        "share of utterances that get up to 3 s of silence, noise or hum before and after them",
        at_least=0,
        at_most=1,
    )
    noise_dir: Path | None = option(None, "folder of noise, such as MUSAN, that is mixed in")
    noise_prob: float = option(
        0.5, "share of utterances that get noise from --noise-dir", at_least=0, at_most=1
    )
    noise_snr: str = option("10,20", "least and greatest signal-to-noise ratio, in dB")
    reverb_prob: float = option(
        0.0, "share of utterances that are put into a room", at_least=0, at_most=1
    )
    rir_dir: Path | None = option(
        None, "folder of room impulse responses; without it lhotse simulates rooms"
    )
    gain_prob: float = option(
        0.0, "share of utterances whose level is changed", at_least=0, at_most=1
    )
    gain_db: str = option(
        "-30,10", "least and greatest change of level, in dB; no sample is clipped"
    )
    enable_spec_aug: bool = option(False, "SpecAugment of stored features, time warp included")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.snr_range()
        self.gain_range()
        if self.rir_dir and self.reverb_prob == 0:
            raise UserError(f"--rir-dir {self.rir_dir} does nothing without --reverb-prob")

    def snr_range(self) -> tuple[float, float]:
        """Least and greatest signal-to-noise ratio in dB."""
        return _decibels("--noise-snr", self.noise_snr)

    def gain_range(self) -> tuple[float, float]:
        """Least and greatest change of level in dB."""
        return _decibels("--gain-db", self.gain_db)

    def check(self, from_waveform: bool) -> None:
        """Refuses what cannot be done to the model's input.

        Raises:
          UserError: names the option, and what it needs.
        """
        wanted = {"--speed-perturb": self.speed_perturb, "--pause-prob": self.pause_prob,
                  "--noise-dir": self.noise_dir,
                  "--reverb-prob": self.reverb_prob, "--gain-prob": self.gain_prob}  # fmt: skip
        flags = [flag for flag, value in wanted.items() if value]
        if flags and not from_waveform:
            raise UserError(
                f"{flags[0]} changes the waveform, but the model is trained on stored features, "
                "which were computed from the audio as it is; use --cut waveform"
            )
        if self.enable_spec_aug and from_waveform:
            raise UserError(
                "--enable-spec-aug 1 changes stored features, and --cut waveform has none; use "
                "--time-mask-prob and --channel-mask-prob, which hide parts of XLSR's input"
            )
        if self.reverb_prob and not self.rir_dir and not importlib.util.find_spec("torchaudio"):
            raise UserError(
                "--reverb-prob: lhotse's simulation of rooms needs torchaudio; install the one "
                "for your torch, or give a folder of impulse responses with --rir-dir"
            )


@dataclasses.dataclass(frozen=True)
class Augmenter:
    """Augments the utterances of one epoch."""

    options: AugmentOptions
    noises: tuple[Path, ...]
    rooms: tuple[Path, ...]
    from_waveform: bool
    seed: int = 0
    epoch: int = 0

    @classmethod
    def make(cls, options: AugmentOptions, from_waveform: bool) -> Augmenter:
        """Checks the options, and lists the files of noise and rooms.

        Raises:
          UserError: options that contradict the model's input, or a folder without audio.
        """
        options.check(from_waveform)
        return cls(
            options,
            _audio_files("--noise-dir", options.noise_dir),
            _audio_files("--rir-dir", options.rir_dir),
            from_waveform,
        )

    def at(self, seed: int, epoch: int) -> Augmenter:
        """Returns the same for another epoch."""
        return dataclasses.replace(self, seed=seed, epoch=epoch)

    def _rng(self, purpose: str, cut: Cut) -> random.Random:
        return random.Random(f"{purpose} {self.seed} {self.epoch} {cut.id}")

    def __call__(self, cut: Cut, values: np.ndarray, pause: float = 0.0) -> np.ndarray:
        """Returns the samples (n,) or features (T, D) of a cut, as float32; in the same shape but
        for ``pause``, seconds that are added before and after the samples.

        Raises:
          UserError: a file of noise or of a room cannot be read.
        """
        if not self.from_waveform:
            is_changed = self.options.enable_spec_aug
            return spec_augment(values, self._rng("features", cut)) if is_changed else values
        rng = self._rng("waveform", cut)
        if rng.random() < self.options.reverb_prob:
            values = self._in_a_room(values, rng)
        if pause > 0:
            values = _between_pauses(values, int(pause * SAMPLING_RATE), rng)
        if rng.random() < self.options.noise_prob and self.noises:
            values = self._with_noise(values, rng)
        if rng.random() < self.options.gain_prob:
            values = self._at_another_level(values, rng)
        return values

    def _at_another_level(self, wave: np.ndarray, rng: random.Random) -> np.ndarray:
        """Louder or quieter; the loudest sample stays within full scale."""
        factor = 10 ** (rng.uniform(*self.options.gain_range()) / 20)
        peak = float(np.abs(wave).max(initial=0.0))
        return (wave * min(factor, max(1.0 / max(peak, 1e-9), 1.0))).astype(np.float32)

    def _in_a_room(self, wave: np.ndarray, rng: random.Random) -> np.ndarray:
        """Reverberated, as loud and as long as before, and not delayed."""
        if self.rooms:
            response = read_audio(rng.choice(self.rooms))[np.newaxis]
        else:
            with _all_generators(rng):
                seeds = {"room_seed": rng.getrandbits(32), "source_seed": rng.getrandbits(32)}
                response = FastRandomRIRGenerator(sr=SAMPLING_RATE, **seeds)(nsource=1)
        reverb = ReverbWithImpulseResponse(rir_generator=lambda nsource: response)
        return reverb(wave[np.newaxis], SAMPLING_RATE)[0].astype(np.float32)

    def _with_noise(self, wave: np.ndarray, rng: random.Random) -> np.ndarray:
        """With a part of a file of noise, as long as the wave if the file is."""
        cut = cut_of_file(rng.choice(self.noises))
        seconds = len(wave) / SAMPLING_RATE
        if cut.duration > seconds:
            start = rng.uniform(0.0, cut.duration - seconds)
            cut = cut.truncate(offset=start, duration=seconds, preserve_id=True)
        noise = read_audio(cut)[: len(wave)]
        place = rng.randint(0, len(wave) - len(noise)) / SAMPLING_RATE
        mixer = AudioMixer(wave[np.newaxis], SAMPLING_RATE)
        mixer.add_to_mix(noise[np.newaxis], rng.uniform(*self.options.snr_range()), place)
        return mixer.mixed_mono_audio[0, : len(wave)]


def _between_pauses(wave: np.ndarray, samples: int, rng: random.Random) -> np.ndarray:
    """Returns ``wave`` after one part of a pause of so many samples, and before the other."""
    pause, before = quiet_room(samples, rng), rng.randint(0, samples)
    return np.concatenate([pause[:before], wave, pause[before:]])


def quiet_room(samples: int, rng: random.Random) -> np.ndarray:
    """Returns (n,) float32 without speech: digital silence, mains hum, or noise between white and
    a rumble."""
    kind, level = rng.choice(("silence", "hum", "noise")), 10 ** (rng.uniform(*PAUSE_DB) / 20)
    if kind == "silence":
        return np.zeros(samples, dtype=np.float32)
    if kind == "hum":
        turns = rng.choice((50, 60)) * np.arange(samples) / SAMPLING_RATE + rng.random()
        wave = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 5))
    else:
        white = np.random.default_rng(rng.getrandbits(64)).standard_normal(samples)
        wave = lfilter([1.0], [1.0, -rng.uniform(0.0, 0.97)], white)
    rms = np.sqrt(np.square(wave).mean()) if samples else 1.0
    return (level / max(rms, 1e-9) * wave).astype(np.float32)


def spec_augment(features: np.ndarray, rng: random.Random) -> np.ndarray:
    """Warps time, hides channels and spans of frames (T, D) by their mean, nine times in ten.

    D. Park et al., "SpecAugment", Interspeech 2019.
    """
    values = torch.from_numpy(features).float()
    if len(values) < SHORTEST:
        return values.numpy()
    transform = SpecAugment(
        time_warp_factor=WARP_FRAMES,
        num_feature_masks=NUM_CHANNEL_MASKS,
        features_mask_size=int(CHANNEL_SHARE * values.shape[1]),
        num_frame_masks=NUM_TIME_MASKS,
        frames_mask_size=MASK_FRAMES,
    )
    with _all_generators(rng):
        return transform(values.unsqueeze(0))[0].numpy()


def _decibels(flag: str, text: str) -> tuple[float, float]:
    """Returns the two ends of a range in dB, such as `10,20`."""
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError as e:
        raise UserError(f"{flag} {text}: must be two numbers: 10,20") from e
    if not -100.0 <= low <= high <= 100.0:
        raise UserError(f"{flag} {text}: must rise, within 100 dB")
    return low, high


@contextlib.contextmanager
def _all_generators(rng: random.Random) -> Iterator[None]:
    """Inside, the global generators that lhotse draws from are seeded; then they are as before."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = rng.getrandbits(32)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def _audio_files(flag: str, folder: Path | None) -> tuple[Path, ...]:
    """Returns the audio files below a folder, in an order that does not depend on the disk."""
    if folder is None:
        return ()
    if not folder.is_dir():
        raise UserError(f"{flag} {folder}: no such folder")
    walk = os.walk(folder, followlinks=True)
    found = sorted(Path(place) / name for place, _, names in walk for name in names)
    found = [path for path in found if path.suffix.lower() in AUDIO_SUFFIXES]
    if not found:
        raise UserError(f"{flag} {folder}: holds no audio ({', '.join(AUDIO_SUFFIXES)})")
    return tuple(found)
