"""Tiny models that teach or are taught: random, from the waveform."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from tests.support.random_models import tokenizer
from tests.support.stream_driver import TINY
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, build_model
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.heads import TransducerOptions
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.teacher import Teacher
from xlsr_transducer.training.teacher_options import Scales

STREAMING = StreamingOptions(True, "8", "1", "2")


def config_of(
    heads: Sequence[str] = ("transducer", "ctc"),
    streaming: StreamingOptions = StreamingOptions(),  # noqa: B008  frozen
    layers: int = 2,
    **encoder: object,
) -> ModelConfig:
    """Returns a configuration with masks of a third of all frames."""
    given = {"encoder_dim": 32, "time_mask_prob": 0.4, "channel_mask_prob": 0.2, **encoder}
    return ModelConfig(
        features=FeatureInfo("random", "0" * 64, "waveform", "cumulative", 1),
        xlsr=dataclasses.replace(TINY, num_hidden_layers=layers),
        encoder=EncoderOptions(**given),
        transducer=TransducerOptions(decoder_dim=16, joiner_dim=32),
        streaming=streaming,
        vocab_size=tokenizer().vocab_size,
        heads=tuple(heads),
    )


def random_model(config: ModelConfig, seed: int = 0) -> SpeechModel:
    """Returns a model in training mode."""
    torch.manual_seed(seed)
    return build_model(config).train()


def teacher_of(
    config: ModelConfig,
    student: ModelConfig,
    seed: int = 1,
    scales: Scales = Scales(1.0, 1.0),  # noqa: B008  a tuple
) -> Teacher:
    """Returns a random model that teaches."""
    teacher = Teacher(scales, student)
    teacher.take(config, random_model(config, seed).state_dict(), torch.device("cpu"))
    return teacher
