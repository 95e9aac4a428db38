"""Lists of several languages: prepare.sh's first stages, and statistics by language."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local import prepare_manifests, prepare_text, validate_manifests
from local.lists import ListFile
from local.manifests import read_jsonl_gz, read_rejected
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.sources import cuts_digest


def write_list(path: Path, *texts: str, seconds: float = 0.5, extra: str = "") -> Path:
    """A list in a folder of its own, with an audio file for each text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, text in enumerate(texts):
        name = f"{path.stem}{i}.wav"
        soundfile.write(path.parent / name, np.zeros(int(8000 * seconds)), 8000)
        lines.append(f"{name}|{text}|{path.parent.name}{i}\n")
    path.write_text("".join(lines) + extra, encoding="utf-8")
    return path


@pytest.fixture
def lists(tmp_path) -> dict[str, Path]:
    """Training, validation and test lists of two languages, of two and one utterances."""
    found = {}
    for language, texts in {"et": ("TERE", "IIL"), "tr": ("IŞIK", "İL")}.items():
        for split in ("train", "val", "test"):
            some = texts if split == "train" else texts[:1]
            found[f"{split}-{language}"] = write_list(tmp_path / language / f"{split}.txt", *some)
    return found


def prepare(lists: dict[str, Path], data: Path, *more: str, names: str = "et tr") -> Path:
    options = [
        f"--{split}-list={language}={lists[f'{split}-{language}']}"
        for split in ("train", "val")
        for language in names.split()
    ]
    prepare_manifests.main([*options, f"--data-dir={data}", *more])
    return data / "manifests"


def supervisions(manifests: Path, split: str, kind: str = "supervisions") -> list[dict]:
    items = read_jsonl_gz(manifests / f"{kind}_{split}.jsonl.gz")
    return [item if kind == "supervisions" else item["supervisions"][0] for item in items]


@pytest.mark.parametrize(
    ("text", "path", "language"),
    [
        ("a.txt", "a.txt", ""),
        ("et=a.txt", "a.txt", "et"),
        ("zh-TW=/x/a=b.txt", "/x/a=b.txt", "zh-TW"),
        ("./et=a.txt", "./et=a.txt", ""),
        ("/x/et=a.txt", "/x/et=a.txt", ""),
    ],
)
def test_a_list_is_given_with_or_without_its_language(text, path, language):
    assert ListFile.parse(text) == ListFile(Path(path), language)


def test_one_manifest_holds_all_languages_each_normalized_by_its_own_rules(lists, tmp_path):
    tests = [f"--test-list={name}={lists[f'test-{name}']}" for name in ("et", "tr")]
    manifests = prepare(lists, tmp_path / "data", *tests)
    splits = json.loads((manifests / "splits.json").read_text())
    assert splits == {"train": ["train"], "val": ["val"], "test": ["test"]}
    found = supervisions(manifests, "train")
    assert [(s["language"], s["custom"]["line"]) for s in found] == [
        ("et", 1), ("et", 2), ("tr", 1), ("tr", 2),
    ]  # fmt: skip
    assert [s["custom"]["list"] for s in found[1:3]] == [
        str(lists["train-et"]), str(lists["train-tr"]),
    ]  # fmt: skip
    prepare_text.main([f"--data-dir={tmp_path / 'data'}"])
    texts = [s["text"] for s in supervisions(manifests, "train", "cuts")]
    assert texts == ["tere", "iil", "ışık", "il"]  # Turkish I is dotless
    assert [s["language"] for s in supervisions(manifests, "test", "cuts")] == ["et", "tr"]
    options = json.loads((manifests / "text_options.json").read_text())
    assert options["languages"] == ["et", "tr"]


def test_lists_without_a_language_have_that_of_lang_and_may_stand_beside_others(lists, tmp_path):
    given = [f"--train-list={lists['train-et']}", f"--train-list=tr={lists['train-tr']}"]
    given += [f"--val-list={lists['val-et']}", "--lang=fi", f"--data-dir={tmp_path / 'data'}"]
    prepare_manifests.main(given)
    manifests = tmp_path / "data" / "manifests"
    languages = [s["language"] for s in supervisions(manifests, "train")]
    assert languages == ["fi", "fi", "tr", "tr"]
    [only] = supervisions(manifests, "val")
    assert only["language"] == "fi" and only["custom"] == {"line": 1}


def test_a_language_may_have_several_lists_but_no_list_is_given_twice(lists, tmp_path):
    more = write_list(tmp_path / "et" / "more.txt", "veel")
    manifests = prepare(lists, tmp_path / "data", f"--train-list=et={more}")
    languages = [s["language"] for s in supervisions(manifests, "train")]
    assert languages == ["et", "et", "tr", "tr", "et"]
    with pytest.raises(UserError, match="train.txt is given twice"):
        prepare(lists, tmp_path / "data", f"--train-list=lv={lists['train-et']}")


def test_rejected_lines_name_their_list_through_both_stages(lists, tmp_path):
    write_list(lists["train-tr"], "IŞIK", "?!", "İL", extra="none.wav|x|s\n../et/train0.wav|x|s\n")
    data = tmp_path / "data"
    manifests = prepare(lists, data, "--max-rejected=50")
    prepare_text.main([f"--data-dir={data}", "--max-rejected=60"])
    rows = list(read_rejected(manifests / "rejected_train.tsv"))
    assert {row.list for row in rows} == {str(lists["train-tr"])}
    assert [(row.line, row.reason) for row in rows] == [
        (2, "empty text after normalization"), (4, rows[1].reason),
        (5, f"duplicate path: first in line 1 of {lists['train-et']}"),
    ]  # fmt: skip
    assert rows[1].reason.startswith("missing file")
    header = (manifests / "rejected_train.tsv").read_text().splitlines()[0]
    assert header.split("\t") == ["line", "reason", "content", "list"]


def test_the_limit_of_rejected_lines_holds_for_each_list(lists, tmp_path):
    many = [f"sõna {i}" for i in range(8)]
    write_list(lists["train-et"], *many)
    write_list(lists["train-tr"], "IŞIK", extra="none.wav|x|s\n")
    name = f"train, {lists['train-tr']} .tr.: 1 of 2 lines"
    with pytest.raises(UserError, match=name):
        prepare(lists, tmp_path / "data", "--max-rejected=20")
    prepare(lists, tmp_path / "data", "--max-rejected=50")


@pytest.mark.parametrize("stage", [1, 2])
def test_a_language_without_a_usable_utterance_is_named(lists, tmp_path, stage):
    text = "none.wav|x|s\n" if stage == 1 else "tr0.wav|!|s\n"
    lists["train-tr"].write_text(text)
    soundfile.write(tmp_path / "tr" / "tr0.wav", np.zeros(4000), 8000)
    with pytest.raises(UserError, match=rf"train, {lists['train-tr']}.*: none of 1 lines can be"):
        prepare(lists, tmp_path / "data", "--max-rejected=100")
        prepare_text.main([f"--data-dir={tmp_path / 'data'}", "--max-rejected=100"])
    assert not (tmp_path / "data/manifests/cuts_train.jsonl.gz").exists()


def test_the_same_audio_in_two_splits_names_both_lists(lists, tmp_path):
    write_list(lists["val-tr"], "IŞIK", extra="train1.wav|x|s\n")
    message = (
        f"in two splits: line 2 of the train list {lists['train-tr']} and line 2 of the val list "
        f"{lists['val-tr']}"
    )
    with pytest.raises(UserError, match=message):
        prepare(lists, tmp_path / "data")


def test_test_lists_of_one_name_form_one_set_only_in_several_languages(lists, tmp_path):
    other = write_list(tmp_path / "other.txt", "muu")
    tests = [f"--test-list={n}={lists[f'test-{n}']}" for n in ("et", "tr")]
    manifests = prepare(lists, tmp_path / "data", *tests, f"--test-list={other}", "--lang=lv")
    assert json.loads((manifests / "splits.json").read_text())["test"] == ["test", "other"]
    assert [s["language"] for s in supervisions(manifests, "test")] == ["et", "tr"]
    assert [s["language"] for s in supervisions(manifests, "other")] == ["lv"]
    again = write_list(tmp_path / "again" / "test.txt", "taas")
    for language in ("", "et="):
        with pytest.raises(UserError, match=r"called 'test'.*rename"):
            prepare(lists, tmp_path / "data", *tests, f"--test-list={language}{again}")


def test_a_list_that_does_not_exist_is_named_with_a_word_on_equals_signs(lists, tmp_path):
    with pytest.raises(UserError, match=r"the list gone.txt does not exist; .* as ./lv=gone.txt"):
        prepare(lists, tmp_path / "data", "--train-list=lv=gone.txt")


def test_a_test_list_in_a_language_that_the_training_text_lacks_is_refused(lists, tmp_path):
    data = tmp_path / "data"
    prepare(lists, data)
    prepare_text.main([f"--data-dir={data}"])
    prepare_manifests.main([f"--test-list=fi={lists['test-et']}", f"--data-dir={data}"])
    with pytest.raises(UserError, match="the training text has no fi"):
        prepare_text.main(["--only-tests", f"--data-dir={data}"])
    prepare_manifests.main([f"--test-list=et={lists['test-et']}", f"--data-dir={data}"])
    prepare_text.main(["--only-tests", f"--data-dir={data}"])
    assert [s["text"] for s in supervisions(data / "manifests", "test", "cuts")] == ["tere"]


def test_statistics_are_of_each_language_where_there_are_several(lists, tmp_path, capsys):
    write_list(lists["train-tr"], "IŞIK var", "İL", "IŞIK", seconds=1.0)
    data = tmp_path / "data"
    prepare(lists, data)
    prepare_text.main([f"--data-dir={data}"])
    validate_manifests.main([f"--data-dir={data}"])
    text = (data / "statistics.txt").read_text()
    assert text in capsys.readouterr().out
    part = text.split("train by language\n")[1].split("\n\n")[0].splitlines()
    rows = {line.split("  ")[0]: line.split()[-2:] for line in part}
    assert part[0].split() == ["et", "tr"]
    assert rows["utterances"] == ["2", "3"] and rows["words"] == ["2", "4"]
    assert rows["seconds, mean"] == ["0.50", "1.00"]
    prepare(lists, data, names="et")
    prepare_text.main([f"--data-dir={data}"])
    validate_manifests.main([f"--data-dir={data}"])
    assert "by language" not in (data / "statistics.txt").read_text()


def test_features_of_a_text_in_another_language_are_not_current(lists, tmp_path):
    digests = []
    for language in ("tr", "az"):
        data = tmp_path / language
        lists[f"train-{language}"], lists[f"val-{language}"] = lists["train-tr"], lists["val-tr"]
        prepare(lists, data, names=f"et {language}")
        prepare_text.main([f"--data-dir={data}"])
        digests.append(cuts_digest(data / "manifests" / "cuts_train.jsonl.gz"))
    assert digests[0] != digests[1]
