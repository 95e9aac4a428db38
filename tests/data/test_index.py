"""The index of a manifest beside lhotse's reading of it: made once, when it has to be."""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

from tests.support.silent_corpus import Letters, cut_of, some_cuts, write_manifest
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import encoder_frames
from xlsr_transducer.data import index as indexes
from xlsr_transducer.data.datamodule import DataModule, DataOptions, Part
from xlsr_transducer.data.index import Corpus, open_index


def arrays_of(index: indexes.Index) -> dict[str, list]:
    return {name: values.tolist() for name, values in index.arrays.items()}


@pytest.mark.parametrize("is_gzip", [False, True])
def test_an_index_tells_of_each_line_what_lhotse_reads_there(
    tmp_path: Path, is_gzip: bool
) -> None:
    cuts = some_cuts(30)
    cuts[3]["supervisions"] = []
    cuts[4] = cut_of("named", 2.0, "aab", "et", custom={"group": "radio"})
    path = write_manifest(tmp_path, "train", cuts, is_gzip)
    index = open_index(path, Letters())
    assert len(index) == 30
    for row, cut in enumerate(CutSet.from_file(path)):
        assert index.id(row) == cut.id and index[row].to_dict() == cut.to_dict()
        reason = index.texts["reasons"][index.arrays["reasons"][row]]
        assert reason == ("there is no text" if row == 3 else "")
        if row == 3:
            assert index.arrays["seconds"][row] == 0 and not index.tokens[:, row].any()
            continue
        [supervision] = cut.supervisions
        assert index.arrays["seconds"][row] == cut.duration
        assert index.arrays["frames"][row] == encoder_frames(cut.duration)
        group = index.texts["groups"][index.arrays["groups"][row]]
        assert group == ("radio" if row == 4 else supervision.language)
        text = supervision.text
        repeats = sum(a == b for a, b in zip(text, text[1:]))
        assert index.tokens[:, row].tolist() == [len(text), len(text) + repeats]
    again = pickle.loads(pickle.dumps(index))
    assert again[7].to_dict() == index[7].to_dict()
    assert (path.parent / "cuts_train.index" / "cuts.jsonl").is_file() == is_gzip
    other = open_index(write_manifest(tmp_path / "other", "train", cuts, not is_gzip), Letters())
    assert other.digest == index.digest and arrays_of(other) == arrays_of(index)


def test_an_index_is_made_again_when_the_manifest_changes_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_manifest(tmp_path, "train", some_cuts(5))
    tokenizer = Letters()
    first = open_index(path, tokenizer)
    assert tokenizer.encoded == 5
    assert open_index(path, tokenizer).digest == first.digest and tokenizer.encoded == 5
    os.utime(path, (1, 1))  # as a copy has it
    assert open_index(path, tokenizer).digest == first.digest and tokenizer.encoded == 5
    monkeypatch.setattr(indexes, "_sha256", None)  # not needed: the time was noted
    open_index(path, tokenizer)
    monkeypatch.undo()
    cuts = some_cuts(5)
    cuts[2]["supervisions"][0]["text"] = "b" * len(cuts[2]["supervisions"][0]["text"])
    write_manifest(tmp_path, "train", cuts)
    assert open_index(path, tokenizer).digest != first.digest and tokenizer.encoded == 10
    assert first[2].supervisions[0].text == "aa"  # an open index keeps what it was made from
    assert first.digest == open_index(
        write_manifest(tmp_path / "moved", "train", some_cuts(5)), tokenizer
    ).digest  # fmt: skip


def test_another_tokenizer_costs_its_numbers_of_tokens_alone(tmp_path: Path) -> None:
    cuts = some_cuts(9)
    cuts[0]["duration"] = -1.0
    path = write_manifest(tmp_path, "train", cuts)
    one = open_index(path, Letters())
    offsets = (path.parent / "cuts_train.index" / "offsets.npy").stat().st_ino
    two = open_index(path, Letters("doubled", repeats=2))
    assert two.tokens[0].tolist() == (2 * one.tokens[0]).tolist() and two.tokens[0].any()
    assert (path.parent / "cuts_train.index" / "offsets.npy").stat().st_ino == offsets
    assert open_index(path, Letters()).tokens.tolist() == one.tokens.tolist()


def test_one_makes_an_index_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_manifest(tmp_path, "train", some_cuts(20))
    made, found, make = [], [], indexes._make

    def slowly(*args) -> None:
        made.append(args)
        time.sleep(0.2)
        make(*args)

    monkeypatch.setattr(indexes, "_make", slowly)
    threads = [
        threading.Thread(target=lambda: found.append(len(open_index(path, Letters()))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [20] * 4 and len(made) == 1


def test_the_index_of_a_folder_that_cannot_be_written_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_manifest(tmp_path, "train", some_cuts(5))
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != path.parent)
    spare = tmp_path / "exp" / "plan"
    index = open_index(path, Letters(), spare=spare)
    assert len(index) == 5 and index[4].id == "u4"
    assert (spare / "cuts_train.index" / "about.json").is_file()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    # One that was made beside the manifest before is used.
    monkeypatch.undo()
    open_index(path, Letters())
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert len(open_index(path, Letters(), spare=tmp_path / "other")) == 5
    assert not (tmp_path / "other").exists()


def test_manifests_are_joined_with_groups_and_shards_of_their_own(tmp_path: Path) -> None:
    one, two = some_cuts(6, "a"), some_cuts(4, "b")
    one[1]["supervisions"] = []
    two[3]["duration"] = -1.0
    two[0]["supervisions"][0]["language"] = "sv"
    paths = [write_manifest(tmp_path, *item) for item in (("one", one), ("two", two))]
    corpus = Corpus([open_index(path, Letters()) for path in paths])
    assert [corpus.id(row) for row in range(10)] == [cut["id"] for cut in one + two]
    assert [corpus[row].id for row in (5, 6, 9)] == ["a5", "b0", "b3"]
    assert [cut.id for cut in corpus] == [cut["id"] for cut in one + two]
    u = corpus.utterances(has_ctc=True)
    assert u.usable.tolist() == [i not in (1, 9) for i in range(10)]
    numbers, groups = corpus.numbered("groups")
    assert [groups[n] for n in numbers] == [
        "et",
        "",
        "et",
        "fi",
        "et",
        "fi",
        "sv",
        "fi",
        "et",
        "fi",
    ]
    numbers, reasons = corpus.numbered("reasons")
    assert reasons[numbers[1]] == "there is no text" and reasons[0] == ""
    assert reasons[numbers[9]] == "the duration is -1.0"
    assert u.needed.tolist() == [max(2 * n - 1, 0) for n in u.tokens.tolist()]
    assert set(u.shards[:6]) == {0} and set(u.shards[6:]) == {1}


def test_groups_go_by_language_or_by_any_field_of_the_manifest(tmp_path: Path) -> None:
    one = [
        cut_of(f"a{i}", 2.0, "ab", "et", custom={"group": "radio", "dialect": "võro", "year": i})
        for i in range(3)
    ]
    one[1]["duration"] = -1.0
    one[2]["supervisions"][0]["custom"] = None
    two = [cut_of("b0", 2.0, "ab", "lv", custom={"dialect": "võro"})]
    for is_gzip in (False, True):
        data = tmp_path / str(is_gzip)
        paths = [write_manifest(data, *x, is_gzip) for x in (("one", one), ("two", two))]
        open_index(paths[0], Letters())
        for field, expected in (
            ("", ["radio", "radio", "et", "lv"]),
            ("language", ["et", "et", "et", "lv"]),
            ("dialect", ["võro", "võro", "", "võro"]),
            ("year", ["0", "1", "", ""]),
        ):
            opened = [open_index(path, Letters(), group_by=field) for path in paths]
            for index in (*opened, *pickle.loads(pickle.dumps(opened))):
                assert index.digest == open_index(index.manifest, Letters()).digest
            numbers, groups = Corpus(opened).numbered("groups")
            assert [groups[n] for n in numbers] == expected
    digest = opened[1].digest
    two[0]["supervisions"][0]["custom"]["dialect"] = "mulgi"
    changed = open_index(write_manifest(data, "two", two), Letters(), group_by="dialect")
    assert changed.digest != digest and changed.texts["groups"][-1] == "mulgi"


def test_a_training_by_groups_names_those_it_cannot_use(tmp_path: Path) -> None:
    cuts = some_cuts(20)
    cuts[0] = cut_of("lost", 2.0, "ab", "lv")
    cuts[2] = cut_of("long", 50.0, "ab", "lv")
    cuts[0]["duration"] = -1.0
    write_manifest(tmp_path, "train", cuts)
    data = module(tmp_path, group_batches=True, group_by="language")
    with pytest.raises(UserError) as caught:
        data.train_groups(["train"])
    assert str(caught.value) == (
        "train: none of the 2 utterances of the group 'lv' can be used (the duration is -1.0; not "
        "within 0.1 and 30 seconds): mend its list, or leave it out"
    )
    write_manifest(tmp_path, "train", cuts[3:])
    assert module(tmp_path, group_batches=True).train_groups(["train"]) == ["et", "fi"]
    cuts[4]["supervisions"][0]["language"] = None
    write_manifest(tmp_path, "train", cuts[3:])
    with pytest.raises(UserError, match="1 utterances have no language.*: u4; "):
        module(tmp_path, group_batches=True).train_groups(["train"])
    with pytest.raises(UserError, match="17 utterances have no dialect.*: u3, .*, u7; "):
        module(tmp_path, group_batches=True, group_by="dialect").train_groups(["train"])
    with pytest.raises(UserError, match="--group-by dialect: nothing goes by groups"):
        module(tmp_path, group_by="dialect")


def test_a_manifest_that_changed_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, "train", some_cuts(9), is_gzip=False)
    index = open_index(path, Letters())
    with open(path, "r+b") as f:
        f.truncate(900)
    with pytest.raises(UserError, match=r"cuts_train\.jsonl: damaged"):
        index[8]


def module(data: Path, **options) -> DataModule:
    values = {"max_duration": 12.0, "num_buckets": 4, "num_workers": 0, **options}
    return DataModule(DataOptions(data, **values), None, Letters(), work_dir=data / "plan")


def ids_of(loader) -> list[list[str]]:
    """The ids of each batch; nothing can be read, as there is no audio."""
    return [sorted(unread.id for unread in batch.skipped) for batch in loader]


def test_a_training_reads_the_lines_of_its_own_batches_alone(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", some_cuts(200))
    data = module(tmp_path)
    everything = ids_of(data.train_loader(["train"], 1, 1))
    read: list[int] = []
    index = data.corpus(["train"]).indexes[0]
    item = index._item
    index._item = lambda row: read.append(row) or item(row)
    assert ids_of(data.train_loader(["train"], 1, 1, skip=7, rank=1, world_size=2)) == (
        everything[8::2] + [[]] * (len(everything) % 2 == 0)
    )
    assert sorted(f"u{row}" for row in read) == sorted(sum(everything[8::2], []))


def test_an_epoch_resumes_at_every_batch_also_with_other_options(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", some_cuts(60))
    data, other = module(tmp_path), module(tmp_path, max_duration=7.0, num_buckets=2)
    everything = ids_of(data.train_loader(["train"], 1, 1))
    options = data.batch_options(["train"], 1)
    assert json.loads(json.dumps(options)) == options
    for k in range(len(everything) + 1):
        assert ids_of(data.train_loader(["train"], 1, 1, skip=k)) == everything[k:]
        parts = [Part(options, k)] if k else []
        rest = ids_of(other.train_loader(["train"], 1, 1, skip=k, earlier=parts))
        assert sorted(sum(everything[:k] + rest, [])) == sorted(f"u{i}" for i in range(60))


def test_processes_share_a_plan_that_one_of_them_made(tmp_path: Path) -> None:
    write_manifest(tmp_path, "train", some_cuts(80))
    alone = ids_of(module(tmp_path).train_loader(["train"], 1, 1))
    shares = [
        ids_of(module(tmp_path).train_loader(["train"], 1, 1, rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    mixed = [ids for pair in zip(*shares) for ids in pair if ids]
    assert mixed == alone
    data = module(tmp_path)
    plan = data._train_plan(["train"], 1, 1, is_shared=True)
    assert isinstance(plan.rows, np.memmap)
    [folder] = (tmp_path / "plan").glob("plan-*")
    data._train_plan(["train"], 2, 1, is_shared=True)
    [later] = (tmp_path / "plan").glob("plan-*")
    assert later != folder
