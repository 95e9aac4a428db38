"""Stage 4's flags that need the audio: levels, silence, clipping, repeated samples."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from local.checks import audio
from local.checks.audio import CACHE_FILE, AudioOptions, Cache, choose
from local.checks.signal import measure
from local.checks.utterances import Utterances
from tests.support.checked_corpus import check, on_file, part_of, recorded, stage_4, utterance
from tests.support.mp3_files import write_mp3
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio_file import decode

RATE = 16000


def voice(seconds: float = 1.5, seed: int = 0, peak: float = 0.3, rate: int = RATE) -> np.ndarray:
    """Noise in syllables, above a noise floor 50 dB below it."""
    draw = np.random.default_rng(seed)
    n = round(seconds * rate)
    syllables = np.abs(np.sin(np.pi * 4 * np.arange(n) / rate)) + 0.003
    return (draw.uniform(-peak, peak, n) * syllables).astype(np.float32)


def room(seconds: float, seed: int = 1, peak: float = 0.0005, rate: int = RATE) -> np.ndarray:
    """The noise of a quiet room."""
    draw = np.random.default_rng(seed)
    return draw.uniform(-peak, peak, round(seconds * rate)).astype(np.float32)


def clipped(gain: float, **settings) -> np.ndarray:
    return np.clip(gain * voice(**settings), -1, 1)


SOUNDS = {  # name -> samples, and the kinds of its flags
    "good": (voice(), ""),
    "silence-before": (np.concatenate([room(2.3), voice()]), "leading-silence"),
    "pause-before": (np.concatenate([room(1.8), voice()]), ""),
    "silence-after": (np.concatenate([voice(), room(2.3)]), "trailing-silence"),
    "silence-between": (np.concatenate([voice(), room(3), voice(seed=7)]), ""),
    "a-word-in-silence": (
        np.concatenate([room(3), voice(0.25), room(3)]),
        "leading-silence trailing-silence",
    ),
    "noise-before": (np.concatenate([room(2.3, peak=0.05), voice()]), ""),
    "zeros": (np.zeros(RATE), "silent"),
    "room": (room(2), "silent"),
    "click": (np.concatenate([room(1), [0.9, -0.9] * 20, room(1)]), "silent"),
    "quiet": (voice(peak=0.005), "quiet"),
    "not-quiet": (voice(peak=0.03), ""),
    "dropout": (np.concatenate([voice(0.6), np.zeros(RATE * 6 // 10), voice(0.6)]), "constant"),
    "short-dropout": (
        np.concatenate([voice(0.6), np.zeros(RATE * 4 // 10), voice(0.6, 3)]),
        "",
    ),
    "stuck": (np.concatenate([voice(0.6), np.full(9600, 0.002), voice(0.6, 4)]), "constant"),
    "clipped": (clipped(20, seed=5), "clipped"),
    "loud": (voice(seed=6) / np.abs(voice(seed=6)).max(), ""),
    "loud-tone": (np.sin(2 * np.pi * 150 * np.arange(RATE * 2) / RATE), ""),
    "one-burst": (np.concatenate([voice(2, seed=8), [1.0] * 20]), ""),
    "offset": (voice(seed=9) + 0.02, "dc-offset"),
    "small-offset": (voice(seed=10) - 0.005, ""),
    "low-tone": (0.3 * np.sin(2 * np.pi * 50 * np.arange(RATE * 2) / RATE), ""),
    "one-sample": (np.array([0.2]), "silent dc-offset"),
    "two-frames": (voice(0.03, seed=11), ""),
}


def test_each_flag_of_the_audio_and_what_is_nearly_one(tmp_path: Path) -> None:
    """At 16 kHz, and the same at 8 kHz in the second channel of a FLAC file of 24 bits."""
    cuts = []
    for name, (samples, _) in SOUNDS.items():
        cuts.append(recorded(tmp_path / f"{name}.wav", samples))
        two = np.stack([np.zeros_like(samples), samples], axis=1)
        path = tmp_path / f"{name}-stereo.flac"
        cut = recorded(path, two, rate=8000, subtype="PCM_24", format="FLAC")
        cuts.append(part_of(cut, cut["id"], 0.0, cut["duration"], channel=1))
    found = check(tmp_path, train=cuts)["train"]
    found = [row for row in found if row[1] not in ("fast", "slow")]
    expected = [(name, kind) for name, (_, kinds) in SOUNDS.items() for kind in kinds.split()]
    assert [row[:2] for row in found if "stereo" not in row[0]] == expected
    values = {row[:2]: float(row[2]) for row in found}
    assert values["silence-before", "leading-silence"] == pytest.approx(2.3, abs=0.05)
    assert values["silence-after", "trailing-silence"] == pytest.approx(2.3, abs=0.05)
    assert values["dropout", "constant"] == pytest.approx(0.6, abs=0.001)
    assert values["offset", "dc-offset"] == pytest.approx(2.0, abs=0.2)
    at_full = np.abs(clipped(20, seed=5)) >= 1
    assert 0 < values["clipped", "clipped"] <= 100 * at_full.mean()
    assert {row[:2] for row in found if "stereo" in row[0]} >= {
        (f"{name}-stereo", kind) for name, kind in expected if "silence" not in kind
    }


def test_levels_are_those_of_a_tone() -> None:
    """A sine has its amplitude's level less 3 dB, whatever its offset."""
    tone = 0.1 * np.sin(2 * np.pi * 400 * np.arange(8000) / 8000) + 0.05
    found = measure(tone.astype(np.float32), 8000)
    assert found["level"] == pytest.approx(-23.01, abs=0.02)
    assert found["offset"] == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_clipped_runs_and_constant_runs_are_counted_sample_by_sample(rate: int) -> None:
    draw = np.random.default_rng(rate)
    samples = draw.choice([-1.0, -0.5, 0.5, 0.99997], rate).astype(np.float32)
    in_runs = longest = 0
    run = 1
    for i in range(1, len(samples) + 1):
        if i < len(samples) and samples[i] == samples[i - 1]:
            run += 1
            continue
        longest = max(longest, run)
        in_runs += run if run >= 3 and abs(samples[i - 1]) > 0.9 else 0
        run = 1
    found = measure(samples, rate)
    assert found["clipped"] == pytest.approx(in_runs / len(samples), rel=1e-6) and in_runs > 100
    assert found["constant"] == pytest.approx((longest - 1) / rate, rel=1e-6)


def test_clipping_survives_telephone_and_mp3_coding(tmp_path: Path) -> None:
    cuts = []
    for name, gain in (("loud", 1), ("distorted", 30)):
        samples = clipped(gain, rate=48000)
        write_mp3(tmp_path / f"{name}-mp3.mp3", samples, 48000, "CONSTANT")
        decoded, _ = decode(tmp_path / f"{name}-mp3.mp3")
        cut = utterance(f"{name}-mp3", "tere tulemast")
        cuts.append(on_file(cut, tmp_path / f"{name}-mp3.mp3", len(decoded), 48000))
        path = tmp_path / f"{name}-ulaw.wav"
        cuts.append(recorded(path, clipped(gain, rate=8000), 8000, subtype="ULAW"))
    found = check(tmp_path, train=cuts)["train"]
    assert [row[:2] for row in found] == [
        ("distorted-mp3", "clipped"), ("distorted-ulaw", "clipped"),
    ]  # fmt: skip


def test_the_same_samples_in_another_file_are_flagged_within_and_between_splits(
    tmp_path: Path,
) -> None:
    samples = (voice() * 32767).astype(np.int16)  # of floats, formats differ in how they round
    first = recorded(tmp_path / "first.wav", samples)
    stereo = np.stack([samples, samples[::-1]], axis=1)
    train = [first, recorded(tmp_path / "other.wav", voice(seed=1))]
    train.append(recorded(tmp_path / "copy.flac", samples, text="mis sa teed"))
    near = samples.copy()
    near[100] += 1
    train.append(recorded(tmp_path / "near.wav", near))
    train += [recorded(tmp_path / f"zeros{i}.wav", np.zeros(8000)) for i in range(2)]
    test = [recorded(tmp_path / "stereo.wav", stereo, text="miks mitte")]
    whole = recorded(tmp_path / "long.wav", np.concatenate([samples[:RATE], samples, samples]))
    test.append(part_of(whole, "segment", 1.0, 1.5))
    test.append(part_of(whole, "later", 1.01, 1.4))
    found = check(tmp_path, train=train, test=test)
    repeated = [row for rows in found.values() for row in rows if row[1] == "repeated"]
    assert repeated == [
        ("copy", "repeated", "", "first"),
        ("stereo", "repeated", "", "first in train"),
        ("segment", "repeated", "", "first in train"),
    ]


def test_audio_that_cannot_be_read_is_a_flag_with_the_reason(tmp_path: Path) -> None:
    cuts = [recorded(tmp_path / f"{name}.wav", voice(seed=i)) for i, name in enumerate("abcd")]
    (tmp_path / "a.wav").unlink()
    content = (tmp_path / "b.wav").read_bytes()
    (tmp_path / "b.wav").write_bytes(content[: len(content) // 2])
    (tmp_path / "c.wav").write_bytes(b"no audio")
    rows = check(tmp_path, train=cuts)["train"]
    assert [row[:2] for row in rows] == [(name, "unreadable") for name in "abc"]
    assert all(f"{name}.wav" in row[3] for name, row in zip("abc", rows))
    shutil.copy(tmp_path / "d.wav", tmp_path / "a.wav")
    assert [row[:2] for row in check(tmp_path, train=cuts)["train"]] == [
        ("b", "unreadable"), ("c", "unreadable"), ("d", "repeated"),
    ]  # fmt: skip


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of what is read, in this process."""
    names: list[str] = []

    class Here:
        def __init__(self, num_jobs: int, initializer: object) -> None:
            self.__enter__ = None

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

        def submit(self, function, task):
            names.extend(cut["id"] for _, _, cut in task)
            results = function(task)
            return type("Done", (), {"result": lambda self: results})()

    monkeypatch.setattr(audio, "ProcessPoolExecutor", Here)
    return names


def test_only_new_and_changed_files_are_read_again(tmp_path: Path, read: list[str]) -> None:
    cuts = [recorded(tmp_path / f"{name}.wav", voice(seed=i)) for i, name in enumerate("abcd")]
    first = check(tmp_path, train=cuts[:3])
    assert read == ["a", "b", "c"] and first["train"] == []
    assert check(tmp_path, train=cuts[:3]) == first and len(read) == 3
    time = os.stat(tmp_path / "b.wav").st_mtime_ns
    recorded(tmp_path / "b.wav", clipped(20))  # as long as before
    os.utime(tmp_path / "b.wav", ns=(time + 1000, time + 1000))
    again = check(tmp_path, train=cuts)
    assert read[3:] == ["b", "d"]
    assert [row[:2] for row in again["train"]] == [("b", "clipped")]
    shortened = part_of(cuts[0], "a", 0.5, 0.5)
    check(tmp_path, train=[shortened, *cuts[1:]])
    assert read[5:] == ["a"]
    check(tmp_path, "--audio-checks=0", train=cuts)
    assert len(read) == 6


@pytest.mark.parametrize("damage", ["half a record", "another version", "empty"])
def test_a_damaged_file_of_measures_costs_only_what_is_damaged(
    tmp_path: Path, read: list[str], damage: str
) -> None:
    cuts = [recorded(tmp_path / f"{name}.wav", voice(seed=i)) for i, name in enumerate("abc")]
    expected = check(tmp_path, train=cuts)
    path = tmp_path / CACHE_FILE
    content = path.read_bytes()
    kept = {"half a record": content[:-10], "another version": b"?" + content[1:], "empty": b""}
    path.write_bytes(kept[damage])
    assert check(tmp_path, train=cuts) == expected
    assert read[3:] == (["c"] if damage == "half a record" else ["a", "b", "c"])
    assert path.read_bytes() == content


def test_an_interrupted_run_keeps_what_it_measured(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = [recorded(tmp_path / f"u{i}.wav", voice(0.05, seed=i)) for i in range(50)]
    monkeypatch.setattr(audio, "_TASKS_PER_WORKER", 1)
    measured = audio._measure_task

    def interrupted(task):
        if task[0][0] >= 32:
            raise KeyboardInterrupt
        return measured(task)

    monkeypatch.setattr(audio, "_measure_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check(tmp_path, train=cuts)
    assert len(Cache(tmp_path / CACHE_FILE).records) == 32
    monkeypatch.setattr(audio, "_measure_task", measured)
    read.clear()
    check(tmp_path, train=cuts)
    assert read == [f"u{i}" for i in range(32, 50)]


def test_a_sample_is_even_the_same_each_time_and_fills_the_hours(tmp_path: Path) -> None:
    u = Utterances(tmp_path, has_tokens=False)
    for split, count in (("train", 5000), ("val", 100), ("test", 2000)):
        u.begin(split)
        for i in range(count):
            u.add(utterance(f"{split}-{i}", "tere", seconds=3.6), None)
    u.close()
    hours = {s: lambda rows, s=s: (rows & u.rows_of([s])).sum() / 1000 for s in u.splits}
    chosen = choose(u, 2.1)  # of 5, 0.1 and 2 hours
    assert hours["val"](chosen) == 0.1
    assert [hours[s](chosen) for s in ("train", "test")] == pytest.approx([1, 1], abs=0.1)
    assert (choose(u, 2.1) == chosen).all()
    assert (choose(u, 4)[chosen]).all()  # more hours: the same and others
    assert choose(u, 7.1).all() and choose(u, -1).all() and choose(u, 100).all()
    assert AudioOptions().audio_checks == 50


def test_statistics_say_how_much_was_read(tmp_path: Path) -> None:
    cuts = [recorded(tmp_path / f"u{i}.wav", voice(0.36, seed=i)) for i in range(30)]
    table = stage_4(tmp_path, "--audio-checks=0.0015", train=cuts, test=[])
    count, none = table["utterances whose audio was read"]
    assert 8 < int(count) < 22 and none == "0"
    assert (tmp_path / "statistics.png").read_bytes().startswith(b"\x89PNG")


def test_copied_files_are_found_and_compared_whatever_the_sample_is(
    tmp_path: Path, read: list[str]
) -> None:
    cuts = [recorded(tmp_path / f"u{i}.wav", voice(seed=i)) for i in range(12)]
    copy = tmp_path / "copy.wav"
    shutil.copy(tmp_path / "u3.wav", copy)
    test = [on_file(utterance("copy", "muu"), copy, 24000, RATE)]
    begins_alike = np.concatenate([voice(seed=5)[:-1], [0.0]])  # the same bytes in the middle
    test.append(recorded(tmp_path / "alike.wav", begins_alike))
    test.append(on_file(utterance("gone", "muu"), tmp_path / "gone.wav", 24000, RATE))
    test.append(part_of(test[0], "part", 0, 1.0))
    found = check(tmp_path, "--audio-checks=1e-9", train=cuts, test=test)
    assert [row for rows in found.values() for row in rows if row[1] != "text-in-train"] == [
        ("copy", "repeated", "", "u3 in train"),
        ("part", "overlap", "1.00", "copy"),
    ]
    assert sorted(read) == ["alike", "copy", "u3", "u5"]


def test_audio_in_tar_files_is_compared_too(tmp_path: Path, read: list[str]) -> None:
    tar, cuts, content = tmp_path / "recording.000000.tar", [], b""
    for i, seed in enumerate((0, 1, 0)):
        cut = recorded(tmp_path / f"u{i}.flac", voice(seed=seed))
        data = (tmp_path / f"u{i}.flac").read_bytes()
        [source] = cut["recording"]["sources"]
        source.update(type="shar", source=f"{tar}:{len(content)}:{len(data)}")
        content += data
        cuts.append(cut)
    tar.write_bytes(content)
    found = check(tmp_path, "--audio-checks=1e-9", train=cuts)["train"]
    assert found == [("u2", "repeated", "", "u0")] and read == ["u0", "u2"]


def test_a_killed_process_is_one_line_and_what_is_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = [recorded(tmp_path / f"u{i}.wav", voice(0.05, seed=i)) for i in range(40)]
    read_native = audio.read_native

    def killed(cut):
        if cut.id == "u16":
            os.kill(os.getpid(), signal.SIGKILL)
        return read_native(cut)

    monkeypatch.setattr(audio, "_TASKS_PER_WORKER", 1)
    monkeypatch.setattr(audio, "read_native", killed)
    with pytest.raises(UserError, match="was killed, with the 16 utterances from u16 on"):
        check(tmp_path, train=cuts)
    assert len(Cache(tmp_path / CACHE_FILE).records) == 16
