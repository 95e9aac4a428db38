"""No utterance and no result is lost without a word, whatever the files and manifests hold."""

from __future__ import annotations

import contextlib
import gzip
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from local import compare_decodes, streaming_table
from xlsr_transducer import align, decode, pretrained, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.recognition.audio_sets import audio_sets, name_in_results

BOTH = pytest.mark.parametrize("command", [decode, streaming_decode])


def run(command: ModuleType, exp: Path, *more: str) -> int:
    return command.main([f"--exp-dir={exp}", "--num-workers=0", *more]) or 0


@pytest.fixture
def exp(streaming_exp: Path, tmp_path: Path) -> Path:
    """The trained model, without results."""
    folder = tmp_path / "exp"
    folder.mkdir()
    for name in ("best-valid-wer.pt", "xlsr_below_cut.pt", "settings.json"):
        shutil.copy(streaming_exp / name, folder)
    return folder


def wavs(corpus: Path) -> list[str]:
    return [str(path) for path in sorted((corpus / "demo").glob("test_seen_*.wav"))]


def manifest(corpus: Path, path: Path, change: Callable[[list[dict]], None]) -> Path:
    """A changed copy of a test split's manifest."""
    source = corpus / "manifests" / "cuts_test_seen.jsonl.gz"
    cuts = [json.loads(line) for line in gzip.decompress(source.read_bytes()).splitlines()]
    change(cuts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(c) + "\n" for c in cuts).encode()))
    return path


def lose(*numbers: int) -> Callable[[list[dict]], None]:
    """Lets the audio files of some utterances be missing."""

    def change(cuts: list[dict]) -> None:
        for number in numbers:
            cuts[number]["recording"]["sources"][0]["source"] += ".missing"

    return change


def words(cuts: list[dict]) -> list[int]:
    return [len(cut["supervisions"][0]["text"].split()) for cut in cuts]


@BOTH
def test_a_file_given_twice_gives_two_lines_in_the_order_of_the_arguments(
    corpus: Path, exp: Path, command: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    a, b, *_ = wavs(corpus)
    assert run(command, exp, b, a, b, "--blank-penalty=4") == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [b, a, b]
    assert lines[0] == lines[2] and lines[0][1] != lines[1][1]


def test_a_file_is_aligned_with_each_of_its_texts(
    corpus: Path, exp: Path, capsys: pytest.CaptureFixture
) -> None:
    a = wavs(corpus)[0]
    assert run(align, exp, a, a, "--text=tere", "--text=ilm on hea") == 0
    found = [line.split()[4] for line in capsys.readouterr().out.splitlines()]
    assert found == ["tere", "ilm", "on", "hea"]
    assert len(list((exp / "alignments").rglob("*.TextGrid"))) == 2


@pytest.mark.parametrize("command", [decode, streaming_decode, align])
def test_a_manifest_with_two_utterances_of_one_id_is_refused(
    corpus: Path, exp: Path, tmp_path: Path, command: ModuleType
) -> None:
    path = manifest(corpus, tmp_path / "cuts_x.jsonl.gz", lambda cuts: cuts.append(cuts[1]))
    with pytest.raises(UserError, match="cuts_x.*: utterances 2 and 6 have the same id, test_"):
        run(command, exp, f"--manifest={path}")


@BOTH
def test_a_bad_file_among_several_is_an_error_and_loses_no_text(
    corpus: Path, exp: Path, tmp_path: Path, command: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    a, c, *_ = wavs(corpus)
    bad, none = tmp_path / "bad.wav", tmp_path / "none.wav"
    bad.write_bytes(b"this is no audio")
    wrong = tmp_path / "wrong.wav"  # its header is sound
    soundfile.write(wrong, np.full(8000, np.nan), 16000, subtype="FLOAT")
    assert run(command, exp, a, str(bad), c, str(none), str(wrong)) == 2
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == [a, c]
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in errors] == [str(bad), str(none), str(wrong)]


def test_commands_on_exported_files_go_on_after_a_bad_file(
    corpus: Path, exp: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    a, c, *_ = wavs(corpus)
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"this is no audio")
    # The six commands share one loop.
    assert pretrained.main([f"--checkpoint={exp / 'best-valid-wer.pt'}", a, str(bad), c]) == 2
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == [a, c]
    assert f"error: {bad}: unreadable audio" in printed.err


def test_align_goes_on_after_a_bad_file(
    corpus: Path, exp: Path, capsys: pytest.CaptureFixture
) -> None:
    a, c, *_ = wavs(corpus)
    assert run(align, exp, a, "/none.wav", c, "--text=tere", "--text=hea", "--text=ilm") == 2
    printed = capsys.readouterr()
    assert [line.split()[4] for line in printed.out.splitlines()] == ["tere", "ilm"]
    assert "error: /none.wav: no such audio file" in printed.err.splitlines()


@BOTH
def test_transcribing_files_writes_nothing(corpus: Path, exp: Path, command: ModuleType) -> None:
    before = sorted(exp.rglob("*"))
    run(command, exp, wavs(corpus)[0])
    assert sorted(exp.rglob("*")) == before


@contextlib.contextmanager
def file_sizes_below(size: int) -> Iterator[None]:
    """Inside, no file can grow beyond ``size`` bytes, as on a disk that is full then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("command", [decode, streaming_decode, align])
def test_a_disk_that_fills_up_is_one_error_and_leaves_nothing_half_written(
    corpus: Path, exp: Path, command: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    run(command, exp, f"--data-dir={corpus}", "--split=test_seen")
    before = {p: p.read_bytes() for p in exp.rglob("*") if p.is_file() and p.parent.name != "log"}
    capsys.readouterr()
    full = pytest.raises(UserError, match=r"could not be written \(File too large\)")
    with full, file_sizes_below(300):
        run(command, exp, f"--data-dir={corpus}", "--split=test_seen")
    after = {p: p.read_bytes() for p in exp.rglob("*") if p.is_file() and p.parent.name != "log"}
    assert after == before
    assert "Logging error" not in capsys.readouterr().err


@BOTH
def test_all_words_of_an_unread_utterance_count_as_deleted_and_it_is_listed_everywhere(
    corpus: Path,
    exp: Path,
    tmp_path: Path,
    command: ModuleType,
    capsys: pytest.CaptureFixture,
) -> None:
    counts: list[int] = []
    ids: list[str] = []

    def change(cuts: list[dict]) -> None:
        lose(1)(cuts)
        cuts[3]["duration"] = -1.0  # no reader accepts this one
        counts.extend(words(cuts))
        ids.extend(cut["id"] for cut in cuts)

    path = manifest(corpus, tmp_path / "manifests" / "cuts_test.jsonl.gz", change)
    assert run(command, exp, f"--manifest={path}") == 2
    printed = capsys.readouterr()
    row = next(x for x in printed.out.splitlines() if x.startswith("test-") and "best-" in x)
    assert row.split()[-1] == "2" and row.split()[-2] == "5"
    assert int(row.split()[-4]) == sum(counts)
    assert int(row.split()[-3].split("/")[1]) >= counts[1] + counts[3]
    assert "error: could not be read: 2 of 5 of test-" in printed.err.splitlines()[-1]
    folder = exp / ("streaming" if command is streaming_decode else "") / "greedy_search"
    texts = {p.name.split("-")[0]: p.read_text() for p in folder.glob("*-test-*")}
    for number in (1, 3):
        assert f"cannot be read, counts as deleted: {ids[number]}: " in printed.err
        assert f"{ids[number]}:\thyp=[]\n" in texts["recogs"]
        assert f"\n{ids[number]}: " in texts["errs"].split("UNREAD")[1]
    assert "2 of 5 utterances could not be read" in texts["errs"]
    assert texts["wer"].splitlines()[0].split() == ["settings", "WER", "unread"]
    assert texts["wer"].splitlines()[1].split()[-1] == "2"
    records = {r["id"]: r for r in map(json.loads, texts["tokens"].splitlines())}
    assert [bool(records[i].get("unread")) for i in ids] == [False, True, False, True, False]


def test_the_streaming_table_counts_unread_utterances(
    corpus: Path, exp: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "data"
    manifest(corpus, data / "manifests" / "cuts_test.jsonl.gz", lose(0, 1, 2))
    (data / "manifests" / "splits.json").write_text('{"test": ["test"]}')
    lists = ["--chunks=16", "--lefts=1", "--sinks=0"]
    assert streaming_table.main([f"--exp-dir={exp}", f"--data-dir={data}", *lists]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["unread", "3"]
    assert all(float(line.split()[-1]) > 0 for line in lines[4:6])
    assert (exp / "streaming_table-test-data.txt").is_file()
    assert not (exp / "streaming_table.txt").exists()


@BOTH
def test_results_of_one_corpus_never_replace_those_of_another(
    corpus: Path, exp: Path, tmp_path: Path, command: ModuleType
) -> None:
    folder = exp / ("streaming" if command is streaming_decode else "") / "greedy_search"

    def written() -> set[str]:
        return {p.name.split("-best-")[0] for p in folder.glob("recogs-*")}

    def one(data: Path, number: int) -> Path:
        """A corpus of a single utterance."""
        path = data / "manifests" / "cuts_test_seen.jsonl.gz"
        return manifest(corpus, path, lambda cuts: cuts.__setitem__(slice(None), [cuts[number]]))

    def decode_data(data: Path) -> None:
        (data / "manifests" / "splits.json").write_text('{"test": ["test_seen"]}')
        assert run(command, exp, f"--data-dir={data}") == 0

    one(tmp_path / "a" / "other", 0), one(tmp_path / "b" / "other", 1)
    decode_data(tmp_path / "a" / "other")
    assert written() == {"recogs-test_seen-other"}
    decode_data(tmp_path / "a" / "other")  # the same again
    assert written() == {"recogs-test_seen-other"}
    assert run(command, exp, f"--data-dir={corpus}", "--split=test_seen") == 0
    assert written() == {"recogs-test_seen-other", "recogs-test_seen"}
    decode_data(tmp_path / "b" / "other")
    [third] = written() - {"recogs-test_seen-other", "recogs-test_seen"}
    assert third.startswith("recogs-test_seen-other-")
    for name, number in (("recogs-test_seen-other", 0), (third, 1)):
        assert f"test_seen_000{number}:\t" in next(folder.glob(f"{name}-best-*")).read_text()


def test_a_name_belongs_to_one_corpus_in_all_results_of_a_training(
    corpus: Path, exp: Path, tmp_path: Path
) -> None:
    path = manifest(corpus, tmp_path / "x" / "cuts_test_seen.jsonl.gz", lose(2))
    [changed] = audio_sets(corpus, manifest=path)
    [own] = audio_sets(corpus, "test_seen")
    assert name_in_results(changed, exp) == "test_seen-x"
    assert name_in_results(own, exp) == "test_seen" == name_in_results(own, exp)
    (exp / "settings.json").unlink()  # such as with pretrained.pt: the first keeps the plain name
    assert name_in_results(own, exp) == "test_seen"
    assert name_in_results(changed, exp) == f"test_seen-{changed.digest[:8]}"
    (exp / "corpora" / "test_seen.json").write_text("damaged")
    with pytest.raises(UserError, match="test_seen.json: damaged"):
        name_in_results(own, exp)


def test_compare_decodes_tells_unread_from_silent(
    corpus: Path, exp: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sound = manifest(corpus, tmp_path / "cuts_x.jsonl.gz", lambda cuts: None)
    run(decode, exp, f"--manifest={sound}")
    manifest(corpus, tmp_path / "cuts_x.jsonl.gz", lose(4))
    shutil.rmtree(exp / "corpora")
    run(streaming_decode, exp, f"--manifest={sound}")
    a, b = exp / "greedy_search", exp / "streaming" / "greedy_search"
    capsys.readouterr()
    assert compare_decodes.main([str(a), str(b)]) == 1
    assert "could not be read in B" in capsys.readouterr().out
    assert compare_decodes.main([str(b), str(b)]) == 0
    assert "of which 1 could not be read" in capsys.readouterr().out
