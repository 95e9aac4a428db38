"""Random CTC models of transformers' own class, saved to folders, and their texts by its pipeline.

The output layer answers to the encoder's deviations, so that texts are long and varied.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlsr_transducer.exporting.parity import built_in_audio

LETTERS = [*"abdehijklmnoprstuvõäöü", "'"]
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
LAST = [*LETTERS, "|", "[UNK]", "[PAD]"]  # the order of the usual notebook for XLS-R
SHAPE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    conv_dim=(16,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    conv_bias=True,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
)
GROUP_NORM = dict(conv_bias=False, feat_extract_norm="group", do_stable_layer_norm=False)


def waves() -> list[Tensor]:
    """Audio of several lengths, (n,) samples each; the shortest gives one frame."""
    return [wave for wave in built_in_audio() if len(wave) >= 400]


def write_folder(
    folder: Path,
    vocabulary: Sequence[str] = VOCABULARY,
    seed: int = 0,
    do_normalize: bool = True,
    shape: dict[str, Any] = {},  # noqa: B006  read only
    **tokenizer: Any,
) -> Path:
    """Writes a ``Wav2Vec2ForCTC`` with its processor.

    Args:
      vocabulary: token i is row i of the output. shape: changes of SHAPE.
      tokenizer: options of transformers' tokenizer.
    """
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder.mkdir(parents=True)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", **tokenizer}
    torch.manual_seed(seed)
    config = Wav2Vec2Config(
        **{**SHAPE, **shape},
        vocab_size=len(vocabulary),
        pad_token_id=vocabulary.index(names["pad_token"]),
    )
    model = Wav2Vec2ForCTC(config).eval()
    randomize(model)
    sharpen(model, do_normalize)
    model.save_pretrained(folder, safe_serialization=True)  # transformers 4.30 would not
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(vocabulary)}), encoding="utf-8"
    )
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True)
    theirs = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **names)
    Wav2Vec2Processor(extractor, theirs).save_pretrained(folder)
    return folder


def randomize(model: torch.nn.Module) -> None:
    """Every weight at random: ones and zeros would hide that two were swapped."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def sharpen(model: Any, do_normalize: bool) -> None:
    """Makes the output layer follow the encoder's deviations from its mean."""
    frames = []
    with torch.no_grad():
        for wave in waves():
            x = (wave - wave.mean()) / wave.std() if do_normalize else wave
            frames.append(model.wav2vec2(x.unsqueeze(0)).last_hidden_state[0])
        hidden, weight = torch.cat(frames), model.lm_head.weight
        weight.copy_(4 * torch.randn_like(weight) / (hidden.std(0) * hidden.shape[1] ** 0.5))
        model.lm_head.bias.copy_(-weight @ hidden.mean(0))


def texts_of_pipeline(folder: Path, waves: Sequence[Tensor], **options: Any) -> list[str]:
    """Returns the text of each utterance by transformers' pipeline."""
    from transformers import pipeline

    recognise = pipeline("automatic-speech-recognition", model=str(folder), **options)
    return [recognise({"raw": wave.numpy(), "sampling_rate": 16000})["text"] for wave in waves]
