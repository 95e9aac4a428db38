"""local/compare_decodes.py says whether two decodes agree in tokens and times."""

from __future__ import annotations

import pytest

from local.compare_decodes import main
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.recognition.scoring import Transcript, write_results
from xlsr_transducer.search import Hypothesis


def decode(folder, said: dict[str, tuple[list[int], list[int]]], set_name="test", suffix="x"):
    transcripts = [Transcript(i, ["ref"], [f"w{t}" for t in said[i][0]]) for i in said]
    hypotheses = {i: Hypothesis(*said[i], log_probs=[0.0]) for i in said}
    write_results(folder, set_name, suffix, transcripts, hypotheses)
    return folder


SAID = {"u1": ([5, 6], [0, 4]), "u2": ([], []), "u3": ([7], [1])}


def test_equal_decodes_are_reported_as_identical(tmp_path, capsys):
    a = decode(tmp_path / "a", SAID, suffix="simulated")
    b = decode(tmp_path / "b", SAID, suffix="streaming")
    assert main([str(a), str(b)]) == 0
    assert main([str(a / "tokens-test-simulated.jsonl"), str(b)]) == 0
    expected = "3 utterances identical in tokens and times\n"
    assert capsys.readouterr().out == expected * 2


@pytest.mark.parametrize(
    "other, line",
    [
        (([5, 8], [0, 4]), "test u1: token 1: 6 against 8\n  A: w5 w6\n  B: w5 w8\n"),
        (([5, 6], [0, 3]), "test u1: time of token 1: 4 against 3\n  A: w5 w6\n  B: w5 w6\n"),
        (([5], [0]), "test u1: 2 against 1 tokens\n"),
    ],
)
def test_each_difference_is_listed_and_the_status_is_1(tmp_path, capsys, other, line):
    a = decode(tmp_path / "a", SAID)
    b = decode(tmp_path / "b", {**SAID, "u1": other})
    assert main([str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert line in out and out.endswith("1 of 3 utterances differ\n")


def test_missing_utterances_are_listed_on_either_side(tmp_path, capsys):
    a = decode(tmp_path / "a", {k: SAID[k] for k in ("u1", "u2")})
    b = decode(tmp_path / "b", {k: SAID[k] for k in ("u2", "u3")})
    assert main([str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert f"test u1: only in {a}\n" in out and f"test u3: only in {b}\n" in out
    assert "2 of 3 utterances differ" in out


def test_nothing_to_compare_or_broken_files_are_an_error_and_not_agreement(tmp_path):
    a = decode(tmp_path / "a", SAID)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no tokens-"):
        main([str(a), str(empty)])
    (empty / "tokens-t-s.jsonl").write_text("")
    with pytest.raises(UserError, match="hold no utterances"):
        main([str(empty), str(empty)])
    (empty / "tokens-t-s.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match="tokens-t-s.jsonl:1: not a record"):
        main([str(a), str(empty)])


def test_one_set_decoded_twice_into_one_folder_asks_for_a_file(tmp_path):
    a = decode(tmp_path / "a", SAID, suffix="x")
    decode(a, SAID, suffix="y")
    with pytest.raises(UserError, match="occurs a second time"):
        main([str(a), str(a)])
    decode(tmp_path / "b", SAID, set_name="val")
    assert main([str(tmp_path / "b"), str(tmp_path / "b")]) == 0
