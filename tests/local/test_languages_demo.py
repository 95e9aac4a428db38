"""The corpus of synthetic languages: its promises to the experiments on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local.demo.group_weights import mean_and_spread, rates_of
from local.demo.languages import once
from local.demo.make_languages import LANGUAGES, SPEAKERS, make_sentence
from local.demo.speech import VOICES
from xlsr_transducer.core.errors import UserError

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


def test_the_experiments_table_has_the_error_rate_of_each_language(tmp_path):
    lines = [
        json.dumps({"id": f"test_{code}_0000", "ref": "abcd efg", "hyp": hyp}) + "\n"
        for code, hyp in zip(CODES, ("abcd efg", "abcd ef", "xx cd efg", ""))
    ]
    (tmp_path / "utterances-test_a-best.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "utterances-test_b-best.jsonl").write_text("".join(lines[2:3]))
    with pytest.raises(UserError, match="results of et, lv, de, not of"):
        rates_of(tmp_path, "test")
    (tmp_path / "utterances-val-best.jsonl").write_text(lines[0])
    (tmp_path / "utterances-test_c-best.jsonl").write_text(lines[3])
    # Of 8 characters: none; one deleted; two replaced and one inserted; all deleted.
    assert rates_of(tmp_path, "test") == dict(zip(CODES, (0.0, 12.5, 37.5, 100.0)))
    assert (mean_and_spread([2.0]), mean_and_spread([1.0, 3.0])) == ("2.0", "2.0 ± 1.4")


def test_a_step_of_an_experiment_is_taken_once_and_one_that_fails_is_named(tmp_path):
    count = f"open({str(tmp_path / 'count')!r}, 'a').write('x'); print('done so far')"
    for _ in range(2):
        assert once(tmp_path / "step", (sys.executable, "-c", count)) == "done so far\n"
    assert (tmp_path / "count").read_text() == "x"
    with pytest.raises(UserError, match=r"exit status 3; see .*failing/commands.log"):
        once(tmp_path / "failing", (sys.executable, "-c", "raise SystemExit(3)"))
    assert once(tmp_path / "failing", (sys.executable, "-c", "print(1)")) == "1\n"
