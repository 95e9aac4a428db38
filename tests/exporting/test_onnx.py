"""Exported ONNX files in onnxruntime give what the checkpoint gives, alone and in sherpa-onnx."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import kaldialign
import numpy as np
import pytest
import soundfile
import torch

from xlsr_transducer import export, onnx_pretrained, onnx_pretrained_streaming
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.exporting import int8_report, onnx_format, onnx_graphs, onnx_int8
from xlsr_transducer.exporting.formats import FormatOptions, Job
from xlsr_transducer.model.checkpoint import CheckpointOptions
from xlsr_transducer.model.state import cat_states, fields_of
from xlsr_transducer.recognition import onnx_models
from xlsr_transducer.recognition.decoding import ChunkOptions
from xlsr_transducer.recognition.endpoint import EndpointOptions
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.recognition.exported import Output, recognise
from xlsr_transducer.recognition.onnx_models import load_onnx, metadata, open_session
from xlsr_transducer.recognition.torch_models import offline, streaming
from xlsr_transducer.search import Heads, SearchOptions, make_search

ROOT = Path(__file__).resolve().parents[2]
GREEDY = SearchOptions()
RESETS = dict(enable_endpoint=True, rule3_min_utterance_length=0.8, reset_encoder=True)


@pytest.fixture(scope="module")
def job(streaming_exp: Path) -> Job:
    formats = FormatOptions(onnx=True, int8=True)
    return export.load_job(CheckpointOptions(exp_dir=streaming_exp), ChunkOptions(), formats)


@pytest.fixture(scope="module")
def folder(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All ONNX files of a streaming model, with its tokens."""
    pytest.importorskip("onnx", reason="ONNX is not installed in this environment")
    folder = tmp_path_factory.mktemp("onnx")
    onnx_format.write(job, folder)
    job.loaded.tokenizer.write_tokens(folder / "tokens.txt")
    return folder


@pytest.fixture(scope="module")
def waves(corpus: Path) -> list[torch.Tensor]:
    """Utterances of different lengths, one without a frame, one of a frame."""
    paths = sorted((corpus / "demo").glob("test_*.wav"))[:3]
    waves = [torch.from_numpy(read_audio(path)) for path in paths]
    return [*waves, waves[0][:399], waves[0][8000:8400]]


def encoder(folder: Path, suffix: str = "", is_streaming: bool = False) -> Path:
    chunk = "-chunk-16-left-2-sink-4" * is_streaming
    return folder / f"encoder-best{chunk}{suffix}.onnx"


def three(encoder: Path) -> list[Path]:
    return [encoder.with_name(encoder.name.replace("encoder", p)) for p in onnx_format.PARTS]


def spoken(outputs: list[Output]) -> list[tuple[list[int], list[int]]]:
    return [(o.tokens, o.frames) for o in outputs]


def largest_difference(job: Job, expected: list[Output], found: list[Output]) -> float:
    project = job.loaded.model.joiner.encoder_proj
    pairs = [(project(e.encoder_out), f.encoder_out) for e, f in zip(expected, found) if e.frames]
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search"])
@pytest.mark.parametrize("is_streaming", [False, True])
def test_files_give_the_checkpoints_tokens_and_times(job, folder, waves, method, is_streaming):
    options = SearchOptions(decoding_method=method)
    own = streaming(job.loaded) if is_streaming else offline(job.loaded, job.chunk)
    load = onnx_models.load_streaming if is_streaming else onnx_models.load_offline
    expected = list(recognise(own, waves, options))
    found = list(recognise(load(three(encoder(folder, "", is_streaming))), waves, options))
    assert spoken(found) == spoken(expected)
    assert sum(len(e.tokens) for e in expected) > 20
    assert largest_difference(job, expected, found) < 5e-5


def test_a_padded_batch_gives_each_row_what_it_gives_alone(folder, waves):
    model = load_onnx(three(encoder(folder)), None, is_streaming=False)
    lens = torch.tensor([len(w) for w in waves])
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=-23.0)
    out, out_lens = model.encoder(batch, lens)
    for row, wave in enumerate(waves):
        alone, n = model.encoder(wave[None], lens[row : row + 1])
        assert int(n[0]) == int(out_lens[row])
        torch.testing.assert_close(out[row, : n[0]], alone[0, : n[0]], atol=2e-5, rtol=0)


def pooled(model, decoder, joiner, waves: list[torch.Tensor], rules=None) -> dict[str, tuple]:
    """Tokens and frames of streams that begin one step after another, four in a batch."""
    search = make_search(GREEDY, Heads(decoder, joiner))
    engine = StreamingEngine(model.encoder, search, rules, num_slots=1)
    done, todo, at_once = {}, list(enumerate(waves)), 0
    while todo or len(engine):
        if todo and len(engine) < 4:
            number, wave = todo.pop(0)
            stream = engine.open(str(number))
            stream.accept(wave)
            stream.finish()
        computed, ended = engine.step()
        at_once = max(at_once, len(computed))
        for stream in ended:
            done[stream.name] = (stream.result.tokens, stream.result.frames)
    assert at_once >= 3
    return done


@pytest.mark.parametrize("endpoints", [{}, RESETS], ids=["no-endpoints", "encoder-is-reset"])
def test_four_streams_of_different_ages_in_one_batch(job, folder, waves, endpoints):
    own, rules = job.loaded.model, EndpointOptions(**endpoints).rules()
    model = load_onnx(three(encoder(folder, "", True)), None, is_streaming=True)
    waves = [torch.cat((w, w)) for w in waves[:3]] * 2
    expected = pooled(own, own.decoder, own.joiner, waves, rules)
    assert pooled(model, model.decoder, model.joiner, waves, rules) == expected


@torch.no_grad()
def test_a_step_gives_the_numbers_and_states_of_streaming_forward(job, folder):
    own = job.loaded.model.encoder
    model = load_onnx(three(encoder(folder, "", True)), None, is_streaming=True)
    generator = torch.Generator().manual_seed(0)
    size = own.chunk_size * own.xlsr.hop
    expected = found = own.get_init_states(0, torch.device("cpu"))
    for age in range(4):  # a stream joins at each step
        fresh = own.get_init_states(1, torch.device("cpu"))
        fresh.xlsr.tail.normal_(generator=generator).mul_(0.05)
        expected, found = cat_states([expected, fresh]), cat_states([found, fresh])
        x = 0.05 * torch.randn(age + 1, size, generator=generator)
        lens = torch.full([age + 1], size)
        lens[0] = [size, 0, size, 1000][age]  # idle, and at its end
        out, out_lens, expected = own.streaming_forward(x, lens, expected)
        got, got_lens, found = model.encoder.streaming_forward(x, lens, found)
        out = job.loaded.model.joiner.encoder_proj(out)
        assert got_lens.tolist() == out_lens.tolist()
        for row, n in enumerate(out_lens):
            torch.testing.assert_close(got[row, :n], out[row, :n], atol=5e-5, rtol=0)
        torch.testing.assert_close(fields_of(found), fields_of(expected), atol=5e-5, rtol=0)


def as_sherpa_normalises(wave: np.ndarray) -> np.ndarray:
    """What model.onnx makes of an utterance whose mean and variance sherpa-onnx takes out."""
    wide = wave.astype(np.float64)
    wide = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5)
    return (0.05 * wide).astype(np.float32)


def test_sherpa_onnx_gives_the_text_of_decode(job, folder, waves, tmp_path):
    """Its package and its program, on audio of the level that normalisation leaves."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    model, tokens = folder / "model.onnx", folder / "tokens.txt"
    recogniser = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(str(model), str(tokens))
    paths = []
    for number, wave in enumerate(waves[:3]):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], wave.numpy(), 16000, subtype="PCM_16")
    read_back = [soundfile.read(path, dtype="float32")[0] for path in paths]
    own = offline(job.loaded, job.chunk)
    levelled = [torch.from_numpy(as_sherpa_normalises(wave)) for wave in read_back]
    program = Path(sys.executable).with_name("sherpa-onnx-offline")
    command = [program, f"--omnilingual-asr-model={model}", f"--tokens={tokens}", *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(printed) == len(paths), done.stderr
    for wave, expected, line in zip(read_back, recognise(own, levelled, GREEDY), printed):
        stream = recogniser.create_stream()
        stream.accept_waveform(16000, wave)
        recogniser.decode_stream(stream)
        names = [job.loaded.tokenizer.tokens[i] for i in expected.tokens]
        assert [t.replace("▁", " ") for t in names] == list(stream.result.tokens)
        np.testing.assert_allclose(
            stream.result.timestamps, [0.04 * f for f in expected.frames], atol=1e-4
        )
        text = job.loaded.tokenizer.decode(expected.tokens)
        # As our tokenizer writes them: <sos/eos> is no text.
        shown = stream.result.text.replace("<unk>", " ⁇ ").replace("<sos/eos>", "")
        assert " ".join(shown.split()) == text and len(text) > 5
        assert line["text"] == stream.result.text


def test_sherpa_onnx_recognises_with_int8_weights(folder, waves):
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    model = folder / "model.int8.onnx"
    tokens = str(folder / "tokens.txt")
    recogniser = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(str(model), tokens)
    names = [line.rsplit(" ", 1)[0] for line in Path(tokens).read_text("utf-8").splitlines()]
    for wave in waves[:2]:
        stream = recogniser.create_stream()
        stream.accept_waveform(16000, wave.numpy())
        recogniser.decode_stream(stream)
        levelled = torch.from_numpy(as_sherpa_normalises(wave.numpy()))
        [own] = onnx_format.run_whole([model], [levelled])
        expected = [names[token].replace("▁", " ") for token in own.tokens]
        errors = kaldialign.edit_distance(expected, list(stream.result.tokens))["total"]
        # Its samples differ in the last bit, which eight bits and a random joiner magnify.
        assert len(expected) > 10 and errors <= 0.4 * len(expected)


@pytest.mark.long
def test_export_checks_the_files_in_fresh_processes(streaming_exp, tmp_path, capsys):
    pytest.importorskip("onnx", reason="ONNX is not installed in this environment")
    argv = ["--exp-dir", str(streaming_exp), "--out-dir", str(tmp_path), "--onnx", "1"]
    argv += ["--pretrained", "0"]
    assert export.main(argv) == 0
    names = {path.name for path in tmp_path.glob("*.onnx")}
    assert len(names) == 7 and "model.onnx" in names
    assert "chunk by chunk" in capsys.readouterr().out


def eight_bit_products(path: Path) -> list[np.ndarray]:
    """The weights (K, N) of a file's integer products."""
    import onnx

    graph = onnx.load(str(path)).graph
    assert not {n.op_type for n in graph.node} & {"DynamicQuantizeLinear", "MatMulNBits"}
    constants = {t.name: t for t in graph.initializer}
    names = [n.input[1] for n in graph.node if n.op_type == "MatMulInteger"]
    return [onnx.numpy_helper.to_array(constants[name]) for name in names]


@pytest.mark.parametrize("name", ["encoder-best", "encoder-best-chunk-16-left-2-sink-4", "model"])
def test_sums_of_int8_products_fit_every_cpu(folder, name):
    """CPUs without VNNI add two products with bytes, of up to 255 each, in 16 bits."""
    weights = eight_bit_products(folder / f"{name}.int8.onnx")
    assert len(weights) >= 20
    for values in weights:
        assert values.dtype == np.int8
        sums = np.abs(255 * values.astype(np.int64))
        assert (sums[:-1] + sums[1:]).max() <= 2**15 - 1
        assert np.abs(values.astype(np.int64)).max() >= 40  # of 127: no bits are wasted


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3), (7, 4), (768, 32)])
def test_eight_bit_weights_are_close_and_never_saturate(shape):
    generator = np.random.default_rng(0)
    for weight in (
        generator.standard_normal(shape),
        np.ones(shape),
        -np.ones(shape),
        np.zeros(shape),
        1e-42 * np.ones(shape),
        1e30 * generator.standard_normal(shape) ** 5,
    ):
        weight = weight.astype(np.float32)
        values, scale = onnx_int8.quantize_weight(weight)
        sizes = np.abs(255 * values.astype(np.int64))
        assert (sizes[:-1] + sizes[1:]).max(initial=0) <= 2**15 - 1
        assert np.all(np.abs(values * scale - weight) <= 0.51 * scale)


def int8_stream(model, waves: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Outputs of each stream chunk by chunk, all in one batch."""
    encoder, size = model.encoder, model.encoder.chunk_size * model.encoder.xlsr.hop
    state = encoder.get_init_states(len(waves), torch.device("cpu"))
    outputs: list[list[torch.Tensor]] = [[] for _ in waves]
    for start in range(0, max(map(len, waves)) - size, size):
        pieces = [wave[start : start + size] for wave in waves]
        lens = torch.tensor([len(piece) for piece in pieces])
        x = torch.stack([torch.nn.functional.pad(p, (0, size - len(p))) for p in pieces])
        out, out_lens, state = encoder.streaming_forward(x, lens, state)
        for row, n in enumerate(out_lens):
            outputs[row].append(out[row, :n])
    return outputs


def company(waves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Speech between a stream at full scale, silence, and a constant."""
    longest = max(map(len, waves))
    square = torch.ones(longest)
    square[::2] = -1.0
    return [square, *waves[:3], torch.zeros(longest), torch.full([longest], 0.7)]


def test_an_int8_stream_in_a_batch_equals_the_stream_alone(folder, waves):
    """To the bit: each row has scales of its own, whatever is beside it."""
    model = load_onnx(three(encoder(folder, ".int8", True)), None, is_streaming=True)
    together = int8_stream(model, company(waves))
    for wave, found in zip(company(waves), together):
        alone = int8_stream(model, [wave])[0]
        assert len(alone) > 2 and all(torch.equal(a, b) for a, b in zip(alone, found))


def test_an_int8_utterance_in_a_batch_equals_the_utterance_alone(folder, waves):
    model = load_onnx(three(encoder(folder, ".int8")), None, is_streaming=False)
    shortest = min(map(len, waves[:3]))
    rows = [wave[:shortest] for wave in company(waves)]
    lens = torch.full([len(rows)], shortest)
    out, _ = model.encoder(torch.stack(rows), lens)
    for row, wave in enumerate(rows):
        assert torch.equal(out[row], model.encoder(wave[None], lens[:1])[0][0])


def test_int8_files_are_smaller_and_close(job, folder, waves):
    expected = list(recognise(offline(job.loaded, job.chunk), waves, GREEDY))
    int8 = onnx_models.load_offline(three(encoder(folder, ".int8")))
    found = list(recognise(int8, waves, GREEDY))
    assert 5e-5 < largest_difference(job, expected, found) < 1.0
    assert encoder(folder, ".int8").stat().st_size < 0.6 * encoder(folder).stat().st_size
    assert all(o.tokens for o in onnx_format.run_whole([folder / "model.int8.onnx"], waves[:1]))


def test_fp16_files_are_half_as_large_and_close(job, folder, waves, tmp_path):
    model = onnx_graphs.half(job.loaded.model)
    with torch.no_grad(), onnx_graphs.traceable(model):
        about = onnx_format.describe(job)
        artifact = onnx_format.write_streaming(job, model, ".fp16", tmp_path, about)
    files = [tmp_path / name for name in artifact.files]
    expected = list(recognise(streaming(job.loaded), waves[:1], GREEDY))
    found = list(recognise(onnx_models.load_streaming(files), waves[:1], GREEDY))
    assert 5e-5 < largest_difference(job, expected, found) < 0.1
    assert files[0].stat().st_size < 0.6 * encoder(folder, "", True).stat().st_size


def test_int8_is_measured_on_the_validation_set(job, folder, corpus):
    text = int8_report.report(job, folder, int8_report.load_validation(corpus))
    assert "4 utterances of the validation set" in text
    for name in ("encoder-best.int8.onnx", "encoder-best-chunk-16-left-2-sink-4.int8.onnx"):
        assert name in text


def test_whole_utterances_need_memory_for_every_head_and_pair_of_frames(job, folder):
    found = load_onnx(three(encoder(folder)), None, is_streaming=False).encoder.whole
    config = job.loaded.model.encoder.config
    assert (found.conv_width, found.num_heads) == (config.conv_dim[0], config.num_attention_heads)
    assert found.has_mask and found.has_scores
    with pytest.raises(UserError, match="long.wav: 36000 s .* use onnx_pretrained_streaming, or"):
        found.check("long.wav", 36000)


def test_files_tell_what_they_are(job, folder):
    about = metadata(open_session(encoder(folder, "", True)))
    expected = {"kind": "streaming encoder", "chunk_size": "16", "left_context_chunks": "2"}
    expected |= {"attention_sink_size": "4", "sample_rate": "16000", "normalize": "cumulative"}
    assert expected.items() <= about.items()
    assert '"cache": ["N", 2, 2,' in about["state_shapes"]


def broken(folder: Path, target: Path, change: Callable[[bytes], bytes]) -> list[str]:
    for path in folder.glob("*-best.onnx"):
        (target / path.name).write_bytes(path.read_bytes())
    (target / "tokens.txt").write_bytes((folder / "tokens.txt").read_bytes())
    path = encoder(target)
    path.write_bytes(change(path.read_bytes()))
    return ["--encoder-model-filename", str(path)]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        lambda content: content.replace(b"cumulative", b"cumulated!"),
    ],
    ids=["empty", "truncated", "a bit of a weight", "metadata"],
)
def test_a_damaged_file_is_refused_in_one_line(folder, tmp_path, waves, change):
    wav = tmp_path / "a.wav"
    soundfile.write(wav, waves[0].numpy(), 16000)
    with pytest.raises(UserError, match="encoder-best.onnx: .*truncated or changed"):
        onnx_pretrained.main([*broken(folder, tmp_path, change), str(wav)])


def test_files_that_do_not_belong_together_are_refused(folder, tmp_path, waves):
    wav = tmp_path / "a.wav"
    soundfile.write(wav, waves[0].numpy(), 16000)
    argv = broken(folder, tmp_path, bytes)
    with pytest.raises(UserError, match="holds a encoder|holds an encoder"):
        onnx_pretrained_streaming.main([*argv, str(wav)])
    tokens = (tmp_path / "tokens.txt").read_text().replace("a 5", "b 5").split("\n")
    tokens[5] = "other 5"
    (tmp_path / "tokens.txt").write_text("\n".join(tokens))
    with pytest.raises(UserError, match="tokens.txt: belongs to another model"):
        onnx_pretrained.main([*argv, str(wav)])


def test_commands_print_text_and_times(folder, tmp_path, waves, job, capsys):
    wav = tmp_path / "a b.wav"
    soundfile.write(wav, np.repeat(waves[0].numpy(), 2), 32000)
    for command, is_streaming in ((onnx_pretrained, False), (onnx_pretrained_streaming, True)):
        path = encoder(folder, "", is_streaming)
        command.main(["--encoder-model-filename", str(path), "--timestamps", "1", str(wav)])
        name, text, times = capsys.readouterr().out.rstrip("\n").split("\t")
        assert name == str(wav) and text and float(times.split()[0]) >= 0


def test_the_programs_of_the_documentation_need_nothing_else(job, folder, waves, tmp_path):
    text = (ROOT / "docs/deploy.md").read_text(encoding="utf-8").split("## onnxruntime")[1]
    whole, chunks = [part.split("```")[0] for part in text.split("```python\n")[1:3]]
    chunks = chunks.replace("chunk-32", "chunk-16") + "    shown.append(frames[0, : lens[0]])\n"
    (tmp_path / "exp").symlink_to(folder)
    soundfile.write(tmp_path / "a.wav", waves[0].numpy(), 16000, subtype="FLOAT")
    program = f"{whole}\nshown = []\n{chunks}\nnp.save('shown.npy', np.concatenate(shown))\n"
    program += "import sys; assert 'torch' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    expected = next(recognise(offline(job.loaded, job.chunk), waves, GREEDY))
    lines = [
        f"{0.04 * frame:.2f} {job.loaded.tokenizer.tokens[token]}"
        for frame, token in zip(expected.frames, expected.tokens)
    ]
    assert done.stdout.splitlines() == lines and len(lines) > 5
    out = next(recognise(streaming(job.loaded), waves, GREEDY)).encoder_out
    out = job.loaded.model.joiner.encoder_proj(out).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "shown.npy"), out, atol=5e-5)


def test_without_onnx_the_option_says_what_to_install(job, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="pip install onnx"):
        onnx_format.write(job, tmp_path)
