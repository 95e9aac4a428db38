"""Augmentation: what it changes, what it must not, and that every draw repeats."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import fftconvolve

from tests.support.noise_corpus import make_cut
from tests.support.tiny_recipe import run_train
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import num_samples, read_audio
from xlsr_transducer.data.augment import (
    SPEEDS,
    Augmenter,
    AugmentOptions,
    quiet_room,
    spec_augment,
)
from xlsr_transducer.data.batches import at_speed
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.features import find_features
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir
from xlsr_transducer.model.checkpoint import read_checkpoint

RATE = 16000


def write_noise(folder: Path, lengths: list[int], rate: int = RATE) -> Path:
    generator = np.random.default_rng(1)
    for i, length in enumerate(lengths):
        path = folder / f"part-{i % 2}" / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, generator.uniform(-0.2, 0.2, length), rate)
    return folder


def augmenter(from_waveform: bool = True, **options) -> Augmenter:
    return Augmenter.make(AugmentOptions(**options), from_waveform).at(seed=1, epoch=1)


def a_cut(tmp_path: Path, length: int = 20000, rate: int = RATE, name: str = "utt"):
    path = tmp_path / f"{name}.wav"
    t = np.arange(length) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * t), rate)
    return make_cut(path, length, rate, "tere")


def from_waveform(corpus: Path, workers: int = 0, **options) -> DataModule:
    settings = DataOptions(data_dir=corpus, num_workers=workers, num_buckets=2, max_duration=15.0)
    tokenizer = Tokenizer.load(find_lang_dir(corpus))
    return DataModule(settings, None, tokenizer, AugmentOptions(**options))


def inputs(data: DataModule, epoch: int, **more) -> dict[str, torch.Tensor]:
    loader = data.train_loader(["train"], epoch, seed=7, **more)
    return {i: x[:n] for b in loader for i, x, n in zip(b.ids, b.inputs, b.input_lens)}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


@pytest.mark.parametrize("rate, length", [(16000, 20000), (16000, 16001), (8000, 9001),
                                          (44100, 44101), (22050, 30011)])  # fmt: skip
@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_changes_duration_and_pitch_and_nothing_else(
    tmp_path: Path, rate: int, length: int, speed: float
) -> None:
    cut = a_cut(tmp_path, length, rate)
    changed = at_speed(cut, speed)
    assert (changed.id, changed.supervisions[0].text) == (cut.id, "tere")
    assert changed.duration == pytest.approx(cut.duration / speed, abs=1 / rate)
    wave = read_audio(changed)
    assert len(wave) == num_samples(changed)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    peak = int(spectrum.argmax()) * RATE / len(wave)
    assert peak == pytest.approx(440 * speed, abs=RATE / len(wave))


def test_batches_know_the_changed_durations(corpus: Path) -> None:
    plain, data = from_waveform(corpus), from_waveform(corpus, speed_perturb=True)
    lengths = {i: len(x) for i, x in inputs(plain, 1).items()}
    drawn = []
    for batch in data.train_loader(["train"], 1, seed=7):
        assert batch.seconds == pytest.approx(int(batch.input_lens.sum()) / RATE, abs=1e-3)
        assert int(batch.input_lens.max()) * (len(batch.ids) - 1) <= 15.0 * RATE
        drawn += [lengths[i] / n for i, n in zip(batch.ids, batch.input_lens.tolist())]
    assert len(drawn) == len(lengths)
    assert {min(SPEEDS, key=lambda s: abs(s - d)) for d in drawn} == set(SPEEDS)
    assert max(min(abs(s - d) for s in SPEEDS) for d in drawn) < 1e-3


def test_pauses_lie_around_what_was_said_and_batches_count_them(corpus: Path) -> None:
    plain, data = from_waveform(corpus), from_waveform(corpus, pause_prob=0.7)
    spoken, longer = inputs(plain, 1), 0
    for batch in data.train_loader(["train"], 1, seed=7):
        assert batch.seconds == pytest.approx(int(batch.input_lens.sum()) / RATE, abs=1e-2)
        assert batch.input_lens.tolist() == sorted(batch.input_lens.tolist(), reverse=True)
        assert int(batch.input_lens.max()) * (len(batch.ids) - 1) <= 15.0 * RATE
        for name, samples, length in zip(batch.ids, batch.inputs, batch.input_lens.tolist()):
            speech = spoken[name]
            added = length - len(speech)
            longer += added > 0
            # Where its loudest samples stand in a row, there is the speech.
            peak = int(speech.abs().argmax())
            places = (samples[peak : peak + added + 1] == speech[peak]).nonzero()[:, 0]
            assert any(torch.equal(samples[at : at + len(speech)], speech) for at in places)
    assert 10 < longer < 30 == len(spoken)
    seconds = [d.summary(["train"]).seconds for d in (plain, data)]
    assert seconds[1] - seconds[0] == pytest.approx(30 * 0.7 * 3.0 / 2)
    assert data.summary(["val"], for_training=False) == plain.summary(["val"], for_training=False)


def test_a_pause_has_silence_hum_or_noise_at_a_level_of_its_own() -> None:
    rooms = [quiet_room(32000, random.Random(i)) for i in range(60)]
    level = np.array([10 * np.log10(np.square(x).mean() + 1e-12) for x in rooms])
    silent = level < -100
    assert 10 < silent.sum() < 30
    assert ((level[~silent] > -70.1) & (level[~silent] < -24.9)).all()
    assert np.ptp(level[~silent]) > 35
    spectra = [np.square(np.abs(np.fft.rfft(x))) for x in np.array(rooms)[~silent]]
    # Of a hum eight frequencies at most hold all of the power, of noise they do not.
    shares = np.array([np.sort(s)[-8:].sum() / s.sum() for s in spectra])
    assert 5 < (shares > 0.9).sum() < len(shares) - 5
    assert len(quiet_room(0, random.Random(1))) == 0


@pytest.mark.parametrize("snr", [0.0, 15.0])
def test_noise_has_the_signal_to_noise_ratio_asked_for(tmp_path: Path, snr: float) -> None:
    noise = write_noise(tmp_path / "noise", [50000])
    mix = augmenter(noise_dir=noise, noise_prob=1.0, noise_snr=f"{snr},{snr}")
    cut = a_cut(tmp_path)
    clean = read_audio(cut)
    noisy = mix(cut, clean)
    assert noisy.shape == clean.shape and noisy.dtype == np.float32
    found = 10 * np.log10(np.square(clean).mean() / np.square(noisy - clean).mean())
    assert found == pytest.approx(snr, abs=0.01)


def test_short_noise_lies_somewhere_within_the_utterance(tmp_path: Path) -> None:
    noise = write_noise(tmp_path / "noise", [4000], rate=8000)  # 0.5 s
    mix = augmenter(noise_dir=noise, noise_prob=1.0)
    starts = set()
    for i in range(6):
        cut = a_cut(tmp_path, name=f"utt{i}")
        clean = read_audio(cut)
        changed = np.flatnonzero(np.abs(mix(cut, clean) - clean) > 1e-6)
        assert 0.48 * RATE < changed[-1] - changed[0] <= 0.5 * RATE
        starts.add(int(changed[0]))
    assert len(starts) == 6


def test_a_room_response_convolves_without_delay_and_keeps_loudness(tmp_path: Path) -> None:
    response = np.zeros(2000)
    response[[100, 700, 1500]] = 0.8, 0.3, -0.2
    (tmp_path / "rooms").mkdir()
    soundfile.write(tmp_path / "rooms" / "a.wav", response, RATE, subtype="FLOAT")
    cut = a_cut(tmp_path)
    clean = read_audio(cut)
    found = augmenter(reverb_prob=1.0, rir_dir=tmp_path / "rooms")(cut, clean)
    expected = fftconvolve(clean, response)[100 : 100 + len(clean)]
    expected *= np.sqrt(np.square(clean).sum() / np.square(expected).sum())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_change_of_level_scales_all_samples_alike_and_clips_none(tmp_path: Path) -> None:
    quiet, loud = (
        augmenter(gain_prob=1.0, gain_db="-40,-40"),
        augmenter(gain_prob=1.0, gain_db="20,20"),
    )
    cut = a_cut(tmp_path)
    clean = read_audio(cut)
    found = quiet(cut, clean)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, clean * 0.01, rtol=1e-6)
    np.testing.assert_allclose(loud(cut, clean), clean / np.abs(clean).max(), rtol=1e-6)
    assert np.array_equal(quiet(cut, np.zeros_like(clean)), np.zeros_like(clean))


def test_levels_are_drawn_within_the_range_for_the_share_asked_for(tmp_path: Path) -> None:
    change = augmenter(gain_prob=0.5, gain_db="-20,-10")
    clean, factors = read_audio(a_cut(tmp_path)), []
    for i in range(40):
        found = change(a_cut(tmp_path, name=f"utt{i}"), clean)
        factors.append(20 * np.log10(np.abs(found).max() / np.abs(clean).max()))
    changed = [f for f in factors if f != 0.0]
    assert 10 <= len(changed) <= 30 and len(set(changed)) == len(changed)
    assert min(changed) >= -20.001 and max(changed) <= -9.999


@pytest.mark.skipif(not importlib.util.find_spec("torchaudio"), reason="needs torchaudio")
def test_simulated_rooms_repeat_and_leave_other_generators_alone(tmp_path: Path) -> None:
    cut = a_cut(tmp_path)
    clean = read_audio(cut)
    room = augmenter(reverb_prob=1.0)
    before = torch.get_rng_state()
    first = room(cut, clean)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == clean.shape and np.array_equal(room(cut, clean), first)
    assert not np.array_equal(room.at(1, 2)(cut, clean), first)
    assert np.square(first).mean() == pytest.approx(np.square(clean).mean(), rel=1e-3)


@pytest.mark.skipif(
    importlib.util.find_spec("torchaudio") is not None, reason="torchaudio is there"
)
def test_simulated_rooms_without_torchaudio_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="needs torchaudio.*--rir-dir"):
        augmenter(reverb_prob=0.5)


def test_augmented_audio_depends_on_seed_epoch_and_utterance_alone(
    corpus: Path, tmp_path: Path
) -> None:
    noise = write_noise(tmp_path / "noise", [30000, 8000, 60000])
    options = {"speed_perturb": True, "pause_prob": 0.3, "noise_dir": noise, "noise_prob": 0.7,
               "reverb_prob": 0.3, "rir_dir": noise / "part-1"}  # fmt: skip
    data = from_waveform(corpus, **options)
    first = inputs(data, 1)
    assert same(inputs(from_waveform(corpus, workers=2, **options), 1), first)
    assert not same(inputs(data, 2), first)
    rest = inputs(data, 1, skip=2)
    assert same(rest, {i: first[i] for i in rest}) and 0 < len(rest) < len(first)
    clean = inputs(from_waveform(corpus), 1)
    untouched = [i for i in clean if torch.equal(clean[i], first[i])]
    assert 0 < len(untouched) < len(clean) / 2


def test_validation_hears_what_was_recorded(corpus: Path, tmp_path: Path) -> None:
    noise = write_noise(tmp_path / "noise", [30000])
    options = {"noise_dir": noise, "noise_prob": 1.0, "speed_perturb": True, "pause_prob": 1.0}
    data = from_waveform(corpus, **options)
    noisy, plain = (list(d.valid_loader(["val"])) for d in (data, from_waveform(corpus)))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(noisy, plain))


def test_a_file_of_noise_that_vanishes_is_a_named_skip(corpus: Path, tmp_path: Path) -> None:
    noise = write_noise(tmp_path / "noise", [30000, 30000])
    data = from_waveform(corpus, noise_dir=noise, noise_prob=1.0)
    (noise / "part-0" / "0.wav").unlink()
    batches = list(data.train_loader(["train"], 1, seed=7))
    skipped = [str(line) for batch in batches for line in batch.skipped]
    kept = sum(len(batch.ids) for batch in batches)
    assert skipped and kept + len(skipped) == 30 and kept > 5
    assert all("0.wav: no such audio file" in line for line in skipped)


@pytest.mark.parametrize("frames", [0, 1, 13, 14, 60, 400])
def test_spec_augment_hides_parts_and_keeps_the_shape(frames: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(frames, 64)).astype(np.float16)
    state = random.getstate(), torch.get_rng_state()
    found = [spec_augment(x, random.Random(i)) for i in range(8)]
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    assert all(y.shape == x.shape and y.dtype == np.float32 for y in found)
    assert np.array_equal(spec_augment(x, random.Random(3)), found[3])
    changed = [not np.array_equal(y, x.astype(np.float32)) for y in found]
    assert any(changed) if frames >= 14 else not any(changed)
    assert not any(np.isnan(y).any() for y in found)


def test_features_are_augmented_anew_each_epoch_and_the_same_for_a_seed(corpus: Path) -> None:
    settings = DataOptions(data_dir=corpus, num_workers=0, num_buckets=2, max_duration=15.0)
    tokenizer = Tokenizer.load(find_lang_dir(corpus))
    plain, data = (
        DataModule(settings, find_features(corpus), tokenizer, AugmentOptions(enable_spec_aug=on))
        for on in (False, True)
    )
    first = inputs(data, 1)
    assert same(first, inputs(data, 1)) and not same(first, inputs(data, 2))
    clean = inputs(plain, 1)
    assert {i: x.shape for i, x in clean.items()} == {i: x.shape for i, x in first.items()}
    assert sum(not torch.equal(clean[i], first[i]) for i in clean) > len(clean) / 2


@pytest.mark.parametrize(
    "options, on_waveform, message",
    [
        ({"speed_perturb": True}, False, "--speed-perturb changes the waveform"),
        ({"noise_dir": Path("tests")}, False, "--noise-dir changes the waveform"),
        ({"reverb_prob": 0.1}, False, "--reverb-prob changes the waveform"),
        ({"pause_prob": 0.1}, False, "--pause-prob changes the waveform"),
        ({"gain_prob": 0.1}, False, "--gain-prob changes the waveform"),
        ({"enable_spec_aug": True}, True, "--enable-spec-aug 1 changes stored features"),
        ({"noise_dir": Path("no-such-folder")}, True, "--noise-dir no-such-folder: no such"),
        ({"noise_dir": Path("docs")}, True, "--noise-dir docs: holds no audio"),
        ({"rir_dir": Path("docs"), "reverb_prob": 0.5}, True, "--rir-dir docs: holds no audio"),
    ],
)
def test_augmentation_that_cannot_be_is_refused_by_name(
    options: dict, on_waveform: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Augmenter.make(AugmentOptions(**options), on_waveform)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rir_dir": Path("x")}, "does nothing without --reverb-prob"),
        ({"noise_snr": "10"}, "--noise-snr 10: must be two numbers"),
        ({"noise_snr": "20,10"}, "--noise-snr 20,10: must rise"),
        ({"noise_snr": "nan,10"}, "--noise-snr nan,10: must rise"),
        ({"noise_prob": 1.5}, "--noise-prob 1.5"),
        ({"gain_db": "10"}, "--gain-db 10: must be two numbers"),
        ({"gain_prob": -0.5}, "--gain-prob -0.5"),
        ({"pause_prob": 1.1}, "--pause-prob 1.1"),
    ],
)
def test_impossible_values_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AugmentOptions(**options)


def test_a_training_with_all_of_it_resumes_to_the_same_bits(corpus: Path, tmp_path: Path) -> None:
    noise = write_noise(tmp_path / "noise", [30000, 8000])
    options = ["--cut=waveform", f"--xlsr={corpus / 'toy_xlsr'}", "--speed-perturb=1",
               f"--noise-dir={noise}", "--reverb-prob=0.5", f"--rir-dir={noise / 'part-1'}",
               "--gain-prob=0.5", "--pause-prob=0.5",
               "--num-epochs=1", "--save-every-n=3"]  # fmt: skip
    run_train(corpus, tmp_path / "exp", *options)
    straight = read_checkpoint(tmp_path / "exp" / "epoch-1.pt")
    run_train(corpus, tmp_path / "exp", *options, "--start-batch=3")
    resumed = read_checkpoint(tmp_path / "exp" / "epoch-1.pt")
    assert straight["step"] == resumed["step"] > 3
    assert all(torch.equal(straight["model"][n], resumed["model"][n]) for n in straight["model"])
