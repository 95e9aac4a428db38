"""Only the encoder has fewer bits: all after it, losses above all, is float32."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.support.noise_corpus import TINY
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.heads import LossOptions, TransducerOptions, make_heads
from xlsr_transducer.model.heads.ctc import consistency
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.xlsr_config import XlsrConfig
from xlsr_transducer.training.options import LoopOptions

VOCAB = 20
CONFIG = XlsrConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in TINY.items()})
LOSS = LossOptions(ctc_loss_scale=0.2, loss_backend="torch")


def tiny_model(**encoder) -> SpeechModel:
    torch.manual_seed(0)
    values = {"encoder_dim": 24, "dropout": 0.0, "xlsr_dropout": 0.0, "time_mask_prob": 0.0}
    options = EncoderOptions(**{**values, **encoder})
    network = XLSREncoder(CONFIG.without_dropout(), options, "frontend")
    sizes = TransducerOptions(decoder_dim=24, joiner_dim=24)
    return SpeechModel(
        network, make_heads(["transducer", "ctc"], network.output_dim, sizes, VOCAB)
    )


def tiny_batch(frames: int = 200) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    x = torch.randn(3, frames, 16)
    y = torch.randint(1, VOCAB, (3, 12))
    return x, torch.tensor([frames, frames - 31, 40]), y, torch.tensor([12, 5, 0])


knows_layer_norm = pytest.mark.skipif(
    torch.__version__.startswith("1."),
    reason="autocast of PyTorch 1.13 fails at layer norm on a CPU",
)


class Given(torch.nn.Module):
    """An encoder whose output is known."""

    output_dim = 24

    def __init__(self, out: torch.Tensor, lens: torch.Tensor):
        super().__init__()
        self.out, self.lens = out, lens

    def draw_masks(self, x: torch.Tensor) -> tuple[None, None]:
        return None, None

    def forward(self, *args) -> tuple[torch.Tensor, torch.Tensor]:
        return self.out, self.lens


@knows_layer_norm
def test_losses_under_autocast_are_float32_losses_of_the_rounded_encoder_output() -> None:
    model, batch = tiny_model().eval().requires_grad_(False), tiny_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lens = model.encoder(*batch[:2])
        found = model(*batch, LOSS)
    plain = model(*batch, LOSS)
    model.encoder = Given(out.float(), lens)
    expected = model(*batch, LOSS)
    for name in ("simple", "pruned", "ctc"):
        value, exact = getattr(found, name), getattr(expected, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-5)
        # And the encoder did run in bfloat16, which shows, a little.
        drift = (value - getattr(plain, name)).abs() / value.abs().clamp(min=1.0)
        assert 1e-6 < drift.max().item() < 0.02, name


@knows_layer_norm
def test_gradients_reach_the_encoder_under_autocast_and_are_close() -> None:
    grads = []
    for enabled in (False, True):
        model = tiny_model().train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = model(*tiny_batch(), LOSS)
        LOSS.weighted(losses, 10_000).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()
                                if p.grad is not None]))  # fmt: skip
        assert grads[-1].dtype == torch.float32
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) < 0.05


def gpu(monkeypatch: pytest.MonkeyPatch, capability: int) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    return SimpleNamespace(type="cuda")


@pytest.mark.parametrize(
    "options, capability, dtype",
    [
        ({}, 9, torch.bfloat16),
        ({}, 8, torch.bfloat16),
        ({}, 7, None),
        ({"use_bf16": False}, 9, None),
        ({"use_fp16": True}, 9, torch.float16),
        ({"use_fp16": True, "use_bf16": False}, 7, torch.float16),
        ({"use_bf16": True}, 7, torch.bfloat16),
    ],
)
def test_bfloat16_is_the_default_where_the_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch, options: dict, capability: int, dtype: torch.dtype | None
) -> None:
    assert LoopOptions(**options).autocast_dtype(gpu(monkeypatch, capability)) == dtype


def test_a_cpu_computes_in_float32_unless_told_otherwise_and_never_in_float16() -> None:
    cpu = torch.device("cpu")
    assert LoopOptions().autocast_dtype(cpu) is None
    assert LoopOptions(use_bf16=True).autocast_dtype(cpu) == torch.bfloat16
    with pytest.raises(UserError, match="--use-fp16 1 needs a GPU"):
        LoopOptions(use_fp16=True).autocast_dtype(cpu)


def test_views_that_are_equal_are_consistent() -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(2, 7, 5).log_softmax(-1)
    lens = torch.tensor([7, 4])
    loss = consistency(torch.cat((log_probs, log_probs)), torch.cat((lens, lens)))
    assert float(loss.abs().max()) < 1e-6


def test_consistency_is_the_mean_divergence_of_the_views_over_valid_frames() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 6, 5, dtype=torch.float64).log_softmax(-1)
    lens = torch.tensor([6, 2, 0])
    found = consistency(torch.cat((first, second)), torch.cat((lens, lens)))
    for i, n in enumerate(lens):
        p, q = first[i, :n].exp(), second[i, :n].exp()
        of_first = (q * (q.log() - p.log())).sum()
        of_second = (p * (p.log() - q.log())).sum()
        torch.testing.assert_close(found[[i, i + 3]], torch.stack((of_first, of_second)))


def test_each_view_learns_from_the_other_and_not_the_other_from_it() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)
    lens = torch.tensor([6, 2, 6, 2])
    consistency(logits.log_softmax(-1), lens)[:2].sum().backward()
    student, teacher = logits.grad[:2], logits.grad[2:]
    assert float(teacher.abs().max()) == 0.0
    p, q = logits.detach().softmax(-1)[:2], logits.detach().softmax(-1)[2:]
    torch.testing.assert_close(student[0], p[0] - q[0])
    assert float(student[1, 2:].abs().max()) == 0.0


def test_two_views_train_on_means_and_one_view_is_validated() -> None:
    options = LossOptions(ctc_loss_scale=0.2, cr_ctc_scale=0.2, loss_backend="torch")
    same = tiny_model().train()  # nothing random: both views are the same
    once, twice = same(*tiny_batch(), LOSS), same(*tiny_batch(), options)
    for name in ("simple", "pruned", "ctc"):
        torch.testing.assert_close(getattr(once, name), getattr(twice, name))
    assert float(twice.consistency.detach().abs().max()) < 1e-3
    masked = tiny_model(time_mask_prob=0.3).train()
    losses = masked(*tiny_batch(), options)
    assert {len(x) for x in losses} == {3} and losses.consistency.min().item() > 1e-4
    weighted = options.weighted(losses, 10**6) - LOSS.weighted(losses, 10**6)
    torch.testing.assert_close(weighted, 0.2 * losses.consistency, rtol=1e-3, atol=1e-5)
    assert not bool(masked.eval()(*tiny_batch(), options).consistency.any())


def test_consistency_without_a_ctc_head_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="--cr-ctc-scale 0.2 needs the CTC head"):
        LossOptions(cr_ctc_scale=0.2)


@pytest.mark.parametrize("topology", ["regular", "modified", "constrained"])
def test_losses_that_have_no_path_are_infinite_and_change_no_gradient(topology: str) -> None:
    """8 XLSR frames are 4 of the encoder: CTC needs 5 for three tokens of which two are equal
    neighbours, twice; the other topologies need a frame for each token."""
    model = tiny_model().eval()
    options = LossOptions(ctc_loss_scale=0.2, loss_backend="torch", rnnt_type=topology)
    x, lens = torch.randn(3, 8, 16), torch.tensor([8, 8, 8])
    y = torch.tensor([[1, 2, 3, 4, 5], [1, 1, 1, 9, 9], [1, 2, 3, 4, 0]])
    y_lens = torch.tensor([5, 3, 4])
    losses = model(x, lens, y, y_lens, options)
    assert losses.ctc.isfinite().tolist() == [False, False, True]
    has_path = [topology == "regular", True, True]
    assert losses.simple.isfinite().tolist() == losses.pruned.isfinite().tolist() == has_path
    total = options.weighted(losses, 0)
    torch.where(total.isfinite(), total, torch.zeros_like(total)).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    options.weighted(model(x[2:], lens[2:], y[2:, :4], y_lens[2:], options), 0).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
