"""The demo corpus: its promises to training and to the toy network's pre-training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local.demo.make_corpus import SEEN_VOICES, UNSEEN_VOICES, grammar_words, record
from local.demo.words import WORDS
from xlsr_transducer.core.errors import UserError

pytest.importorskip("espeakng_loader")
SPLITS = ("train", "val", "test_seen", "test_unseen")
SIZES = "--num-train 24 --num-val 3 --num-test-seen 9 --num-test-unseen 4".split()


def make(out_dir: Path) -> Path:
    # A process of its own, as in use: the synthesizer's state runs on within a process.
    command = [sys.executable, "-m", "local.demo.make_corpus", "--out-dir", str(out_dir), *SIZES]
    subprocess.run(
        command, check=True, capture_output=True, cwd=Path(__file__).resolve().parents[2]
    )
    return out_dir


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("corpus"))


def read(corpus: Path, split: str) -> list[list[str]]:
    lines = (corpus / f"{split}.txt").read_text(encoding="utf-8").splitlines()
    return [line.split("|") for line in lines]


def test_sentences_of_val_and_test_do_not_occur_in_training(corpus):
    texts = {split: {text for _, text, _ in read(corpus, split)} for split in SPLITS}
    assert [len(texts[split]) for split in SPLITS] == [24, 3, 9, 4]
    assert not texts["train"] & (texts["val"] | texts["test_seen"] | texts["test_unseen"])


def test_unseen_speakers_occur_in_their_test_only(corpus):
    speakers = {split: {speaker for _, _, speaker in read(corpus, split)} for split in SPLITS}
    assert len(speakers["train"]) == len(SEEN_VOICES)
    assert speakers["test_seen"] == speakers["train"]
    assert len(speakers["test_unseen"]) == len(UNSEEN_VOICES)
    assert not speakers["test_unseen"] & (speakers["train"] | speakers["val"])


def test_audio_is_16_bit_mono_at_22050_hz_and_not_clipped(corpus):
    for split in SPLITS:
        for path, _, _ in read(corpus, split):
            info = soundfile.info(corpus / path)
            assert (info.samplerate, info.channels, info.subtype) == (22050, 1, "PCM_16")
            samples, _ = soundfile.read(corpus / path, dtype="int16")
            assert 0.5 < info.duration < 12
            assert 1000 < np.abs(samples.astype(int)).max() < 32767


def test_same_seed_gives_the_same_bytes(corpus, tmp_path):
    again = make(tmp_path)
    files = sorted(p.name for p in corpus.iterdir())
    assert files == sorted(p.name for p in again.iterdir())
    assert [n for n in files if (corpus / n).read_bytes() != (again / n).read_bytes()] == []


def test_pretraining_words_share_nothing_with_the_grammar():
    assert len(set(WORDS)) == len(WORDS) >= 600
    assert not set(WORDS) & grammar_words()
    assert all(word.isalpha() and word == word.lower() for word in WORDS)


SPEAK_ASA = """
import json
from local.demo.espeak import Synthesizer
speech = Synthesizer().speak("asa", "et")
print(json.dumps([speech.samples.tolist(), speech.phonemes]))
"""


def test_phonemes_are_in_order_and_where_the_sound_is():
    # In a process of its own, as above; after other work in this one it has named other phonemes.
    command = [sys.executable, "-c", SPEAK_ASA]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    samples, phonemes = json.loads(done.stdout)
    starts = [at for at, name in phonemes]
    assert starts == sorted(starts) and starts[-1] <= len(samples)
    assert [name for _, name in phonemes][:2] == ["a", "s"]
    # 's' is the high-pitched part: first differences are large against the samples.
    samples = np.array(samples, dtype=float)
    a, s, after = starts[:3]
    ratio = [np.std(np.diff(samples[i:j])) / np.std(samples[i:j]) for i, j in ((a, s), (s, after))]
    assert ratio[1] > 3 * ratio[0]


def test_the_library_is_started_once_as_a_second_start_frees_what_voices_point_to():
    from local.demo import espeak

    first, second = espeak.Synthesizer(), espeak.Synthesizer()
    assert espeak._library.cache_info().misses == 1
    assert len(first.speak("asa", "et").samples) > 0 and not second._blocks


def test_unknown_voices_are_refused_by_name():
    from local.demo.espeak import Synthesizer

    synthesizer = Synthesizer()
    with pytest.raises(UserError, match="nosuch"):
        synthesizer.speak("asa", "et+nosuch")
    with pytest.raises(UserError, match="xx-nosuch"):
        synthesizer.speak("asa", "xx-nosuch")


def test_record_keeps_the_speech_where_it_says():
    rng = np.random.default_rng(0)
    tone = (8000 * np.sin(np.arange(22050) / 5)).astype(np.int16)
    samples, before = record(tone, 22050, rng)
    assert 0.05 * 22050 <= before <= 0.2 * 22050
    loud = np.abs(samples[before : before + 22050].astype(float)).mean()
    assert loud > 2.5 * np.abs(samples[:before].astype(float)).mean()
