"""Data that go bad: a named skip or a clear error, and the training continues."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from local import extract_features, make_ngram, prepare_lang, validate_manifests
from tests.support.noise_corpus import write_split
from tests.support.old_features import store_one_file_each
from tests.support.tiny_recipe import run_train
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.datamodule import DataModule, DataOptions, SplitSummary
from xlsr_transducer.data.features import find_features
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir

LENGTHS = [16000, 17000, 18000, 19000, 20000, 30000]


class ThreeTokens:
    """A tokenizer for which every text is the same."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        assert all(isinstance(text, str) for text in texts)
        return [[1, 2, 3] for _ in texts]

    def to_bytes(self) -> bytes:
        return b"three tokens"


def noise(data: Path, **options) -> DataModule:
    values = {"num_workers": 0, "num_buckets": 2, "max_duration": 3.0, **options}
    return DataModule(DataOptions(data_dir=data, **values), None, ThreeTokens())


def manifest(data: Path) -> Path:
    return data / "manifests" / "cuts_train.jsonl.gz"


def change_line(data: Path, number: int, **values) -> None:
    lines = gzip.decompress(manifest(data).read_bytes()).decode().splitlines()
    line = json.loads(lines[number])
    changed = {**line, **values}
    if values.get("supervisions") == "twice":
        changed["supervisions"] = 2 * line["supervisions"]
    if values.get("type") == "MixedCut":
        tracks = [{"type": "MonoCut", "offset": 0.0, "cut": line}]
        changed = {"id": line["id"], "type": "MixedCut", "tracks": tracks}
    lines[number] = json.dumps({k: v for k, v in changed.items() if v != "absent"})
    manifest(data).write_bytes(gzip.compress("\n".join(lines).encode()))


def left_out(summary: SplitSummary) -> dict[str, list[str]]:
    return {reason: list(ids) for reason, ids in summary.left_out.items()}


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"duration": float("nan")}, "the duration is nan"),
        ({"duration": float("inf")}, "the duration is inf"),
        ({"duration": -1.0}, "the duration is -1.0"),
        ({"duration": None}, "the duration is None"),
        ({"start": float("nan")}, "the start is nan"),
        ({"supervisions": []}, "there is no text"),
        ({"recording": "absent"}, "there is no recording"),
        ({"supervisions": "twice"}, "there are 2 supervisions in place of one"),
        ({"type": "MixedCut"}, "it is a MixedCut, not a part of one recording"),
        ({"type": "MultiCut", "channel": [0, 1]}, ""),
        ({"type": "MultiCut", "channel": [1]}, "there is no text"),
    ],
)
def test_a_flawed_line_of_a_manifest_is_a_named_and_counted_skip(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: dict, reason: str
) -> None:
    write_split(tmp_path, "train", LENGTHS)
    change_line(tmp_path, 2, **values)
    data = noise(tmp_path)
    for for_training in (True, False):
        caplog.clear()
        summary = data.summary(["train"], for_training)
        assert summary.utterances == 5 + (not reason)
        assert left_out(summary) == ({reason: ["train-2"]} if reason else {})
        assert (f"1 utterances left out, {reason}: train-2" in caplog.text) == bool(reason)
    for loader in (data.train_loader(["train"], 1, 1), data.valid_loader(["train"])):
        ids = sorted(i for batch in loader for i in batch.ids)
        assert ids == [f"train-{i}" for i in range(6) if i != 2 or not reason]


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "no json", "no cuts"])
def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path: Path, damage: str) -> None:
    write_split(tmp_path, "train", LENGTHS)
    path = manifest(tmp_path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "no gzip": b"path|text|speaker\n",
            "no json": gzip.compress(b'{"id": "a'),
            "no cuts": gzip.compress(b'{"id": "a", "type": "MonoCut"}\n'),
        }[damage]
    )
    with pytest.raises(UserError, match="cuts_train.jsonl.gz: damaged"):
        noise(tmp_path).summary(["train"])


@pytest.mark.parametrize("from_waveform", [True, False])
@pytest.mark.parametrize("damage", ["vanished", "truncated", "empty", "not a number"])
def test_a_file_that_goes_bad_during_training_is_a_named_skip(
    corpus: Path, tmp_path: Path, from_waveform: bool, damage: str
) -> None:
    data, module = copy_of(corpus, tmp_path, from_waveform)
    if not from_waveform:
        store_one_file_each(find_features(data), ("train",))
    loader = module.train_loader(["train"], 1, 1)
    path = file_of(data, from_waveform)
    if damage == "vanished":
        path.unlink()
    elif damage == "not a number" and not from_waveform:
        np.save(path, np.full_like(np.load(path), np.nan))
    elif damage == "not a number":
        path.write_bytes(b"this is no audio")
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    batches = list(loader)
    skipped = [str(line) for batch in batches for line in batch.skipped]
    assert len(skipped) == 1 and len(skipped[0]) < 400
    assert skipped[0].startswith("train_") and path.name in skipped[0]
    assert sum(len(batch.ids) for batch in batches) == 29


def copy_of(corpus: Path, folder: Path, from_waveform: bool) -> tuple[Path, DataModule]:
    """A copy of the corpus that may be damaged, its paths included."""
    data = folder / "data"
    shutil.copytree(corpus, data)
    for path in data.rglob("cuts_*.jsonl.gz"):
        text = gzip.decompress(path.read_bytes()).decode()
        path.write_bytes(gzip.compress(text.replace(str(corpus), str(data)).encode()))
    options = DataOptions(data_dir=data, num_workers=0, num_buckets=2, max_duration=20.0)
    features = None if from_waveform else find_features(data)
    return data, DataModule(options, features, Tokenizer.load(find_lang_dir(data)))


def file_of(data: Path, from_waveform: bool) -> Path:
    """The file of the first utterance of the training."""
    if from_waveform:
        return sorted((data / "demo").glob("train*.wav"))[0]
    return sorted((find_features(data) / "train").rglob("*.npy"))[0]


def test_no_batch_but_a_single_utterance_exceeds_the_bound_on_frames_and_tokens(
    corpus: Path,
) -> None:
    options = {"num_workers": 0, "num_buckets": 2}
    tokenizer, features = Tokenizer.load(find_lang_dir(corpus)), find_features(corpus)
    free = DataModule(DataOptions(corpus, **options), features, tokenizer)
    everything = sorted(i for b in free.train_loader(["train"], 1, 1) for i in b.ids)
    for limit in (0.02, 0.006):
        settings = DataOptions(corpus, max_frames_tokens=limit, **options)
        module = DataModule(settings, features, tokenizer)
        batches = list(module.train_loader(["train"], 1, 1))
        assert sorted(i for b in batches for i in b.ids) == everything
        for b in batches:
            size = len(b.ids) * int(b.input_lens.max()) / 2 * int(b.token_lens.max()) / 1e6
            assert len(b.ids) == 1 or size <= limit * 1.001
        assert any(len(b.ids) > 1 for b in batches)


def test_a_training_continues_past_bad_files_and_counts_them(corpus: Path, tmp_path: Path) -> None:
    data, _ = copy_of(corpus, tmp_path, from_waveform=False)
    store_one_file_each(find_features(data), ("train", "val"))
    files = sorted((find_features(data) / "train").rglob("*.npy"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:200])
    sorted((find_features(data) / "val").rglob("*.npy"))[0].unlink()
    run_train(data, tmp_path / "exp", "--num-epochs=1")
    log = "".join(p.read_text() for p in (tmp_path / "exp" / "log").iterdir())
    for path in files[:2]:
        assert f"skipped, cannot be read: train_{path.stem[-4:]}: {path}" in log
    assert "2 utterances not read" in log
    assert "skipped in validation, cannot be read: val_0000" in log
    assert (tmp_path / "exp" / "epoch-1.pt").is_file()


class ManyEqualTokens:
    """A tokenizer of as many equal tokens as there are letters in a text."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[1] * len(text) for text in texts]

    def to_bytes(self) -> bytes:
        return b"many equal tokens"


def test_utterances_that_ctc_cannot_align_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """1 s has 25 encoder frames: 13 equal tokens and the 12 blanks between them fit, 14 do not."""
    supervision = {"id": "s", "recording_id": "r", "start": 0, "duration": 1.0, "text": "a" * 14}
    write_split(tmp_path, "train", [16000, 16000, 16000], text="a" * 13)
    change_line(tmp_path, 1, supervisions=[supervision])
    options = DataOptions(data_dir=tmp_path, num_workers=0, num_buckets=2)
    reason = "more tokens than encoder frames, with the blanks of CTC between equal tokens"
    for has_ctc, expected in ((False, {}), (True, {reason: ["train-1"]})):
        data = DataModule(options, None, ManyEqualTokens(), has_ctc=has_ctc)
        assert left_out(data.summary(["train"])) == expected
        assert sum(len(b.ids) for b in data.train_loader(["train"], 1, 1)) == 3 - has_ctc
    assert f"1 utterances left out, {reason}: train-1" in caplog.text


def test_a_validation_counts_and_names_what_ctc_cannot_align(corpus: Path, tmp_path: Path) -> None:
    data, module = copy_of(corpus, tmp_path, from_waveform=False)
    path = find_features(data) / "cuts_val.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    cut = json.loads(lines[0])
    cut["supervisions"][0]["text"] *= 20
    path.write_bytes(gzip.compress("\n".join([json.dumps(cut), *lines[1:]]).encode()))
    run_train(data, tmp_path / "exp", "--num-epochs=1")
    log = "".join(p.read_text() for p in (tmp_path / "exp" / "log").iterdir())
    assert f"validation: loss not finite: {cut['id']}\n" in log
    assert "valid simple" in log and "loss of 1 utterances not finite, WER" in log


def test_an_epoch_without_a_readable_file_is_an_error(corpus: Path, tmp_path: Path) -> None:
    data, _ = copy_of(corpus, tmp_path, from_waveform=False)
    for path in (find_features(data) / "train").glob("*.tar"):
        path.unlink()
    with pytest.raises(UserError, match="none of the utterances of epoch 1 could be read"):
        run_train(data, tmp_path / "exp", "--num-epochs=1")


def correct_a_text(data: Path, split: str) -> None:
    path = data / "manifests" / f"cuts_{split}.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    first = json.loads(lines[0])
    first["supervisions"][0]["text"] += " parandatud"
    path.write_bytes(gzip.compress("\n".join([json.dumps(first), *lines[1:]]).encode()))


def extract_again(data: Path) -> None:
    extract_features.main(
        [f"--data-dir={data}", f"--xlsr={data / 'toy_xlsr'}", "--cut=frontend", "--single-process"]
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_text_that_was_corrected_after_the_extraction_is_never_ignored(
    corpus: Path, tmp_path: Path, split: str
) -> None:
    data, _ = copy_of(corpus, tmp_path, from_waveform=False)
    correct_a_text(data, split)
    command = r"run \./extract_features.sh .* --name frontend-cumulative"
    with pytest.raises(UserError, match=f"cuts_{split}.jsonl.gz was not made from .*{command}"):
        run_train(data, tmp_path / "exp", "--num-epochs=1")
    with pytest.raises(UserError, match="not made from the manifests"):
        validate_manifests.main([f"--data-dir={data}"])
    extract_again(data)
    if split == "train":  # the BPE model was made from the same text
        with pytest.raises(UserError, match="bpe.model was not made .*--stage 2 .*-size 60"):
            run_train(data, tmp_path / "exp", "--num-epochs=1")
        with pytest.raises(UserError, match="not made from the manifests"):
            validate_manifests.main([f"--data-dir={data}"])
        prepare_lang.main([f"--data-dir={data}", "--vocab-size=60"])
    run_train(data, tmp_path / "exp", "--num-epochs=1")
    tokenizer = Tokenizer.load(find_lang_dir(data))
    module = DataModule(DataOptions(data), find_features(data), tokenizer)
    assert any("parandatud" in cut.supervisions[0].text for cut in module.corpus([split]))
    validate_manifests.main([f"--data-dir={data}"])


def test_language_models_of_an_older_text_are_named_by_stage_4(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, _ = copy_of(corpus, tmp_path, from_waveform=True)
    lang = data / "lang_bpe_60"
    make_ngram.main([f"--data-dir={data}", f"--lang-dir={lang}"])
    validate_manifests.main([f"--data-dir={data}"])
    correct_a_text(data, "train")
    prepare_lang.main([f"--data-dir={data}", "--vocab-size=60"])
    extract_again(data)
    with pytest.raises(UserError, match="not made from the manifests"):
        validate_manifests.main([f"--data-dir={data}"])
    assert "ngram_3.arpa was not made from the training text" in caplog.text
    assert "--stage 5 --stop-stage 5" in caplog.text and "bpe.model" not in caplog.text


def test_stage_4_and_training_name_the_same_utterances_left_out(
    corpus: Path, tmp_path: Path
) -> None:
    data, _ = copy_of(corpus, tmp_path, from_waveform=False)
    path = data / "manifests" / "cuts_train.jsonl.gz"
    lines = [json.loads(line) for line in gzip.open(path)]
    for line in lines[:3]:
        line["supervisions"][0]["text"] = "k a l e m u s i t o " * 20
    lines[3] = {**lines[3], "duration": 0.09}
    lines[4] = {**lines[4], "duration": 0.02}
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    prepare_lang.main([f"--data-dir={data}", "--vocab-size=60"])
    extract_again(data)
    run_train(data, tmp_path / "exp", "--num-epochs=1")
    log = "".join(p.read_text() for p in (tmp_path / "exp" / "log").iterdir())
    assert "training on 25 utterances" in log
    table = (tmp_path / "exp" / "left_out.tsv").read_text()
    assert sorted(row.split("\t")[0] for row in table.splitlines()[1:]) == [
        f"train_{i:04d}" for i in range(5)
    ]
    data_module = DataModule(DataOptions(data), None, Tokenizer.load(find_lang_dir(data)))
    assert sum(map(len, data_module.summary(["train"]).left_out.values())) == 5
    # Stage 4 refuses times beyond the supervision, so it is given what training gets.
    validate_manifests.check_left_out(data, ["train"], Tokenizer.load(find_lang_dir(data)))
    assert (data / "left_out_train_frontend-cumulative.tsv").read_text() == table
