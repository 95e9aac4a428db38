"""Utterances read back from result files, with all that the manifest has of them."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from xlsr_transducer import decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.records import find_results, read_recogs, shared, word_errors
from xlsr_transducer.recognition.scoring import Transcript, write_results

PLAIN = Normalizer.parse("none")


def test_texts_come_back_as_they_were_written(tmp_path: Path) -> None:
    odd = ["'", '"', "\\", "õ\u2028ö", "[x]", "hyp=['a']", "\u00a0", "a\x85b"]
    transcripts = [Transcript("a", odd, []), Transcript("b:\tc", ["ref"], odd[::-1])]
    facts = {"a": {"speaker": "mari", "custom": {"age": 7}, "seconds": 1.5}}
    write_results(tmp_path, "my-set", "greedy", transcripts, facts=facts)
    [found] = find_results(tmp_path)
    assert (found.set_name, found.suffix, found.method) == ("my-set", "greedy", "")
    read = found.read(PLAIN)
    assert [(r.id, r.ref, r.hyp) for r in read] == [
        (t.id, " ".join(t.ref), " ".join(t.hyp)) for t in transcripts
    ]
    assert (read[0].speaker, read[0].custom, read[0].seconds) == ("mari", {"age": 7}, 1.5)
    assert (read[1].speaker, read[1].custom, read[1].seconds) == ("", {}, None)


def test_files_of_other_tools_need_no_files_beside(tmp_path: Path) -> None:
    text = "u1:\tref=['a', 'b']\nu1:\thyp=['a']\n"
    (tmp_path / "recogs-test-clean-beam-4.txt").write_text(text)
    [found] = find_results(tmp_path, "test-clean")
    assert (found.set_name, found.suffix) == ("test-clean", "beam-4")
    [record] = found.read(PLAIN)
    assert record.num_errors == 1 and record.about == "1 error in 2 words"


@pytest.mark.parametrize(
    "text",
    [
        "u1:\tref=['a']\n",
        "u1:\tref=['a']\nu2:\thyp=['a']\n",
        "u1:\tref=['a'\nu1:\thyp=[]\n",
        "u1:\tref=__import__('os')\nu1:\thyp=[]\n",
        "u1:\thyp=[]\n",
        "nothing\n",
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recogs-test-x.txt"
    path.write_text(text)
    with pytest.raises(UserError, match="recogs-test-x.txt"):
        list(read_recogs(path))


def test_a_damaged_file_beside_is_named(tmp_path: Path) -> None:
    write_results(tmp_path, "t", "s", [Transcript("a", ["x"], ["x"])])
    (tmp_path / "utterances-t-s.jsonl").write_text('{"set": "t"}\n')
    with pytest.raises(UserError, match="utterances-t-s.jsonl:1: not a record"):
        find_results(tmp_path)


def test_errors_are_counted_after_normalisation(tmp_path: Path) -> None:
    write_results(tmp_path, "t", "s", [Transcript("a", ["Tere,", "ema"], ["tere", "isa"])])
    [files] = find_results(tmp_path)
    assert [r.num_errors for r in files.read(PLAIN)] == [2]
    [record] = files.read(Normalizer.parse("basic"))
    assert record.num_errors == 1 and record.ref == "Tere, ema"
    assert word_errors([record]).percent == 50.0


def test_speaker_and_custom_fields_reach_the_result_files(
    corpus: Path, streaming_exp: Path, tmp_path: Path
) -> None:
    exp = tmp_path / "exp"
    exp.mkdir()
    for name in ("best-valid-wer.pt", "xlsr_below_cut.pt", "settings.json"):
        shutil.copy(streaming_exp / name, exp)
    source = corpus / "manifests" / "cuts_test_unseen.jsonl.gz"
    cuts = [json.loads(line) for line in gzip.decompress(source.read_bytes()).splitlines()]
    cuts[0]["supervisions"][0]["custom"] = {"dialect": "võru", "array": [1, 2]}
    cuts[1]["custom"] = {"dialect": "mulgi"}
    manifest = tmp_path / "cuts_mine.jsonl.gz"
    manifest.write_bytes(gzip.compress("".join(json.dumps(c) + "\n" for c in cuts).encode()))
    decode.main([f"--exp-dir={exp}", "--num-workers=0", f"--manifest={manifest}"])
    [files] = find_results(exp)
    records = files.read(PLAIN)
    assert [r.custom.get("dialect") for r in records[:2]] == ["võru", "mulgi"]
    assert "array" not in records[0].custom
    assert {r.speaker for r in records} == {c["supervisions"][0]["speaker"] for c in cuts}
    assert all(Path(r.audio).is_file() and r.start == 0 and r.seconds > 0 for r in records)
    tokens = next(files.recogs.parent.glob("tokens-*")).read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in tokens]
    assert (
        entries[0]["custom"]["dialect"] == "võru" and entries[0]["speaker"] == records[0].speaker
    )
    for record in records:
        assert " ".join(s.text for s in record.spans) == record.hyp
        assert all(0 <= s.start < s.end and 0 <= s.confidence <= 1 for s in record.spans)
    assert any(record.spans for record in records)


def test_shared_utterances_are_in_one_order(tmp_path: Path) -> None:
    lists = [["b", "a", "d"], ["a", "c", "b"]]
    decodes = []
    for number, names in enumerate(lists):
        write_results(tmp_path / str(number), "t", "s", [Transcript(n, [n], []) for n in names])
        [files] = find_results(tmp_path / str(number))
        decodes.append(files.read(PLAIN))
    assert [[r.id for r in records] for records in shared(decodes)] == [["a", "b"], ["a", "b"]]
