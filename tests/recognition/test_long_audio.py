"""Audio too long for the memory: encoded in blocks where the view allows it, otherwise refused
before anything is computed."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.support.decodes import run
from tests.support.stream_driver import TINY, padded, speech, tiny_encoder
from xlsr_transducer import align, decode
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.exporting.scripted import OfflineEncoder
from xlsr_transducer.model import whole
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.whole import CPU, WholeEncoder, free_bytes, whole_encoder
from xlsr_transducer.pretrained import PretrainedOptions
from xlsr_transducer.recognition import exported as inference
from xlsr_transducer.recognition.script_models import whole_script
from xlsr_transducer.recognition.torch_models import offline

LIMITED, ALL_LEFT, FULL = ChunkSettings(8, 1, 4), ChunkSettings(8, -1, 0), ChunkSettings()


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "free_bytes", lambda device: 1 << 16)


def test_what_an_utterance_needs_grows_with_its_square_where_pairs_of_frames_are_kept():
    hour = 3600.0
    for has_mask, has_scores, growth in ((False, False, 2), (True, False, 4), (False, True, 4)):
        encoder = WholeEncoder(16, 4, has_mask, has_scores, "")
        assert encoder.bytes_for(2 * hour) / encoder.bytes_for(hour) == pytest.approx(growth, 0.1)
    # XLSR in full context: measured 1.27 GiB for a minute; the toy's masks 0.47 GiB for three.
    xlsr = WholeEncoder(512, 16, False, False, "")
    assert xlsr.bytes_for(60) / 2**30 == pytest.approx(1.27, 0.1)
    assert WholeEncoder(16, 4, True, False, "").bytes_for(180) / 2**30 == pytest.approx(0.47, 0.1)


def test_only_a_limited_left_context_needs_no_memory_for_length():
    for encoder in (tiny_encoder(), OfflineEncoder(tiny_encoder(), LIMITED).encoder):
        assert whole_encoder(encoder, 8, 1, "") is None
        assert whole_encoder(encoder, 8, -1, "").has_mask
        assert not whole_encoder(encoder, -1, -1, "").has_mask
    by_utterance = tiny_encoder()
    by_utterance.xlsr.normalize = "utterance"
    assert whole_encoder(by_utterance, 8, 1, "") is not None


def test_scripted_files_encode_in_blocks_or_tell_their_limit(tmp_path):
    encoder = tiny_encoder()
    encoder.longest_whole, encoder.block_frames = 30, 16
    x, lens = padded([speech(n, n, torch.float32) for n in (30001, 17777)])
    for chunk in (LIMITED, ALL_LEFT, FULL):
        scripted = torch.jit.script(OfflineEncoder(encoder, chunk).eval())
        scripted.save(str(tmp_path / "encoder.pt"))
        scripted = torch.jit.load(str(tmp_path / "encoder.pt"))
        found = whole_script(Path("encoder.pt"), scripted)
        assert (found is None) == (chunk == LIMITED)
        if found is not None:
            heads, width = TINY.num_attention_heads, TINY.conv_dim[0]
            assert (found.num_heads, found.conv_width) == (heads, width)
        with torch.inference_mode():
            out, out_lens = scripted(x, lens)
            expected, expected_lens = encoder(x, lens, *vars(chunk).values())
        assert torch.equal(out_lens, expected_lens)
        torch.testing.assert_close(out, expected, atol=2e-5, rtol=0)
    with pytest.raises(UserError, match="other.pt: has another encoder than those that export"):
        whole_script(Path("other.pt"), torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "options, advice",
    [
        (["--decode-chunk-len=-1"], "give --decode-chunk-len 32 --left-context-chunks 2, or cut"),
        (["--left-context-chunks=-1"], "GiB are free; give --left-context-chunks 2, or cut"),
    ],
)
def test_decode_and_align_refuse_in_one_line_what_does_not_fit(
    corpus, streaming_exp, little_memory, options, advice
):
    options = [*options, "--split=test_seen", "--num-workers=0"]
    for command in (decode, align):
        with pytest.raises(UserError, match=rf"s of audio in one piece need about .*{advice}"):
            run(command, corpus, streaming_exp, *options)
    assert run(decode, corpus, streaming_exp, "--split=test_seen", "--num-workers=0") == 0


def test_programs_for_exported_models_name_a_file_that_is_too_long(
    streaming_exp, little_memory, tmp_path, capsys
):
    loaded = load_model(CheckpointOptions(exp_dir=streaming_exp))
    assert offline(loaded, LIMITED).whole is None
    model = offline(loaded, FULL)
    short, long = tmp_path / "short.wav", tmp_path / "long.wav"
    soundfile.write(short, np.full(160, 0.01), 16000)
    soundfile.write(long, np.full(32000, 0.01), 16000)
    status = inference.run([str(long), str(short)], "", PretrainedOptions, lambda options: model)
    printed = capsys.readouterr()
    assert status == 2 and printed.out.startswith(f"{short}\t")
    [line] = printed.err.splitlines()
    assert line.startswith(f"error: {long}: 2 s of audio in one piece need about 0.0 GiB")
    assert line.endswith("decode takes --decode-chunk-len 32 --left-context-chunks 2; or cut the "
                         "audio into shorter pieces")  # fmt: skip


def test_free_memory_is_what_a_limit_of_the_process_leaves():
    free, (soft, hard) = free_bytes(CPU), resource.getrlimit(resource.RLIMIT_AS)
    assert free is None or free > 0
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), hard))
        assert 0 <= free_bytes(CPU) <= 64 << 20
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_running_out_of_memory_all_the_same_is_one_line(capsys):
    def main(argv):
        torch.zeros(1 << 50)

    with pytest.raises(SystemExit, match="2"):
        run_command(main, [])
    assert capsys.readouterr().err.startswith("error: out of memory (")
