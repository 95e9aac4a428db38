"""Models with CTC alone, with an adapter or without: every file gives the checkpoint's tokens and
times, in stock programs too."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tests.support.random_models import FULL, RATE, closest_ctc, encoded, write_random_model
from tests.support.stream_driver import TINY, padded, speech
from xlsr_transducer import export, jit_pretrained_streaming, onnx_pretrained
from xlsr_transducer.core.compat import repeatable
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.exporting import (
    int8_report,
    onnx_format,
    pretrained,
    torchscript,
    traced,
    wav2vec2_ctc,
)
from xlsr_transducer.exporting.formats import Artifact, FormatOptions, Job
from xlsr_transducer.exporting.parity import Reference
from xlsr_transducer.model.checkpoint import CheckpointOptions
from xlsr_transducer.recognition.decoding import ChunkOptions
from xlsr_transducer.recognition.endpoint import EndpointOptions
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.recognition.exported import Output, recognise, without_repeats
from xlsr_transducer.recognition.onnx_models import OnnxOptions, load_onnx, metadata, open_session
from xlsr_transducer.recognition.script_models import ScriptOptions, load_streaming_script
from xlsr_transducer.recognition.torch_models import offline
from xlsr_transducer.search import SearchOptions, make_search

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PADDING = -23.025850929940457  # of sherpa's batches
# wav2vec2-base's front end, which needs whole utterances.
GROUP_NORM = dataclasses.replace(TINY, feat_extract_norm="group", do_stable_layer_norm=False)
KINDS = {
    "40 ms frames": {},
    "20 ms frames": {"adapter": "none", "weighted_layers": True},
    "full context": {
        "adapter": "none",
        "chunk": FULL,
        "normalize": "utterance",
        "xlsr": GROUP_NORM,
    },
}
STREAMING = [kind for kind, about in KINDS.items() if about.get("chunk") != FULL]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """The models, as they are exported."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for number, (kind, about) in enumerate(KINDS.items()):
        path = write_random_model(folder / f"{number}.pt", ("ctc",), **about)
        found[kind] = make_job(path)
    return found


def make_job(path: Path) -> Job:
    return export.load_job(CheckpointOptions(checkpoint=path), ChunkOptions(), FormatOptions())


Exports = dict[str, tuple[Path, list[Artifact]]]  # folders with tokens, and what lies there


def write_all(jobs: dict[str, Job], formats: list, factory: pytest.TempPathFactory) -> Exports:
    found = {}
    for kind, job in jobs.items():
        folder = factory.mktemp("exports")
        options = FormatOptions(onnx=True, int8=kind == "20 ms frames")
        job = dataclasses.replace(job, options=options)
        job.loaded.tokenizer.write_tokens(folder / "tokens.txt")
        found[kind] = (folder, [a for one in formats for a in one.write(job, folder)])
    return found


@pytest.fixture(scope="module")
def scripts(jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return write_all(jobs, [pretrained, torchscript, wav2vec2_ctc], tmp_path_factory)


@pytest.fixture(scope="module")
def graphs(jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> Exports:
    pytest.importorskip("onnx", reason="ONNX is not installed in this environment")
    return write_all(jobs, [onnx_format], tmp_path_factory)


def waves_of(job: Job, received: Callable[[Tensor], Tensor] = lambda wave: wave) -> list[Tensor]:
    """Audio without a frame, of a frame, and of some chunks, in which no rounding can turn a
    label.

    Args:
      received: what the model receives of audio.
    """
    found = [speech(399, 0, torch.float32), speech(400, 1, torch.float32)]
    for seed in range(2, 60):
        wave = speech(RATE + 4001 * (seed % 7), seed, torch.float32)
        if (
            closest_ctc(job.loaded.model, encoded(job.loaded.model, received(wave), job.chunk))
            > 1e-3
        ):
            found.append(wave)
    assert len(found) >= 5
    return found[:5]


def read_off(job: Job, wave: Tensor) -> tuple[list[int], list[int]]:
    """Tokens and frames of whole utterances, straight from the definition of CTC."""
    model = job.loaded.model
    with torch.no_grad():
        out, lens = model.encoder(wave[None], torch.tensor([len(wave)]), *job.chunk)
        labels = model.ctc_output(out[0, : lens[0]]).argmax(-1).tolist()
    groups = [list(run) for _, run in itertools.groupby(enumerate(labels), lambda x: x[1])]
    runs = [(run[0][1], run[0][0]) for run in groups if run[0][1] != 0]
    return [token for token, _ in runs], [frame for _, frame in runs]


def spoken(outputs: list[Output]) -> list[tuple[list[int], list[int]]]:
    return [(o.tokens, o.frames) for o in outputs]


def compare(job: Job, artifacts: list[Artifact], folder: Path) -> None:
    """Each artifact gives what the model is to give; those of TorchScript to the last bit."""
    waves = waves_of(job)
    reference = Reference(job.loaded, waves)
    expected = [read_off(job, wave) for wave in waves]
    assert expected[0] == ([], []) and sum(len(tokens) for tokens, _ in expected) > 30
    for artifact in artifacts:
        # Compiling a graph anew for every length takes longer than running it.
        with repeatable(), torch.jit.optimized_execution(False):
            found = artifact.run([folder / name for name in artifact.files], waves)
        assert spoken(found) == expected, artifact.files
        for a, b in zip(reference.outputs(artifact), found):
            if b.encoder_out is not None and len(a.encoder_out):
                out, size = a.encoder_out, 1.0
                if artifact.is_projected:  # log-probs, of which the largest is far from 1
                    with torch.no_grad():
                        out = job.loaded.model.ctc_output(out).log_softmax(-1)
                    size = float(out.abs().max())
                assert out.shape == b.encoder_out.shape
                assert float((out - b.encoder_out).abs().max()) <= artifact.tolerance * size


@pytest.mark.parametrize("kind", KINDS)
def test_torchscript_files_give_the_tokens_and_times_of_the_checkpoint(jobs, scripts, kind):
    folder, artifacts = scripts[kind]
    assert len(artifacts) == 3 + (kind in STREAMING)
    compare(jobs[kind], artifacts, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_files_give_the_tokens_and_times_of_the_checkpoint(jobs, graphs, kind):
    (folder, artifacts), job = graphs[kind], jobs[kind]
    files = [a.files for a in artifacts if a.same_text]
    expected = [onnx_format.names(job), ("model.onnx",)]
    expected += [onnx_format.names(job, is_streaming=True)] if kind in STREAMING else []
    assert files == expected and files[0] == (f"ctc-{job.name}.onnx",)
    compare(job, [a for a in artifacts if a.same_text], folder)


@pytest.mark.parametrize("kind", ["40 ms frames", "full context"])
def test_sherpa_gets_logits_in_frames_of_20_ms_in_padded_batches(jobs, scripts, kind):
    """As its C++ sources call a wav2vec 2.0 model: by the name of its class, without a joiner."""
    job, (folder, _) = jobs[kind], scripts[kind]
    model = torch.jit.load(str(folder / wav2vec2_ctc.MODEL))
    assert model.original_name == "Wav2Vec2Model" and not hasattr(model, "joiner")
    waves = waves_of(job)
    with torch.no_grad():
        logits, lens = model(*padded(waves, PADDING))
    factor = job.loaded.model.encoder.subsampling_factor
    assert lens.dtype == torch.int64 and logits.shape[2] == job.loaded.config.vocab_size
    for row, wave in enumerate(waves):
        tokens, frames = read_off(job, wave)
        labels = logits[row, : lens[row]].log_softmax(-1).argmax(-1).tolist()
        found = without_repeats(labels, 1)  # of 20 ms
        assert (found.tokens, found.frames) == (tokens, [factor * f for f in frames])
    names = (folder / wav2vec2_ctc.TOKENS).read_text(encoding="utf-8").splitlines()
    assert names[-1] == f"| {len(names) - 1}"


@pytest.mark.parametrize("modified", [False, True])
def test_k2_finds_the_tokens_in_the_logits_for_sherpa(jobs, scripts, modified):
    """sherpa decodes by the best path through k2's CTC topology, in either form."""
    k2 = pytest.importorskip("k2")
    job, (folder, _) = jobs["40 ms frames"], scripts["40 ms frames"]
    model = torch.jit.load(str(folder / wav2vec2_ctc.MODEL))
    topology = k2.ctc_topo(job.loaded.config.vocab_size - 1, modified=modified)
    for wave in waves_of(job)[1:]:
        with torch.no_grad():
            logits, lens = model(wave[None], torch.tensor([len(wave)]))
        segment = torch.tensor([[0, 0, int(lens)]], dtype=torch.int32)
        dense = k2.DenseFsaVec(logits.log_softmax(-1), segment)
        lattice = k2.intersect_dense_pruned(topology, dense, 20, 8, 20, 10000)
        labels = k2.shortest_path(lattice, True).aux_labels.tolist()
        assert [label for label in labels if label > 0] == read_off(job, wave)[0]


def as_sherpa_normalises(wave: Tensor, level: float) -> Tensor:
    """What model.onnx makes of an utterance whose mean and variance sherpa-onnx takes out."""
    wide = wave.double()
    wide = (wide - wide.mean()) / (wide.var(unbiased=False) + 1e-5).sqrt()
    return (level * wide).float()


@pytest.mark.parametrize("kind, level", [("40 ms frames", 0.05), ("full context", 1.0)])
def test_sherpa_onnx_gives_the_tokens_of_decode(jobs, graphs, kind, level):
    """On audio of the level that normalisation leaves; with --normalize utterance on any."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    job, (folder, _) = jobs[kind], graphs[kind]
    about = metadata(open_session(folder / "model.onnx"))
    assert float(about["level"]) == level
    recogniser = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(
        str(folder / "model.onnx"), str(folder / "tokens.txt")
    )
    seconds, names = job.loaded.model.encoder.frame_seconds, job.loaded.tokenizer.tokens
    for wave in waves_of(job, lambda wave: as_sherpa_normalises(wave, level))[2:]:
        stream = recogniser.create_stream()
        stream.accept_waveform(RATE, wave.numpy())
        recogniser.decode_stream(stream)
        tokens, frames = read_off(job, as_sherpa_normalises(wave, level))
        if level == 1.0:
            assert (tokens, frames) == read_off(job, wave)
        assert list(stream.result.tokens) == [names[i].replace("▁", " ") for i in tokens]
        expected = [seconds * frame for frame in frames]
        assert stream.result.timestamps == pytest.approx(expected, abs=1e-4) and expected


RULES = {"enable_endpoint": True, "rule3_min_utterance_length": 0.48, "reset_encoder": True}


def pooled(model, waves: list[Tensor], options: SearchOptions) -> dict[str, list]:
    """Tokens and frames of the segments of streams that begin one step after another."""
    rules = EndpointOptions(**RULES).rules(model.encoder.frame_seconds)
    engine = StreamingEngine(model.encoder, make_search(options, model), rules, num_slots=1)
    done, todo = {}, list(enumerate(waves))
    while todo or len(engine):
        if todo:
            number, wave = todo.pop(0)
            stream = engine.open(str(number))
            stream.accept(wave)
            stream.finish()
        for stream in engine.step()[1]:
            done[stream.name] = [(s.tokens, s.frames) for s in stream.segments]
    return done


@pytest.mark.parametrize("penalty", [0.0, 1.5])
@pytest.mark.parametrize("kind", ["40 ms frames", "20 ms frames"])
def test_live_streams_in_onnxruntime_have_the_checkpoints_segments(jobs, graphs, kind, penalty):
    job, (folder, _) = jobs[kind], graphs[kind]
    files = [folder / name for name in onnx_format.names(job, is_streaming=True)]
    model = load_onnx(files, folder / "tokens.txt", is_streaming=True)
    assert model.encoder.frame_seconds == job.loaded.model.encoder.frame_seconds
    waves, options = waves_of(job), SearchOptions(blank_penalty=penalty)
    expected = pooled(job.loaded.model, waves, options)
    assert pooled(model, waves, options) == expected
    longest = round(0.48 / model.encoder.frame_seconds)
    assert max(len(segments) for segments in expected.values()) > 2
    for segments in expected.values():
        assert all(frames[-1] - frames[0] < longest for _, frames in segments)


def test_eight_bits_leave_the_last_layer_as_it_is(jobs, graphs):
    onnx = pytest.importorskip("onnx")
    job, (folder, _) = jobs["20 ms frames"], graphs["20 ms frames"]
    wave = waves_of(job)[-1:]
    for streaming in (False, True):
        [name] = onnx_format.names(job, ".int8", streaming)
        nodes = onnx.load(str(folder / name)).graph.node
        kept = [n.name for n in nodes if n.op_type == "MatMul" and "/ctc_output/" in n.name]
        assert len(kept) == 1 and sum(n.op_type == "MatMulInteger" for n in nodes) >= 15
        run = onnx_format.run_streaming if streaming else onnx_format.run_offline
        [float_out] = run([folder / name.replace(".int8", "")], wave)
        [found] = run([folder / name], wave)
        difference = float((found.encoder_out - float_out.encoder_out).abs().max())
        assert 5e-5 < difference < 1.0 and found.tokens


def test_int8_report_takes_the_files_of_a_ctc_model(jobs, graphs):
    options = FormatOptions(onnx=True, int8=True)
    job = dataclasses.replace(jobs["20 ms frames"], options=options)
    waves = waves_of(job)[3:]
    validation = int8_report.Validation([w.numpy() for w in waves], [["tere"]] * len(waves))
    text = int8_report.report(job, graphs["20 ms frames"][0], validation)
    for streaming in (False, True):
        assert onnx_format.names(job, ".int8", streaming)[0] in text


def test_commands_print_texts_and_times_of_20_ms_frames(jobs, graphs, scripts, tmp_path, capsys):
    job, (folder, _) = jobs["20 ms frames"], graphs["20 ms frames"]
    wave = waves_of(job)[-1]
    soundfile.write(tmp_path / "a.wav", wave.numpy(), RATE, subtype="FLOAT")
    [script] = scripts["20 ms frames"][0].glob("jit_script_chunk_*.pt")
    offline_file = folder / onnx_format.names(job)[0]
    _, frames = read_off(job, wave)
    for command, flag, file in (
        (jit_pretrained_streaming, "--nn-model-filename", script),
        (onnx_pretrained, "--encoder-model-filename", offline_file),
    ):
        command.main([flag, str(file), "--timestamps=1", str(tmp_path / "a.wav")])
        _, text, times = capsys.readouterr().out.rstrip("\n").split("\t")
        assert text and times.split(" ")[::2] == [f"{0.02 * frame:.2f}" for frame in frames]
    assert any(frame % 2 for frame in frames)
    found = load_streaming_script(ScriptOptions(script))
    assert found.frame == 0.02 and found.joiner is None


def test_the_program_of_the_documentation_prints_the_tokens(jobs, graphs, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    job, (folder, _) = jobs["20 ms frames"], graphs["20 ms frames"]
    text = (ROOT / "docs/deploy.md").read_text(encoding="utf-8").split("## Models with CTC")[1]
    program = text.split("```python\n")[1].split("```")[0]
    program = program.replace("exp/ctc-best.onnx", str(folder / onnx_format.names(job)[0]))
    wave, tokens = waves_of(job)[-1], job.loaded.tokenizer.tokens
    exec(
        program, {"onnxruntime": onnxruntime, "np": np, "samples": wave.numpy(), "tokens": tokens}
    )
    assert capsys.readouterr().out.split() == [tokens[i] for i in read_off(job, wave)[0]]


def test_files_of_the_other_way_are_refused_with_the_command_for_them(jobs, graphs):
    folder, _ = graphs["40 ms frames"]
    [whole], [chunks] = (onnx_format.names(jobs["40 ms frames"], "", s) for s in (False, True))
    for name, streaming, hint in (
        (whole, True, "holds a ctc encoder, .*; use onnx_pretrained$"),
        (chunks, False, "holds a streaming ctc encoder, .*; use onnx_pretrained_streaming$"),
    ):
        options = OnnxOptions(encoder_model_filename=folder / name)
        with pytest.raises(UserError, match=hint):
            load_onnx(options.files(), options.tokens_file(), streaming)


def test_searches_of_a_transducer_are_refused(jobs):
    model = offline(jobs["40 ms frames"].loaded, jobs["40 ms frames"].chunk)
    with pytest.raises(UserError, match="greedy_search needs a model with a transducer"):
        next(recognise(model, [torch.zeros(400)], SearchOptions("greedy_search")))


def test_formats_that_have_no_place_for_the_heads_are_refused_by_name(tmp_path, caplog):
    ctc = write_random_model(tmp_path / "ctc.pt", ("ctc",))
    with pytest.raises(UserError, match="--jit-trace 1 .* transducer, .* ctc alone: use --jit 1"):
        traced.write(make_job(ctc), tmp_path)
    short = write_random_model(tmp_path / "short.pt", ("transducer",), adapter="none")
    job = make_job(short)
    with pytest.raises(UserError, match="--wav2vec2-ctc 1: .*--adapter none; export it with"):
        wav2vec2_ctc.write(job, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not onnx_format.has_room_for_blanks(job.loaded.model)
    assert "model.onnx is left out" in caplog.text
