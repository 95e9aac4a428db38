"""``--inf-check`` names the module where values stop being finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.heads import LossOptions, TransducerOptions, make_heads
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.xlsr_config import XlsrConfig
from xlsr_transducer.training.inf_check import InfCheck

LOSS = LossOptions(loss_backend="torch")


def tiny_model() -> SpeechModel:
    """Two layers, 16 wide, from front-end features 8 wide."""
    torch.manual_seed(0)
    config = XlsrConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    encoder = XLSREncoder(config, EncoderOptions(encoder_dim=16), "frontend")
    return SpeechModel(
        encoder,
        make_heads(["transducer", "ctc"], encoder.output_dim, TransducerOptions(16, 16), 10),
    )


def total_loss(model: SpeechModel) -> Tensor:
    """Of a ragged batch with an utterance of one frame."""
    x, lens = torch.randn(3, 20, 8), torch.tensor([20, 13, 1])
    y, y_lens = torch.randint(1, 10, (3, 4)), torch.tensor([4, 2, 0])
    losses = model(x, lens, y, y_lens, LOSS, ChunkSettings())
    return torch.stack(losses).sum()


def gradients(model: SpeechModel) -> list[Tensor]:
    torch.manual_seed(1)
    total_loss(model).backward()
    return [torch.zeros(1) if p.grad is None else p.grad for p in model.parameters()]


def test_a_healthy_step_passes_unchanged_and_a_removed_check_is_silent() -> None:
    plain, checked = tiny_model(), tiny_model()
    check = InfCheck(checked)
    assert all(torch.equal(a, b) for a, b in zip(gradients(plain), gradients(checked)))
    check.remove()
    with torch.no_grad():
        checked.joiner.output_linear.weight.fill_(float("nan"))
    total_loss(checked).backward()


@pytest.mark.parametrize(
    "name, bad",
    [
        ("encoder.xlsr.encoder.layers.1.feed_forward.intermediate_dense", float("nan")),
        ("encoder.xlsr.feature_projection.projection", float("inf")),
        ("heads.transducer.decoder.embedding", float("nan")),
    ],
)
def test_a_bad_weight_is_named_with_its_module(name: str, bad: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_submodule(name).weight.view(-1)[-1] = bad
        if name == "heads.transducer.decoder.embedding":
            model.decoder.embedding.weight[0, 0] = bad  # blank, which every utterance has
    InfCheck(model)
    with pytest.raises(UserError, match=rf"output of {name} is not finite .*parameter weight"):
        total_loss(model)


def test_an_activation_that_overflows_is_named_where_it_does() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.encoder.adapter.projection.weight.fill_(3e38)
    InfCheck(model)
    message = r"output of encoder.adapter.projection is .* input \(largest value .*are finite"
    with pytest.raises(UserError, match=message):
        total_loss(model)


def test_what_no_module_computed_is_told_by_the_module_before_it() -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).abs().neg().log())

    model = Between()
    InfCheck(model)
    with pytest.raises(UserError, match="output of second .*already: look after first"):
        model(torch.ones(3, 2))


class _BadGradient(torch.autograd.Function):
    """The identity, with a gradient that is not."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


def test_a_gradient_is_named_by_the_output_it_belongs_to(monkeypatch) -> None:
    model = tiny_model()
    layer = model.encoder.xlsr.encoder.layers["1"].feed_forward
    forward = layer.intermediate_dense.forward
    monkeypatch.setattr(
        layer.intermediate_dense, "forward", lambda x: forward(_BadGradient.apply(x))
    )
    InfCheck(model)
    loss = total_loss(model)
    name = "encoder.xlsr.encoder.layers.1.final_layer_norm"
    with pytest.raises(UserError, match=f"gradient with respect to the output of {name}"):
        loss.backward()


def test_a_gradient_of_a_parameter_alone_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    InfCheck(model)
    model[0].weight.requires_grad_(True)  # as when a frozen layer is thawed
    with torch.no_grad():
        model[0].weight.fill_(1e-30)
        model[0].bias.fill_(0.0)
    loss = (model(torch.full((4, 2), 1e38)) * 1e3).sum()
    with pytest.raises(UserError, match="gradient of the parameter 0.weight"):
        loss.backward()
