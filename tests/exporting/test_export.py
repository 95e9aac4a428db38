"""Exports: every file gives what the checkpoint gives, alone, in batches, and to k2's servers."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch

from xlsr_transducer import (
    decode,
    export,
    jit_pretrained,
    jit_pretrained_streaming,
    jit_trace_pretrained,
    pretrained,
)
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.data.audio_file import read_audio_file
from xlsr_transducer.data.tokenizer import read_tokens
from xlsr_transducer.exporting import torchscript, wav2vec2_ctc
from xlsr_transducer.exporting.formats import FormatOptions
from xlsr_transducer.exporting.parity import Reference
from xlsr_transducer.exporting.placing import put_in_place
from xlsr_transducer.exporting.scripted import OfflineEncoder
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr
from xlsr_transducer.recognition import script_models, torch_models
from xlsr_transducer.recognition.decoding import ChunkOptions
from xlsr_transducer.recognition.exported import Output, recognise
from xlsr_transducer.search import SearchOptions

ROOT = Path(__file__).resolve().parents[2]
SERVERS = ROOT / "tests" / "support" / "sherpa_calls.py"
STREAMING = "jit_script_chunk_16_left_2.pt"
TRACES = [f"{part}_jit_trace.pt" for part in ("encoder", "decoder", "joiner")]


@pytest.fixture(scope="module")
def folder(streaming_exp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format of PyTorch and Hugging Face, exported by the command."""
    out = tmp_path_factory.mktemp("export")
    formats = ["--jit=1", "--jit-trace=1", "--wav2vec2-ctc=1", f"--hf={out / 'hf'}"]
    assert export.main(["--exp-dir", str(streaming_exp), "--out-dir", str(out), *formats]) == 0
    return out


@pytest.fixture(scope="module")
def wavs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Copies at 16 kHz, with which servers need not resample."""
    folder, paths = tmp_path_factory.mktemp("wavs"), []
    for path in sorted((corpus / "demo").glob("test_seen_*.wav"))[:4]:
        paths.append(folder / path.name)
        soundfile.write(paths[-1], read_audio(path), 16000, subtype="FLOAT")
    return paths


@pytest.fixture(scope="module")
def decoded(corpus: Path, streaming_exp: Path) -> dict[str, tuple[list[int], list[int]]]:
    """Tokens and frames that ``decode`` gives, by the name of the file."""
    decode.main(["--exp-dir", str(streaming_exp), "--data-dir", str(corpus),
                 "--split=test_seen", "--num-workers=0"])  # fmt: skip
    newest = max((streaming_exp / "greedy_search").glob("tokens-test_seen-*.jsonl"),
                 key=lambda p: p.stat().st_mtime_ns)  # fmt: skip
    records = map(json.loads, newest.read_text().splitlines())
    return {r["id"]: (r["tokens"], r["frames"]) for r in records}


def outputs_of(folder: Path, wavs: list[Path]) -> dict[str, list[Output]]:
    waves = [torch.from_numpy(read_audio_file(path)) for path in wavs]
    recognisers = {
        "pretrained": torch_models.load_checkpoint(folder / "pretrained.pt"),
        "jit": script_models.load_scripted(script_models.ScriptOptions(folder / "cpu_jit.pt")),
        "streaming": script_models.load_streaming_script(
            script_models.ScriptOptions(folder / STREAMING)
        ),
        "trace": script_models.load_traced(
            script_models.TraceOptions(*(folder / name for name in TRACES))
        ),
    }
    found = {k: list(recognise(r, waves, SearchOptions())) for k, r in recognisers.items()}
    files = [folder / wav2vec2_ctc.MODEL, folder / wav2vec2_ctc.TOKENS]
    return {**found, "wav2vec2_ctc": wav2vec2_ctc.run(files, waves)}


def test_every_format_gives_the_tokens_and_times_of_decode(folder, wavs, decoded) -> None:
    expected = [decoded[path.stem] for path in wavs]
    assert sum(len(tokens) for tokens, _ in expected) > 50
    for name, outputs in outputs_of(folder, wavs).items():
        assert [(o.tokens, o.frames) for o in outputs] == expected, name


def test_servers_get_the_same_from_torch_alone_in_padded_batches(folder, wavs, tmp_path) -> None:
    # Frames of 10 ms cannot carry what is left over.
    waves = [torch.from_numpy(read_audio_file(path)) for path in wavs[:3]]
    waves = [wave[: len(wave) // 160 * 160] for wave in waves]
    torch.save(waves, tmp_path / "audio.pt")
    files = [folder / "cpu_jit.pt", folder / STREAMING, folder / wav2vec2_ctc.MODEL]
    done = subprocess.run(
        [sys.executable, str(SERVERS), str(tmp_path / "audio.pt"), *map(str, files)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, refusals = json.loads(done.stdout).values()
    model = script_models.load_scripted(script_models.ScriptOptions(folder / "cpu_jit.pt"))
    outputs = recognise(model, waves, SearchOptions())
    expected = [[o.tokens, o.frames] for o in outputs]
    assert len(found) == 7
    for way, result in found.items():
        assert result == expected, way
    # Stock programs compute filter banks, and must not take empty text for the result.
    reason = "this model takes samples at 16 kHz in frames of 160, not filter banks"
    assert len(refusals) == 5 and all(reason in message for message in refusals), refusals


def test_xlsr_goes_back_to_hugging_face(folder, streaming_exp, corpus) -> None:
    exported, source = load_xlsr(str(folder / "hf")), load_xlsr(str(corpus / "toy_xlsr"))
    loaded = load_model(CheckpointOptions(streaming_exp))
    assert exported.config == source.config == loaded.config.xlsr
    trained = loaded.model.encoder.xlsr.state_dict()
    assert exported.weights.keys() == trained.keys()
    for name, weight in exported.weights.items():
        torch.testing.assert_close(weight, trained[name], atol=1e-7, rtol=1e-6)
        if name.startswith("feature_extractor."):  # below the cut
            assert torch.equal(weight, source.weights[name])
    card = (folder / "hf" / "README.md").read_text()
    assert source.sha256 in card and "chunk-16-left-2-sink-4" in card
    assert "## Data" in card and '"base_lr": 0.005' in card and str(corpus) not in card


def test_a_file_that_gives_something_else_is_deleted_and_the_status_is_1(
    streaming_exp, tmp_path, monkeypatch, capsys
) -> None:
    full = ChunkSettings()
    monkeypatch.setattr(torchscript, "OfflineEncoder", lambda e, _: OfflineEncoder(e, full))
    options = ["--exp-dir", str(streaming_exp), "--out-dir", str(tmp_path), "--pretrained=0"]
    assert export.main([*options, "--jit=1"]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bpe.model", STREAMING, "tokens.txt"]
    lines = capsys.readouterr().out.splitlines()
    assert "encoder differs" in next(line for line in lines if line.startswith("cpu_jit.pt"))
    assert lines[-1].startswith("deleted") and "cpu_jit.pt" in lines[-1]


@contextlib.contextmanager
def full_disk(at: int = 10**6) -> Iterator[None]:
    """Inside, no file can grow beyond ``at`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_on_a_full_disk_earlier_exports_stay_and_nothing_half_written(
    streaming_exp, tmp_path
) -> None:
    job = export.load_job(CheckpointOptions(streaming_exp), ChunkOptions(), FormatOptions())
    out, hf = tmp_path / "out", tmp_path / "hf"
    names = ["pretrained.pt", "cpu_jit.pt", "tokens.txt", *TRACES, wav2vec2_ctc.MODEL]
    for path in [out / name for name in names] + [hf / "model.safetensors"]:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"earlier {path.name}")
    for options in ({"pretrained": True}, {"jit": True}, {"jit_trace": True},
                    {"wav2vec2_ctc": True}, {"hf": hf}):  # fmt: skip
        formats = FormatOptions(**{"pretrained": False, **options})
        with full_disk(), pytest.raises(UserError, match=f"{out}.* could not be written .*large"):
            some = dataclasses.replace(job, options=formats)
            export.export(some, out, Reference(job.loaded, []))
    assert sorted(p.name for p in out.iterdir()) == sorted(names)
    for path in (*out.iterdir(), *hf.iterdir()):
        assert path.read_text() == f"earlier {path.name}"


def test_files_move_to_another_disk_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    scratch, home, other = (tmp_path / name for name in ("scratch", "home", "other"))
    move = os.replace

    def within_a_folder(source: Path, target: Path) -> None:
        if source.parent == scratch and target.parent == other:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        move(source, target)

    monkeypatch.setattr(os, "replace", within_a_folder)
    for size, is_full in ((3000, True), (1000, False)):
        scratch.mkdir(exist_ok=True)
        (scratch / "a").write_bytes(b"a")
        (scratch / "b").write_bytes(b"b" * size)
        with full_disk(2000):
            if is_full:
                with pytest.raises(UserError, match="other/b: could not be written"):
                    put_in_place(scratch, {"a": home, "b": other})
                assert not [*home.iterdir(), *other.iterdir()]
            else:
                put_in_place(scratch, {"a": home, "b": other})
    assert (home / "a").read_bytes() == b"a" and (other / "b").read_bytes() == b"b" * 1000


def test_an_out_dir_that_is_a_file_is_refused(streaming_exp, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for option in ("--out-dir", "--hf"):
        with pytest.raises(UserError, match="file: is a file; give a folder"):
            export.main(["--exp-dir", str(streaming_exp), option, str(tmp_path / "file")])


def test_recognising_needs_neither_lhotse_nor_training() -> None:
    names = ["pretrained", "jit_pretrained", "jit_pretrained_streaming", "jit_trace_pretrained",
             "onnx_pretrained", "onnx_pretrained_streaming"]  # fmt: skip
    lines = [f"import xlsr_transducer.{name}" for name in names]
    foreign = ["lhotse", "k2", "tensorboard", "transformers", "torchaudio", "kaldialign"]
    # Of training/, the reading of checkpoint files.
    names = ("", ".storage", ".averaging", ".checkpoint")
    allowed = [f"xlsr_transducer.training{name}" for name in names]
    lines.append(f"import sys; found = [m for m in {foreign} if m in sys.modules]")
    lines.append("ours = [m for m in sys.modules if m.startswith('xlsr_transducer.training')]")
    lines.append(f"print(found + [m for m in ours if m not in {allowed}])")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.stdout == "[]\n", done.stderr


def test_commands_print_texts_and_times(folder, wavs, decoded, tmp_path, capsys) -> None:
    samples, _ = soundfile.read(wavs[0])
    soundfile.write(tmp_path / "a.flac", samples[::2], 8000)
    model = str(folder / STREAMING)
    files = [str(wavs[0]), str(tmp_path / "a.flac")]
    jit_pretrained_streaming.main(["--nn-model-filename", model, "--timestamps=1", *files])
    first, second = capsys.readouterr().out.splitlines()
    name, text, times = first.split("\t")
    assert name == files[0] and text and second.startswith(files[1] + "\t")
    tokens, frames = decoded[wavs[0].stem]
    assert times.split()[::2] == [f"{0.04 * frame:.2f}" for frame in frames]
    jit_pretrained.main(["--nn-model-filename", str(folder / "cpu_jit.pt"), files[0]])
    assert capsys.readouterr().out == f"{name}\t{text}\n"
    pretrained.main(["--checkpoint", str(folder / "pretrained.pt"), files[0]])
    assert capsys.readouterr().out == f"{name}\t{text}\n"


@pytest.mark.parametrize("method", ["modified_beam_search", "ctc_greedy_search"])
def test_other_searches_work_on_every_file(folder, wavs, method) -> None:
    wave = [torch.from_numpy(read_audio_file(wavs[0]))]
    options = SearchOptions(method)
    recognisers = [
        torch_models.load_checkpoint(folder / "pretrained.pt"),
        script_models.load_scripted(script_models.ScriptOptions(folder / "cpu_jit.pt")),
        script_models.load_streaming_script(script_models.ScriptOptions(folder / STREAMING)),
    ]
    found = [next(recognise(r, wave, options)) for r in recognisers]
    assert found[0].tokens and [o.tokens for o in found] == [found[0].tokens] * 3


@pytest.mark.parametrize("method", ["fast_beam_search_LG", "modified_beam_search_LODR"])
def test_searches_that_need_more_than_the_file_are_refused_with_those_that_do_not(method) -> None:
    with pytest.raises(UserError, match=f"--method {method}: here it is one of greedy_search, "):
        pretrained.main(["--checkpoint=none.pt", f"--method={method}", "none.wav"])


def damaged(path: Path, folder: Path, kind: str) -> Path:
    """A copy that lacks its end, or has one byte changed, of data or of the archive's list."""
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        del content[len(content) // 2 :]
    elif kind == "unlisted":
        content[content.rfind(b"data.pkl")] = 0xFF
    else:
        content[len(content) // 2] ^= 255
    copy = folder / f"{kind}-{path.name}"
    copy.write_bytes(content)
    (folder / "tokens.txt").write_bytes((path.parent / "tokens.txt").read_bytes())
    return copy


def test_tokens_that_are_no_text_are_refused_by_name(tmp_path) -> None:
    (tmp_path / "tokens.txt").write_bytes(b"<blk> 0\n\xff\xfe 1\n")
    with pytest.raises(UserError, match="tokens.txt: not a tokens.txt, or damaged"):
        read_tokens(tmp_path / "tokens.txt")


@pytest.mark.parametrize("kind", ["truncated", "tampered", "unlisted"])
@pytest.mark.parametrize("name", ["pretrained.pt", "cpu_jit.pt", STREAMING])
def test_damaged_files_are_refused_by_name(folder, tmp_path, wavs, name, kind) -> None:
    path = damaged(folder / name, tmp_path, kind)
    command, flag = {
        "pretrained.pt": (pretrained, "--checkpoint"),
        "cpu_jit.pt": (jit_pretrained, "--nn-model-filename"),
        STREAMING: (jit_pretrained_streaming, "--nn-model-filename"),
    }[name]
    with pytest.raises(UserError, match=path.name):
        command.main([flag, str(path), str(wavs[0])])


@pytest.mark.parametrize(
    "command, model, message",
    [
        (jit_pretrained, "none.pt", "no such file"),
        (jit_pretrained, "encoder_jit_trace.pt", "has no encoder"),
        (jit_pretrained_streaming, "cpu_jit.pt", "does not stream"),
        (jit_pretrained, STREAMING, "jit_pretrained_streaming"),
        (jit_pretrained, "pretrained.pt", "no TorchScript file"),
    ],
)
def test_files_of_another_kind_are_refused(folder, wavs, command, model, message) -> None:
    with pytest.raises(UserError, match=message):
        command.main(["--nn-model-filename", str(folder / model), str(wavs[0])])


def test_traces_and_tokens_of_other_parts_and_models_are_refused(folder, wavs, tmp_path) -> None:
    parts = ("encoder", "decoder", "joiner")
    flags = [f"--{part}-model-filename" for part in parts]
    for i, name in ((0, "cpu_jit.pt"), (0, TRACES[1]), (1, TRACES[2]), (2, TRACES[0])):
        files = [str(folder / trace) for trace in TRACES]
        files[i] = str(folder / name)
        words = [word for pair in zip(flags, files) for word in pair]
        with pytest.raises(UserError, match=f"{name}: is no traced {parts[i]}"):
            jit_trace_pretrained.main([*words, str(wavs[0])])
    tokens = (folder / "tokens.txt").read_text().splitlines(keepends=True)
    (tmp_path / "tokens.txt").write_text("".join(tokens[:-1]))
    for name, count in ((tmp_path / "tokens.txt", -1), (folder / wav2vec2_ctc.TOKENS, 1)):
        words = ["--nn-model-filename", str(folder / "cpu_jit.pt"), "--tokens", str(name)]
        with pytest.raises(UserError, match=f"{name}: has {len(tokens) + count} tokens"):
            jit_pretrained.main([*words, str(wavs[0])])


def test_an_export_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="nothing is left to export"):
        FormatOptions(pretrained=False)


@pytest.mark.parametrize(
    "command, options",
    [
        (jit_pretrained, ["--nn-model-filename", "cpu_jit.pt"]),
        (jit_pretrained_streaming, ["--nn-model-filename", "jit_script_chunk_16_left_2.pt"]),
        (jit_trace_pretrained, ["--encoder-model-filename", "encoder_jit_trace.pt",
                                "--decoder-model-filename", "decoder_jit_trace.pt",
                                "--joiner-model-filename", "joiner_jit_trace.pt"]),
    ],
)  # fmt: skip
def test_as_many_tokens_of_another_model_are_refused(
    folder, wavs, tmp_path, command, options
) -> None:
    options = [str(folder / o) if o.endswith(".pt") else o for o in options]
    tokens, path = read_tokens(folder / "tokens.txt"), tmp_path / "other.txt"
    other = [*tokens[:4], *tokens[:3:-1]]
    path.write_text("".join(f"{token} {i}\n" for i, token in enumerate(other)))
    with pytest.raises(UserError, match="other.txt: belongs to another model than"):
        command.main([*options, "--tokens", str(path), str(wavs[0])])


def test_audio_and_tokens_that_cannot_be_read_are_named(folder, wavs, tmp_path, capsys) -> None:
    model = ["--nn-model-filename", str(folder / "cpu_jit.pt")]
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", [], 16000)
    bad = [str(tmp_path / name) for name in ("none.wav", "text.wav", "empty.wav")]
    assert jit_pretrained.main([*model, bad[0], str(wavs[0]), *bad[1:]]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{wavs[0]}\t") and printed.out.count("\n") == 1
    assert [line.split(": ")[1] for line in printed.err.splitlines()] == bad
    with pytest.raises(UserError, match="tokens"):
        jit_pretrained.main([*model, "--tokens", str(tmp_path / "no.txt"), str(wavs[0])])
