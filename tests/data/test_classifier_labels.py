"""Labels in the place of a BPE model, and the stage that makes them from lists."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from local import prepare_labels, prepare_manifests, prepare_text, validate_manifests
from local.manifests import read_jsonl_gz
from tests.support.label_corpus import LABELS, make, prepare, write_list
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.labels import Labels, units_for, units_from_bytes, words_of
from xlsr_transducer.data.sources import require_current
from xlsr_transducer.data.tokenizer import read_tokens

SHOUTED = ["Turn ON", "turn on", "õ\u0301|x"]  # kept as they are, with any letters and bars


def test_labels_have_the_calls_of_a_tokenizer(tmp_path: Path) -> None:
    labels = Labels(SHOUTED)
    assert labels.encode(["turn on", "Turn ON", "off", ""]) == [[1], [0], [], []]
    assert [labels.decode([i]) for i in range(3)] == SHOUTED and labels.vocab_size == 3
    assert units_from_bytes(labels.to_bytes()).tokens == SHOUTED
    labels.write(tmp_path / "labels.txt")
    assert Labels.load(tmp_path).tokens == SHOUTED
    labels.write_tokens(tmp_path / "tokens.txt")
    assert read_tokens(tmp_path / "tokens.txt") == SHOUTED
    assert words_of(labels, "turn on") == ["turn on"]
    with pytest.raises(TypeError):
        labels.encode("turn on")


@pytest.mark.parametrize(
    "labels, message",
    [
        ([], "two labels or more: there is none"),
        (["et"], "there is one alone, 'et'"),
        (["et", "lv", "et"], "the label 'et' occurs twice"),
        (["et", " "], "a label is empty"),
    ],
)
def test_labels_that_make_no_classifier_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Labels(labels)
    with pytest.raises(UserError, match="these are no labels"):
        units_from_bytes(json.dumps(labels).encode())


def test_the_texts_of_lists_become_labels_as_they_are(tmp_path: Path) -> None:
    lists = {
        split: write_list(tmp_path, split, [SHOUTED[i % 3] for i in range(6)], 0.1)
        for split in ("train", "val")
    }
    data = tmp_path / "data"
    prepare(data, lists)
    assert Labels.load(data / "lang_label").tokens == sorted(SHOUTED)
    cuts = list(read_jsonl_gz(data / "manifests" / "cuts_train.jsonl.gz"))
    assert [cut["supervisions"][0]["text"] for cut in cuts] == SHOUTED * 2
    rows = (data / "lang_label" / "counts.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["label", "train utterances", "train minutes",
                                   "val utterances", "val minutes"]  # fmt: skip
    assert [row.split("\t")[1] for row in rows[1:]] == ["2"] * 3
    validate_manifests.main([f"--data-dir={data}", f"--lang-dir={data / 'lang_label'}"])
    assert "train" in (data / "statistics.txt").read_text()
    # Tests beside them are labels too, by the labels of training.
    more = write_list(tmp_path, "more", ["turn on", "off", "off"], 0.1)
    prepare_manifests.main([f"--test-list={more}", f"--data-dir={data}"])
    with pytest.raises(UserError, match="the training texts are labels"):
        prepare_text.main([f"--data-dir={data}", "--only-tests"])
    prepare_labels.main([f"--data-dir={data}", "--only-tests"])
    assert Labels.load(data / "lang_label").tokens == sorted(SHOUTED)


def test_labels_that_training_lacks_are_named_with_their_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    names = {"train": ["et", "lv"], "val": ["et"], "test": ["et", "fi", "fi"], "bad": ["fi"]}
    lists = {split: write_list(tmp_path, split, labels, 0.1) for split, labels in names.items()}
    bad, data = {"train": lists["train"], "val": lists["bad"]}, tmp_path / "data"
    with pytest.raises(UserError, match="val: the label 'fi' is not in the training list"):
        prepare(data, bad)
    assert not list(data.glob("manifests/cuts_*")) and not (data / "lang_label").exists()
    prepare(data, {k: lists[k] for k in ("train", "val", "test")})
    assert "test: the label 'fi' is not in the training list: its 2 utterances" in caplog.text
    alone = {"train": write_list(tmp_path, "alone", ["et", "et"], 0.1), "val": lists["val"]}
    with pytest.raises(UserError, match="train: a classifier needs two labels or more"):
        prepare(tmp_path / "alone", alone)


def test_the_heads_decide_which_units_a_data_folder_must_have(tmp_path: Path) -> None:
    data = make(tmp_path)
    folder, labels = units_for(("classifier",), data, None)
    assert folder == data / "lang_label" and labels.tokens == sorted(LABELS)
    with pytest.raises(UserError, match="lang_label holds labels, and --heads ctc needs texts"):
        units_for(("ctc",), data, None)
    with pytest.raises(UserError, match="labels.txt is missing: stage 2 of ./prepare.sh --unit"):
        units_for(("classifier",), tmp_path, None)
    require_current(data, None, folder)
    (data / "lang_label" / "sources.json").write_text('{"labels.txt": "another"}')
    with pytest.raises(UserError, match="labels.txt was not made from .*--unit label"):
        require_current(data, None, folder)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--unit", "label", "--stage", "5"], "--unit label: labels have no language model"),
        (["--unit", "word"], "--unit word: must be bpe"),
    ],
)
def test_prepare_sh_refuses_other_units_and_stages(options: list[str], message: str) -> None:
    script = Path(__file__).resolve().parents[2] / "prepare.sh"
    done = subprocess.run(["bash", script, *options], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
