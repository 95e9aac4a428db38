"""The corpus of synthetic languages: its promises to the experiments on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local.demo.make_languages import LANGUAGES, SPEAKERS, make_sentence
from local.demo.speech import VOICES

pytest.importorskip("espeakng_loader")
CODES = [language.code for language in LANGUAGES]
MINUTES = {"train": 0.5, "val": 0.05, "test": 0.05}


def make(out_dir: Path, seed: int = 1) -> Path:
    # A process of its own, as in use: the synthesizer's state runs on within a process.
    sizes = [text for split, m in MINUTES.items() for text in (f"--{split}-minutes", str(m))]
    command = [sys.executable, "-m", "local.demo.make_languages", "--out-dir", str(out_dir)]
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [*command, *sizes, "--seed", str(seed)], check=True, capture_output=True, cwd=root
    )
    return out_dir


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("languages"))


def read(corpus: Path, name: str) -> list[list[str]]:
    lines = (corpus / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.split("|") for line in lines]


def test_training_has_unequally_much_of_the_languages_and_the_tests_equally_much(corpus):
    for split in SPEAKERS:
        for language in LANGUAGES:
            paths = [path for path, _, _ in read(corpus, f"{split}_{language.code}")]
            seconds = [soundfile.info(corpus / path).duration for path in paths]
            wanted = 60 * MINUTES[split] * (language.share if split == "train" else 1)
            # One utterance fewer would have been too few.
            assert sum(seconds[:-1]) < wanted <= sum(seconds)


def test_each_split_has_speakers_and_sentences_of_its_own(corpus):
    for code in CODES:
        rows = {split: read(corpus, f"{split}_{code}") for split in SPEAKERS}
        for column in (1, 2):
            kept = [{row[column] for row in rows[split]} for split in SPEAKERS]
            assert sum(map(len, kept)) == len(set.union(*kept))
        assert all(row[2].startswith(f"{code}_") for split in SPEAKERS for row in rows[split])


def test_the_toy_network_was_not_pre_trained_on_the_test_voices():
    assert not {f"et+{variant}" for variant in SPEAKERS["test"]} & set(VOICES)


def test_the_lists_to_identify_languages_hold_the_same_files(corpus):
    for split in SPEAKERS:
        wanted = [[p, code, s] for code in CODES for p, _, s in read(corpus, f"{split}_{code}")]
        assert read(corpus, f"{split}_labels") == wanted


def test_same_seed_gives_the_same_bytes_and_another_seed_other_sentences(corpus, tmp_path):
    again = make(tmp_path / "again")
    files = sorted(path.name for path in corpus.iterdir())
    assert files == sorted(path.name for path in again.iterdir())
    assert [n for n in files if (corpus / n).read_bytes() != (again / n).read_bytes()] == []
    other = make(tmp_path / "other", seed=2)
    assert not {text for _, text, _ in read(corpus, "train_et")} & {
        text for _, text, _ in read(other, "train_et")
    }


def test_every_language_has_words_enough_and_each_once():
    for language in LANGUAGES:
        assert len(set(language.words)) == len(language.words) >= 150
        assert all(w.isalpha() and w == w.lower() for w in language.words)
        sentence = make_sentence(language.words, np.random.default_rng(0)).split()
        assert 3 <= len(sentence) <= 6 and set(sentence) <= set(language.words)
