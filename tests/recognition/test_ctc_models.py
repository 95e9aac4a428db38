"""Models with a CTC head alone, on XLSR's own frames: all commands; streaming is as simulated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.support.decodes import run, tokens
from tests.support.stream_driver import TINY, speech
from xlsr_transducer import align, decode, evaluate, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.tensor_files import save_atomically
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.microphone import get_parser
from xlsr_transducer.model.checkpoint import BEST, CheckpointOptions, load_model, read_checkpoint
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.encoder import StreamingXLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.pretrained import main as pretrained
from xlsr_transducer.recognition.alignment_sets import align_batch
from xlsr_transducer.recognition.decoding import DecodeOptions, batches
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.search import Heads, SearchOptions, make_search

PREFIX = "ctc_prefix_beam_search"


@pytest.mark.parametrize("chunk", [ChunkSettings(8, 2, 4), ChunkSettings(6, -1, 0)])
@pytest.mark.parametrize("adapter", ["none", "conv"])
@torch.no_grad()
def test_streams_give_what_whole_utterances_give(adapter, chunk):
    torch.manual_seed(2)
    options = EncoderOptions(adapter=adapter, encoder_dim=32)
    encoder = StreamingXLSREncoder(TINY, options, chunk=chunk).double().eval()
    head = torch.nn.Linear(32, 15).double()
    head.weight *= 6
    waves = [speech(n, n) for n in (20000, 70, 9999, 399, 400, 721, 14000)]
    lens = torch.tensor([len(wave) for wave in waves])
    out, out_lens = encoder(torch.nn.utils.rnn.pad_sequence(waves, True), lens, *chunk)
    for method in ("ctc_greedy_search", PREFIX):
        search = make_search(SearchOptions(method), Heads(ctc_output=head))
        engine = StreamingEngine(encoder, search, num_slots=2)
        streams = [engine.open(str(n)) for n in range(len(waves))]
        rest = dict(zip(streams, waves))
        for size in (1, 4000, 2500, 100000):
            for n, stream in enumerate(streams):
                stream.accept(rest[stream][: size + n])
                rest[stream] = rest[stream][size + n :]
            engine.step()
        for stream in streams:
            stream.finish()
        while len(engine):
            engine.step()
        expected = search.results(search.advance(out, out_lens, search.init_state(len(waves))))
        for stream, best in zip(streams, expected):
            assert (stream.result.tokens, stream.result.frames) == (best.tokens, best.frames)
        assert sum(len(h.tokens) for h in expected) > 10
        # Every stream's last frame counts, and there is one where there is audio for it.
        per_frame = 1 if adapter == "none" else 2
        xlsr_frames = ((lens - 400).div(320, rounding_mode="floor") + 1).clamp(min=0)
        assert out_lens.tolist() == ((xlsr_frames + per_frame - 1) // per_frame).tolist()


@pytest.fixture(scope="module")
def ctc_exp(corpus: Path, streaming_exp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The streaming model without adapter and transducer, and a random CTC head that answers to
    the deviations of XLSR's last layer."""
    exp = tmp_path_factory.mktemp("exp-ctc")
    for name in ("settings.json", "xlsr_below_cut.pt"):
        shutil.copy(streaming_exp / name, exp)
    content = read_checkpoint(streaming_exp / BEST)
    config = content["config"]
    config["heads"], config["encoder"]["adapter"] = ["ctc"], "none"
    weights, width = content["model"], config["xlsr"]["hidden_size"]
    for name in [n for n in weights if n.startswith(("heads.", "encoder.adapter."))]:
        del weights[name]
    torch.manual_seed(0)
    head = torch.randn(len(content["tokens"]), width) * 3 / width**0.5
    weights["heads.ctc.output.weight"] = head
    weights["heads.ctc.output.bias"] = torch.zeros(len(head)).index_fill(0, torch.tensor([0]), 4.0)
    save_atomically({k: content[k] for k in content if k != "model_avg"}, exp / BEST)
    return exp


@pytest.mark.parametrize("method", [None, PREFIX])
def test_both_commands_give_the_same_at_20_ms_a_frame(corpus, ctc_exp, tmp_path, method):
    options = ["--split=test_seen", "--num-workers=0"]
    if method:
        tokenizer = Tokenizer.load(corpus / "lang_bpe_60")
        path = tmp_path / "words.txt"
        path.write_text("".join(f"{tokenizer.decode(t)}\n" for t in ([9, 12], [20])))
        options += [f"--decoding-method={method}", f"--context-file={path}"]
    run(decode, corpus, ctc_exp, *options)
    run(streaming_decode, corpus, ctc_exp, *options, "--num-decode-streams=3", "--piece=0.07")
    method = method or "ctc_greedy_search"
    found = tokens(ctc_exp / method, "test_seen")
    assert tokens(ctc_exp / "streaming" / method, "test_seen") == found
    assert sum(len(row) for row, _ in found.values()) > 20
    assert any(frame % 2 for _, frames in found.values() for frame in frames)


def test_words_are_aligned_by_the_head_that_there_is(corpus, ctc_exp):
    arguments = [f"--exp-dir={ctc_exp}", f"--data-dir={corpus}", "--num-workers=0"]
    align.main([*arguments, "--split=test_seen"])
    [path] = (ctc_exp / "alignments").glob("test_seen-*-ctc.ctm")
    starts = [float(line.split()[2]) for line in path.read_text().splitlines()]
    assert len(starts) > 10 and any(round(start / 0.02) % 2 for start in starts)
    with pytest.raises(UserError, match="--method transducer needs a model with that head"):
        align.main([*arguments, "--method=transducer"])


def test_a_batch_is_aligned_by_the_head_that_there_is(corpus, ctc_exp):
    loaded = load_model(CheckpointOptions(exp_dir=ctc_exp))
    [audio] = DecodeOptions(data_dir=corpus, split="val").audio_sets()
    [batch] = batches(audio, loaded.tokenizer, 100.0, 0)
    with torch.no_grad():
        out, lens = loaded.model.encoder.encode(batch.inputs, batch.input_lens)
    given = (audio, batch, out, lens, loaded.model, loaded.tokenizer)
    found = align_batch(*given)
    assert found == align_batch(*given, "ctc") and found[0]


@pytest.mark.parametrize(
    "command", ["decode", "streaming_decode", "evaluate", "pretrained", "live"]
)
def test_a_search_that_needs_a_transducer_is_refused_in_one_line(command, corpus, ctc_exp):
    given = [f"--exp-dir={ctc_exp}", "--decoding-method=modified_beam_search"]
    sets = [f"--data-dir={corpus}", "--split=test_seen"]
    wav = str(next((corpus / "demo").rglob("*.wav")))
    calls = {
        "decode": lambda: decode.main([*given, *sets]),
        "streaming_decode": lambda: streaming_decode.main([*given, *sets]),
        "evaluate": lambda: evaluate.main([*given, *sets]),
        "pretrained": lambda: pretrained([f"--checkpoint={ctc_exp / BEST}", given[1], wav]),
        "live": lambda: LiveModel.from_args(get_parser().parse_args(given)),
    }
    with pytest.raises(UserError, match="modified_beam_search needs a model with a transducer"):
        calls[command]()
