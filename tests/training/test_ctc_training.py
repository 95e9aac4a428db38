"""Models with a CTC head alone: their loss is Hugging Face's; they train, resume and stream."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from local import compare_decodes
from tests.core.test_precision import knows_layer_norm
from tests.support.stream_driver import TINY
from tests.support.tiny_recipe import run_train
from xlsr_transducer import decode, streaming_decode
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import read_checkpoint
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.heads import LossOptions, TransducerOptions, make_heads
from xlsr_transducer.model.heads.ctc import CtcHead
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.optim import OptimOptions

CTC = ["--heads=ctc", "--ctc-loss-scale=1", "--num-epochs=0", "--num-updates=8",
       "--max-duration=20", "--log-interval=1"]  # fmt: skip
CHUNKS = ["--streaming=1", "--chunk-size=16,8,-1", "--left-context-chunks=2,1",
          "--attention-sink-size=4,0"]  # fmt: skip
WAVEFORM = ["--cut=waveform"]
KINDS = {
    "frames": ["--adapter=none"],
    "streaming-frames": ["--adapter=none", *CHUNKS],
    "streaming-adapter-from-audio": [*CHUNKS, *WAVEFORM],
    "weighted": ["--adapter=none", "--weighted-layers=1", *CHUNKS],
}


def options_of(kind: str, corpus: Path) -> list[str]:
    more = [f"--xlsr={corpus / 'toy_xlsr'}"] if "audio" in kind else []
    return [*CTC, *KINDS[kind], *more]


def last_of(exp: Path) -> dict:
    [content] = [c for p in exp.glob("epoch-*.pt") if (c := read_checkpoint(p))["step"] == 8]
    return content


@pytest.fixture(scope="module", params=KINDS)
def trained(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A training of eight updates, with a checkpoint after the fourth."""
    exp = tmp_path_factory.mktemp(request.param)
    assert run_train(corpus, exp, *options_of(request.param, corpus), "--save-every-n=4") == 0
    return request.param, exp


def test_it_learns_with_the_ctc_loss_alone(trained: tuple[str, Path]) -> None:
    kind, exp = trained
    history = json.loads((exp / "history.json").read_text())
    for record in history:
        for name in ("train", "valid"):
            assert record[name].keys() == {"ctc"} and 0 < record[name]["ctc"] < 100
    log = "".join(path.read_text() for path in (exp / "log").iterdir())
    losses = [float(x) for x in re.findall(r"epoch 1, step \d: ctc ([^ ]+) per token", log)]
    assert len(losses) == 8 and sum(losses[-2:]) < 0.9 * sum(losses[:2])
    content = last_of(exp)
    assert content["config"]["heads"] == ["ctc"]
    names = {
        n for n in content["model"] if not n.startswith(("encoder.xlsr.", "encoder.adapter."))
    }
    weighted = {"encoder.layer_weights"} if kind == "weighted" else set()
    assert names == {"heads.ctc.output.weight", "heads.ctc.output.bias"} | weighted
    assert any(n.startswith("encoder.adapter.") for n in content["model"]) == ("adapter" in kind)


def test_a_resumed_training_ends_with_the_same_bits(
    trained: tuple[str, Path], corpus: Path, tmp_path: Path
) -> None:
    kind, exp = trained
    shutil.copy(exp / "checkpoint-4.pt", tmp_path)
    run_train(corpus, tmp_path, *options_of(kind, corpus), "--resume=auto")
    straight, resumed = last_of(exp), last_of(tmp_path)
    assert all(torch.equal(v, resumed["model"][k]) for k, v in straight["model"].items())
    assert all(torch.equal(v, resumed["model_avg"][k]) for k, v in straight["model_avg"].items())
    assert str(straight["optimizer"]["state"]) == str(resumed["optimizer"]["state"])


def test_what_it_trains_is_what_it_is_to_train(trained: tuple[str, Path], corpus: Path) -> None:
    kind, exp = trained
    before = read_checkpoint(exp / "checkpoint-4.pt")["model"]
    after = last_of(exp)["model"]
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    head = {n for n in after if n.startswith(("heads.", "encoder.adapter.", "encoder.layer_w"))}
    assert head <= changed
    assert bool(changed - head) == (kind != "weighted"), "with weighted layers XLSR is frozen"
    assert not any("feature_extractor" in name for name in changed)


def test_decoding_chunk_by_chunk_gives_the_tokens_of_whole_utterances(
    trained: tuple[str, Path], corpus: Path
) -> None:
    kind, exp = trained
    words = [f"--exp-dir={exp}", f"--data-dir={corpus}", "--split=test_seen"]
    with torch.no_grad():  # after eight updates all is blank: this head answers to every frame
        content = read_checkpoint(exp / "best-valid-wer.pt")
        weight = content["model"]["heads.ctc.output.weight"]
        weight.normal_(generator=torch.Generator().manual_seed(1))
        content["model"]["heads.ctc.output.bias"].zero_()
        torch.save(content, exp / "sharp.pt")
    decode.main([*words, f"--checkpoint={exp / 'sharp.pt'}"])
    [whole] = (exp / "ctc_greedy_search").glob("tokens-test_seen-*")
    assert sum(len(line.split()) for line in whole.read_text().splitlines()) > 20
    if "streaming" not in kind and kind != "weighted":
        with pytest.raises(UserError, match="full-context|--streaming|stream"):
            streaming_decode.main([*words, f"--checkpoint={exp / 'sharp.pt'}"])
        return
    streaming_decode.main([*words, f"--checkpoint={exp / 'sharp.pt'}"])
    [chunked] = (exp / "streaming" / "ctc_greedy_search").glob("tokens-test_seen-*")
    assert compare_decodes.main([str(whole), str(chunked)]) == 0


def test_the_loss_is_that_of_hugging_faces_class_with_the_same_weights() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {n: getattr(TINY, n) for n in TINY.__dataclass_fields__}
    config = transformers.Wav2Vec2Config(
        **shape, vocab_size=9, pad_token_id=0, ctc_loss_reduction="sum", ctc_zero_infinity=True
    )
    theirs = transformers.Wav2Vec2ForCTC(config).eval()
    encoder = XLSREncoder(TINY, EncoderOptions(adapter="none"), normalize="none")
    heads = make_heads(["ctc"], encoder.output_dim, TransducerOptions(), 9)
    ours = SpeechModel(encoder, heads).eval()
    with torch.no_grad():
        x = torch.randn(3, 9000)
        lens = torch.tensor([9000, 6500, 4321])
        theirs(x[:1])
        convolution = theirs.wav2vec2.encoder.pos_conv_embed.conv
        weights = {k: v for k, v in theirs.wav2vec2.state_dict().items() if "pos_conv" not in k}
        position = "encoder.pos_conv_embed.conv."
        weights.update(
            {position + "weight": convolution.weight, position + "bias": convolution.bias}
        )
        encoder.xlsr.load_state_dict(weights)
        ours.ctc_output.load_state_dict(theirs.lm_head.state_dict())
        # 13 frames, and 15 tokens: no path, which counts nothing there and is infinite here.
        y = torch.randint(1, 9, (3, 15))
        y[0, 4:] = y[1, 9:] = 0
        y_lens = torch.tensor([4, 9, 15])
        found = ours(x, lens, y, y_lens, LossOptions(heads="ctc")).ctc
        labels = torch.where(torch.arange(15) < y_lens.unsqueeze(1), y, -100)
        mask = torch.arange(9000) < lens.unsqueeze(1)
        each = [
            theirs(x[i : i + 1, :n], labels=labels[i : i + 1]).loss for i, n in enumerate(lens)
        ]
        together = theirs(x.masked_fill(~mask, 0.0), mask.long(), labels=labels).loss
    assert found[2] == float("inf") and each[2] == 0.0
    torch.testing.assert_close(found[:2], torch.stack(each[:2]), rtol=1e-5, atol=0)
    assert float(found[:2].sum()) == pytest.approx(float(together), rel=1e-5)


def test_gradients_are_those_of_torchs_loss_and_an_impossible_utterance_has_none() -> None:
    torch.manual_seed(0)
    head = CtcHead(6, 5).double()
    x = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    lens, y_lens = torch.tensor([7, 4, 3]), torch.tensor([3, 1, 3])
    y = torch.tensor([[1, 2, 2], [4, 0, 0], [3, 3, 1]])  # the last needs 4 frames
    options = LossOptions(heads="ctc")
    loss = head.losses(x, lens, y, y_lens, options)["ctc"]
    assert loss.isfinite().tolist() == [True, True, False]
    is_finite = loss.isfinite()
    torch.where(is_finite, loss, torch.zeros_like(loss)).sum().backward()
    found, x.grad = x.grad, None
    for i in range(2):
        one = head.output(x[i, : lens[i]]).log_softmax(-1)
        F.ctc_loss(one, y[i, : y_lens[i]], lens[i], y_lens[i], 0, "sum").backward()
    torch.testing.assert_close(found, x.grad)
    assert not bool(found[2].any()) and not bool(found[1, 4:].any())


@knows_layer_norm
def test_bfloat16_of_the_encoder_leaves_the_loss_in_float32(corpus: Path, tmp_path: Path) -> None:
    run_train(corpus, tmp_path, *CTC, "--adapter=none", "--use-bf16=1", "--num-updates=2")
    [record] = json.loads((tmp_path / "history.json").read_text())
    assert 0 < record["train"]["ctc"] < 100 and 0 < record["valid"]["ctc"] < 100


@pytest.mark.parametrize(
    "options, message",
    [
        (["--heads=ctcs"], "--heads ctcs: 'ctcs' is none of transducer, ctc, classifier"),
        (["--heads=ctc,"], "--heads ctc,: '' is none of"),
        (["--heads=ctc,classifier"], "--heads ctc,classifier: a classifier stands alone"),
        (["--heads=ctc", "--ctc-loss-scale=0"], "--heads ctc contradicts --ctc-loss-scale 0"),
        (["--weighted-layers=1", "--trainable-layers=1"], "--weighted-layers 1.*-layers 1"),
        (["--weighted-layers=1", "--lora-rank=2"], "--weighted-layers 1.*--lora-rank 2"),
        (["--weighted-layers=1", "--layerdrop=0.1"], "--weighted-layers 1.*--layerdrop 0.1"),
    ],
)
def test_options_that_contradict_each_other_are_refused_in_a_line(
    corpus: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_train(corpus, tmp_path, "--ctc-loss-scale=1", *options)
    assert not list(tmp_path.glob("*.pt"))


def test_options_of_an_adapter_are_idle_without_one() -> None:
    options = EncoderOptions(adapter="none", adapter_kernel=9, encoder_dim=99)
    assert XLSREncoder(TINY, options).output_dim == TINY.hidden_size
    assert OptimOptions(trainable_layers=0).trainable_layers == 0
