"""Decoding: simulated and real streaming agree, batches change nothing, files are complete."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording
from lhotse.cut import MultiCut
from lhotse.utils import fastcopy

from local import compare_decodes, streaming_table, validate_manifests
from tests.support.decodes import run, tokens
from xlsr_transducer import decode, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio_file import read_audio_file
from xlsr_transducer.data.cuts import load_cuts
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.exported import recognise
from xlsr_transducer.recognition.torch_models import streaming
from xlsr_transducer.search import SearchOptions

SEARCHES = {
    "greedy_search": ["--blank-penalty=4"],  # so that an untrained model emits something
    "ctc_greedy_search": ["--blank-penalty=4"],
    "modified_beam_search": ["--blank-penalty=4"],
    "fast_beam_search": ["--blank-penalty=4", "--beam=8"],
}


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("chunk", [(8, 1, 0), (16, 2, 4), (16, -1, 0), (32, 1, 20)])
def test_streaming_gives_the_tokens_and_times_of_the_simulation(
    corpus: Path,
    streaming_exp: Path,
    method: str,
    chunk: tuple[int, int, int],
) -> None:
    settings = [
        f"--decoding-method={method}",
        *SEARCHES[method],
        "--split=test_seen",
        f"--decode-chunk-len={chunk[0]}",
        f"--left-context-chunks={chunk[1]}",
        f"--attention-sink-size={chunk[2]}",
        "--num-workers=0",
    ]
    run(decode, corpus, streaming_exp, *settings)
    run(
        streaming_decode,
        corpus,
        streaming_exp,
        *settings,
        "--num-decode-streams=3",
        "--piece=0.07",
    )
    simulated = tokens(streaming_exp / method, "test_seen")
    streamed = tokens(streaming_exp / "streaming" / method, "test_seen")
    assert simulated == streamed
    assert len({token for t, _ in simulated.values() for token in t}) > 20


def test_an_utterance_alone_gives_what_it_gives_in_a_batch(
    corpus: Path,
    streaming_exp: Path,
) -> None:
    settings = ["--split=test_seen", "--blank-penalty=4", "--num-workers=0"]
    run(decode, corpus, streaming_exp, *settings)
    together = tokens(streaming_exp / "greedy_search", "test_seen")
    run(decode, corpus, streaming_exp, *settings, "--max-duration=1")
    assert tokens(streaming_exp / "greedy_search", "test_seen") == together


def test_result_files_carry_their_settings_and_all_utterances(
    corpus: Path,
    streaming_exp: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    run(decode, corpus, streaming_exp, "--num-workers=0")
    printed = capsys.readouterr().out
    for split in ("val", "test_seen", "test_unseen"):
        name = f"{split}-best-chunk-16-left-2-sink-4-greedy_search-max-sym-per-frame-1.txt"
        for kind in ("recogs", "errs", "wer-summary"):
            assert (streaming_exp / "greedy_search" / f"{kind}-{name}").is_file()
        assert split in printed
    recogs = (streaming_exp / "greedy_search" / f"recogs-{name}").read_text()
    assert recogs.count("ref=") == recogs.count("hyp=") == 3


@pytest.mark.parametrize("samples", [0, 100, 399, 400, 1600, 6400, 6401, 12345])
def test_short_files_stream_like_they_decode(
    corpus: Path,
    streaming_exp: Path,
    tmp_path: Path,
    samples: int,
    capsys: pytest.CaptureFixture,
) -> None:
    path = tmp_path / "short.wav"
    noise = np.random.default_rng(samples).normal(0, 0.1, samples)
    soundfile.write(path, noise, 16000)
    if samples == 0:
        for command in (decode, streaming_decode):
            assert run(command, corpus, streaming_exp, str(path)) == 2
            assert f"error: {path}: holds no audio" in capsys.readouterr().err
        return
    loaded = load_model(CheckpointOptions(exp_dir=streaming_exp))
    wave = torch.from_numpy(read_audio_file(path))
    penalty = 1000.0  # so that no frame gives a blank
    [found] = recognise(streaming(loaded), [wave], SearchOptions(blank_penalty=penalty))
    assert (samples >= 400) == bool(found.tokens)
    for command in (decode, streaming_decode):
        options = (f"--blank-penalty={penalty}", "--num-workers=0")
        run(command, corpus, streaming_exp, str(path), *options)
        assert capsys.readouterr().out == f"{path}\t{loaded.tokenizer.decode(found.tokens)}\n"


def test_a_long_stream_keeps_the_state_of_a_short_one(corpus: Path, streaming_exp: Path) -> None:
    from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
    from xlsr_transducer.model.state import state_bytes
    from xlsr_transducer.recognition.engine import StreamingEngine
    from xlsr_transducer.search import SearchOptions, make_search

    model = load_model(CheckpointOptions(exp_dir=streaming_exp), streaming=True).model
    search = make_search(SearchOptions(), model)
    engine = StreamingEngine(model.encoder, search)
    stream = engine.open("long")
    sizes = set()
    for _ in range(60):
        stream.accept(0.1 * torch.randn(16000))
        while stream.buffer.has_chunk():
            engine.step()
        sizes.add(state_bytes(engine._encoder_state))
    assert sizes == {engine.bytes_per_stream()}


def test_endpoints_are_shown_and_their_segments_joined_in_the_files(
    corpus: Path,
    streaming_exp: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    settings = ["--split=test_seen", "--blank-penalty=4", "--enable-endpoint=1"]
    settings += ["--rule2-min-trailing-silence=0.12", "--rule3-min-utterance-length=0.8"]
    folder = streaming_exp / "streaming" / "greedy_search"
    run(streaming_decode, corpus, streaming_exp, *settings, "--partial=1")
    printed = capsys.readouterr().out
    assert "segment 1: " in printed and "segment 3: " in printed
    assert list(folder.glob("recogs-test_seen-*-endpoint-2.4-0.12-0.8.txt"))
    found = tokens(folder, "test_seen")
    assert all(frames == sorted(frames) for _, frames in found.values())
    assert max(frames[-1] for _, frames in found.values()) > 20  # beyond the first segment
    more = ["--piece=0.013", "--num-decode-streams=2"]
    run(streaming_decode, corpus, streaming_exp, *settings, *more)
    assert tokens(folder, "test_seen") == found
    run(streaming_decode, corpus, streaming_exp, *settings, "--enable-endpoint=0")
    assert tokens(folder, "test_seen") != found


@pytest.mark.parametrize(
    "options, message",
    [
        (["--decode-chunk-len=15"], "subsampling factor"),
        (["--left-context-chunks=-1", "--attention-sink-size=4"], "contradicts"),
        (["--decode-chunk-len=-1", "--attention-sink-size=4"], "contradicts"),
        (["--epoch=99"], "epoch-99.pt"),
        (["--epoch=1", "--iter=5"], "contradicts"),
        (["--split=nonsense"], "nonsense"),
    ],
)
def test_contradictions_are_refused_by_name(
    corpus: Path,
    streaming_exp: Path,
    options: list[str],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        run(decode, corpus, streaming_exp, *options)


def test_full_context_cannot_stream(corpus: Path, streaming_exp: Path) -> None:
    with pytest.raises(UserError, match="cannot stream"):
        run(streaming_decode, corpus, streaming_exp, "--decode-chunk-len=-1")


def test_compare_decodes_tells_equal_from_different(corpus: Path, streaming_exp: Path) -> None:
    settings = ["--split=test_unseen", "--blank-penalty=4", "--num-workers=0"]
    run(decode, corpus, streaming_exp, *settings)
    run(streaming_decode, corpus, streaming_exp, *settings)
    run(decode, corpus, streaming_exp, *settings, "--decode-chunk-len=32")
    name = (
        "tokens-test_unseen-best-chunk-{}-left-2-sink-4-greedy_search-max-sym-per-frame-1-"
        "blank-penalty-4.0.jsonl"
    )
    a = streaming_exp / "greedy_search" / name.format(16)
    b = streaming_exp / "streaming" / "greedy_search" / name.format(16)
    c = streaming_exp / "greedy_search" / name.format(32)
    assert not compare_decodes.main([str(a), str(b)])
    assert compare_decodes.main([str(a), str(c)]) == 1


def test_the_streaming_table_has_a_row_per_setting_and_finds_no_difference(
    corpus: Path, streaming_exp: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = ["--exp-dir", str(streaming_exp), "--data-dir", str(corpus), "--split=test_unseen"]
    lists = ["--chunks=8,16", "--lefts=1", "--sinks=0,4"]
    assert streaming_table.main([*settings, *lists, "--blank-penalty=4"]) == 0
    printed = capsys.readouterr().out
    assert "whole utterance" in printed and "0 utterances differ" in printed
    assert (streaming_exp / "streaming_table.txt").read_text() == printed
    assert sum(line.strip().startswith(("8 (", "16 (")) for line in printed.splitlines()) == 4
    assert (streaming_exp / "streaming_table.png").read_bytes().startswith(b"\x89PNG")


def test_of_a_manifest_the_first_channel_is_decoded_and_what_has_no_text_is_named(
    corpus: Path, streaming_exp: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cuts = list(load_cuts(corpus / "manifests" / "cuts_val.jsonl.gz"))
    samples, rate = soundfile.read(cuts[0].recording.sources[0].source)
    soundfile.write(tmp_path / "two.wav", np.stack([samples, 0 * samples], 1), rate)
    two = Recording.from_file(tmp_path / "two.wav")
    values = {k: getattr(cuts[0], k) for k in ("id", "start", "duration", "supervisions")}
    odd = [
        MultiCut(**values, channel=[0, 1], recording=two),
        fastcopy(cuts[1], supervisions=[]),
        cuts[2].pad(cuts[2].duration + 1.0, preserve_id=True),
        cuts[3],
    ]
    CutSet.from_cuts(odd).to_file(tmp_path / "odd.jsonl.gz")
    CutSet.from_cuts([cuts[0], cuts[3]]).to_file(tmp_path / "even.jsonl.gz")
    for command, folder in ((decode, ""), (streaming_decode, "streaming")):
        found = []
        for name in ("odd", "even"):
            manifest = f"--manifest={tmp_path / name}.jsonl.gz"
            run(command, corpus, streaming_exp, manifest, "--num-workers=0", "--blank-penalty=4")
            found.append(tokens(streaming_exp / folder / "greedy_search", name))
            log = capsys.readouterr().err
            assert log.count("cannot be read, counts as deleted") == 2 * (name == "odd")
            if name == "odd":
                assert f"{cuts[1].id}: there is no text" in log
                assert f"{cuts[2].id}: it is a MixedCut" in log
        assert found[0] == {**found[1], cuts[1].id: ([], []), cuts[2].id: ([], [])}


def test_a_manifest_without_a_usable_line_or_damaged_is_an_error_that_names_it(
    corpus: Path, streaming_exp: Path, tmp_path: Path
) -> None:
    val = corpus / "manifests" / "cuts_val.jsonl.gz"
    cuts = [fastcopy(cut, supervisions=[]) for cut in load_cuts(val)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "no_text.jsonl.gz")
    (tmp_path / "half.jsonl.gz").write_bytes(val.read_bytes()[:300])
    for name, reason in (("no_text", "no utterance"), ("half", "damaged")):
        with pytest.raises(UserError, match=f"{name}.jsonl.gz: {reason}"):
            run(decode, corpus, streaming_exp, f"--manifest={tmp_path / name}.jsonl.gz")


def test_damaged_files_of_the_corpus_are_named_with_the_command_that_makes_them_again(
    corpus: Path, streaming_exp: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpus / "manifests", tmp_path / "manifests")
    path = tmp_path / "manifests" / "cuts_test_seen.jsonl.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cuts_test_seen.*damaged.*prepare.sh --stage 2"):
        run(decode, tmp_path, streaming_exp, "--split=test_seen", "--num-workers=0")
    with pytest.raises(UserError, match="cuts_test_seen.*damaged.*prepare.sh --stage 2"):
        validate_manifests.main([f"--data-dir={tmp_path}"])
    for content in ("", "[]", '{"train": 3}', '{"train": [3]}'):
        (tmp_path / "manifests" / "splits.json").write_text(content)
        with pytest.raises(UserError, match="splits.json is damaged"):
            run(decode, tmp_path, streaming_exp)
        with pytest.raises(UserError, match="splits.json is damaged"):
            validate_manifests.main([f"--data-dir={tmp_path}"])
