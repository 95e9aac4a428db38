"""The level of recordings: scaled before decoding, and what changes under other conditions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local import conditions
from tests.support.decodes import tokens
from xlsr_transducer import decode
from xlsr_transducer.recognition.level import USUAL_LEVEL, at_level


@pytest.fixture
def exp(streaming_exp: Path, tmp_path: Path) -> Path:
    """The trained model, without results."""
    folder = tmp_path / "exp"
    folder.mkdir()
    for name in ("best-valid-wer.pt", "xlsr_below_cut.pt", "settings.json"):
        shutil.copy(streaming_exp / name, folder)
    return folder


@pytest.mark.parametrize("factor, offset", [(1.0, 0.0), (0.001, 0.0), (3.0, 0.4)])
def test_any_level_becomes_the_usual_one_without_an_offset(factor: float, offset: float) -> None:
    wave = np.sin(np.arange(5000) / 7).astype(np.float32)
    found = at_level(wave * factor + offset)
    assert found.dtype == np.float32
    assert found.std() == pytest.approx(USUAL_LEVEL, rel=1e-4) and abs(found.mean()) < 1e-6
    np.testing.assert_allclose(found, at_level(wave), atol=1e-5)


def test_silence_and_nothing_stay_so() -> None:
    assert not at_level(np.full(9, 0.25, np.float32)).any()
    assert len(at_level(np.zeros(0, np.float32))) == 0


def test_decoding_at_one_level_gives_quiet_copies_the_same_text(
    corpus: Path, exp: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = sorted((corpus / "demo").glob("test_seen_*.wav"))[0]
    samples, rate = soundfile.read(source)
    quiet = tmp_path / "quiet.wav"
    soundfile.write(quiet, samples * 0.01, rate, subtype="FLOAT")
    texts = {}
    for flag in ("0", "1"):
        decode.main([f"--exp-dir={exp}", "--num-workers=0", f"--normalize-level={flag}",
                     str(source), str(quiet)])  # fmt: skip
        lines = capsys.readouterr().out.splitlines()
        texts[flag] = [line.split("\t")[1] for line in lines]
    assert texts["1"][0] == texts["1"][1]
    assert texts["0"][0] != texts["0"][1]


def test_results_at_one_level_have_names_of_their_own(corpus: Path, exp: Path) -> None:
    decode.main([f"--exp-dir={exp}", f"--data-dir={corpus}", "--num-workers=0",
                 "--split=test_unseen", "--normalize-level=1"])  # fmt: skip
    [summary] = (exp / "greedy_search").glob("wer-summary-*")
    assert summary.stem.endswith("-normalize-level")


CHANGES = {
    "level -20 dB": lambda wave: wave * 0.1,
    "offset of 0.1": lambda wave: wave + 0.1,
    "1 s of silence before": lambda wave: np.concatenate([np.zeros(16000), wave]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_condition_changes_what_it_says(name: str) -> None:
    wave = 0.5 * np.sin(np.arange(16000) / 7)
    np.testing.assert_allclose(conditions.CONDITIONS[name](wave), CHANGES[name](wave))


def test_the_telephone_takes_low_and_high_tones_away() -> None:
    def passed(frequency: float) -> float:
        wave = np.sin(2 * np.pi * frequency * np.arange(16000) / 16000).astype(np.float32)
        return float(np.std(conditions.by_telephone(wave)[4000:-4000]) / np.std(wave))

    assert passed(1000) == pytest.approx(1, abs=0.02)
    assert max(passed(f) for f in (50, 5000, 7000)) < 0.01


def test_conditions_are_decoded_as_the_decoder_does(
    corpus: Path, exp: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [conditions.RECORDED, "every utterance at -26 dBFS", "level -40 dB"]
    monkeypatch.setattr(conditions, "CONDITIONS", {n: conditions.CONDITIONS[n] for n in chosen})
    given = [f"--exp-dir={exp}", f"--data-dir={corpus}", "--split=test_seen"]
    assert conditions.main(given) == 0
    text = (exp / "conditions.txt").read_text()
    assert text == capsys.readouterr().out
    rows = {name: row for row in text.splitlines() for name in chosen if row.startswith(name)}
    for flag, name, end in (("0", chosen[0], "frame-1"), ("1", chosen[1], "normalize-level")):
        decode.main([*given, "--num-workers=0", f"--normalize-level={flag}"])
        [summary] = (exp / "greedy_search").glob(f"wer-summary-*-{end}.txt")
        rate = summary.read_text().splitlines()[1].split("\t")[1]
        assert f" {rate} " in rows[name]
    assert "0 of 5" in rows[chosen[0]] and "0 of 5" not in rows[chosen[2]]
    assert tokens(exp / "greedy_search", "test_seen")
