"""Text options of stage 2: what they write, and what later commands make of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import soundfile
from lhotse import CutSet

from local import make_ngram, prepare_lang, prepare_manifests, prepare_text, text_changes
from tests.local.test_prepare_text import make_data, prepare
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.normalizers import Report
from xlsr_transducer.data.text import TextOptions
from xlsr_transducer.data.text_options import read_record, record_path
from xlsr_transducer.data.tokenizer import Tokenizer

TEXTS = ["Tere, Mari!", "Dr. Kask tuli 5 minuti pärast.", "Skoor oli 3:1.", "tere"]
SPELT = ["Tere, Mari!", "Doktor Kask tuli viie minuti pärast.", "Skoor oli kolm üks.", "tere"]
CASED = ("--case=keep", "--punctuation=keep")
OWN = "def normalize(text, report):\n    return text.replace('5', 'viis')\n"


def rows(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE))


def add_test(folder: Path, text: str) -> None:
    """Stage 1 of a test list beside the corpus in ``folder``."""
    soundfile.write(folder / "new.wav", [0.0] * 800, 8000)
    (folder / "new.txt").write_text(f"new.wav|{text}|s\n", encoding="utf-8")
    prepare_manifests.main([f"--test-list={folder}/new.txt", f"--data-dir={folder}/data"])


def text_of_test(data: Path, *options: str) -> str:
    prepare_text.main([f"--data-dir={data}", "--only-tests", *options])
    [cut] = CutSet.from_file(data / "manifests/cuts_test.jsonl.gz")
    return cut.supervisions[0].text


def test_changes_and_undecided_pieces_have_tables(tmp_path: Path) -> None:
    data = make_data(tmp_path, TEXTS)
    assert prepare(data, "--normalizer=auto", *CASED) == SPELT
    changes = rows(data / "manifests/text_changes.tsv")
    assert changes == [
        ["split", "utterance", "kinds", "before", "after"],
        ["train", "1", "number, abbreviation", TEXTS[1], SPELT[1]],
        ["train", "2", "score", TEXTS[2], SPELT[2]],
        ["val", "v", "symbol", "Tere €", "Tere eurot"],
    ]
    undecided = rows(data / "manifests/text_undecided.tsv")
    assert undecided[0] == ["split", "utterance", "kind", "before", "after", "text"]
    assert ["train", "2", "score", "3:1", "kolm üks", TEXTS[2]] in undecided
    prepare(data)
    kinds = {row[1]: row[2] for row in rows(data / "manifests/text_changes.tsv")[1:]}
    assert kinds == {"0": "case, punctuation", "1": "case, punctuation",
                     "2": "case, punctuation", "v": "case, punctuation"}  # fmt: skip


def test_tables_are_bounded_and_count_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(text_changes, "MOST_ROWS", 2)
    with caplog.at_level("INFO"), text_changes.change_tables(tmp_path) as tables:
        for i in range(5):
            report = Report()
            report.undecided("score", "3:1", "kolm üks")
            tables.add("train", str(i), "3:1\t", "kolm üks", report)
        mere = Report()
        mere.of_characters.add("case")
        tables.add("train", "x", "A", "a", mere)
    assert [row[1] for row in rows(tmp_path / "text_changes.tsv")] == ["utterance", "0", "1", "x"]
    assert len(rows(tmp_path / "text_undecided.tsv")) == 3
    assert "train  score   5           5" in caplog.text
    assert "changes (words): 3 more" in caplog.text


def test_case_and_the_older_option_mean_the_same_and_may_not_contradict(tmp_path: Path) -> None:
    data = make_data(tmp_path, TEXTS)
    kept = ["Tere Mari", "Dr Kask tuli 5 minuti pärast", "Skoor oli 3 1", "tere"]
    for options in (["--case", "keep"], ["--lower-case", "0"],
                    ["--lower-case", "0", "--case", "keep"]):  # fmt: skip
        assert prepare(data, *options) == kept
        assert read_record(data).options == TextOptions(case="keep")
    with pytest.raises(UserError, match="--lower-case 1 contradicts --case keep"):
        prepare(data, "--lower-case", "1", "--case", "keep")


def test_test_sets_take_the_options_of_the_training_text(tmp_path: Path) -> None:
    data = make_data(tmp_path, TEXTS)
    prepare(data, "--normalizer=et", *CASED)
    add_test(tmp_path, "Jah, 5 km!")
    assert text_of_test(data) == "Jah, viis kilomeetrit!"
    assert text_of_test(data, *CASED) == "Jah, viis kilomeetrit!"
    assert len(rows(data / "manifests/text_changes_tests.tsv")) == 2
    for options, message in (
        (["--case=lower"], "--case lower: the training text was made with keep"),
        (["--normalizer=none"], "--normalizer none: the training text was made with et"),
        (["--unicode=nfkc"], "--unicode nfkc: the training text was made with nfc"),
    ):
        with pytest.raises(UserError, match=message):
            text_of_test(data, *options)


def test_a_normaliser_of_ones_own_may_not_change_between_training_and_test(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    data = make_data(tmp_path, TEXTS)
    assert "tuli viis minuti" in prepare(data, f"--normalizer={own}")[1]
    add_test(tmp_path, "5")
    assert text_of_test(data) == text_of_test(data, f"--normalizer={own}") == "viis"
    own.write_text(OWN + "# more\n")
    with pytest.raises(UserError, match="own.py has changed since it made the training text"):
        text_of_test(data)
    own.unlink()
    with pytest.raises(UserError, match="own.py: no such file"):
        text_of_test(data)


def test_the_record_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = record_path(tmp_path)
    path.parent.mkdir()
    path.write_text('{"lower_case": false, "punctuation": "drop", "lang": "et"}')
    record = read_record(tmp_path)
    assert record.options == TextOptions(case="keep", punctuation="drop")
    assert record.languages == ["et"]
    for content, message in (("{", "damaged"), ("[]", "damaged"), ('{"unit": "label"}', "labels")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_record(tmp_path)


def test_the_text_of_language_models_is_normalised_like_the_training_text(tmp_path: Path) -> None:
    data = make_data(tmp_path, TEXTS)
    prepare(data, "--normalizer=et", *CASED)
    prepare_lang.main([f"--data-dir={data}", "--unit=char"])
    more = tmp_path / "more.txt"
    more.write_text("Mari, 5!\n", encoding="utf-8")
    lang = data / "lang_char"
    run = [f"--data-dir={data}", f"--lang-dir={lang}", f"--lm-text={more}", "--unit=word"]
    make_ngram.main(run)
    words = (lang / "word_ngram_3.arpa").read_text(encoding="utf-8")
    assert "\tviis!\t" in words and "\tMari,\t" in words
    make_ngram.main([*run, "--case=lower", "--punctuation=drop"])
    words = (lang / "word_ngram_3.arpa").read_text(encoding="utf-8")
    assert "\tviis\t" in words and "\tmari\t" in words


@pytest.mark.parametrize("unit", [["--unit=char"], ["--vocab-size=60"]])
def test_tokens_hold_case_and_punctuation_there_and_back(tmp_path: Path, unit: list[str]) -> None:
    texts = [*SPELT, "„Jah,“ ütles ta – ei!", "AINULT (SUURED) tähed...", "e-post, kes's?"]
    data = make_data(tmp_path, texts)
    kept = prepare(data, *CASED)
    assert kept[4] == '"Jah," ütles ta - ei!'
    prepare_lang.main([f"--data-dir={data}", *unit])
    [lang] = data.glob("lang_*")
    tokenizer = Tokenizer.load(lang)
    for text, ids in zip(kept, tokenizer.encode(kept)):
        assert tokenizer.decode(ids) == text and tokenizer.unk_id not in ids


def test_the_mark_of_word_beginnings_is_no_character_of_texts(tmp_path: Path) -> None:
    data = make_data(tmp_path, ["a\u2581b, c", *TEXTS])
    assert prepare(data, *CASED)[0] == "a b, c"


def test_the_record_names_all_options(tmp_path: Path) -> None:
    data = make_data(tmp_path, TEXTS)
    prepare(data)
    assert json.loads(record_path(data).read_text()) == {
        "case": "lower", "punctuation": "in-word", "unicode": "nfc", "normalizer": "none",
        "normalizer_digest": "none", "languages": ["et"],
    }  # fmt: skip
