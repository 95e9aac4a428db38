"""A CTC model as a folder of Hugging Face's ``Wav2Vec2ForCTC``, with processor and tokenizer.

``transformers.pipeline("automatic-speech-recognition", model=FOLDER)`` gives decode's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import RECEPTIVE_FIELD, SAMPLING_RATE
from xlsr_transducer.data.tokenizer import BLANK, SOS_EOS, UNK, WORD_START, Tokenizer
from xlsr_transducer.exporting.formats import Artifact, Job
from xlsr_transducer.exporting.hugging_face_files import (
    PREPROCESSOR_CONFIG,
    TOLERANCE,
    config_of,
    hugging_face_weights,
    write_files,
)
from xlsr_transducer.exporting.model_card import CTC_MODEL, model_card
from xlsr_transducer.model.checkpoint import LoadedModel
from xlsr_transducer.model.config import ModelConfig
from xlsr_transducer.model.foreign import NEVER
from xlsr_transducer.recognition.exported import Output, recognise
from xlsr_transducer.recognition.torch_models import offline
from xlsr_transducer.search import SearchOptions

# config.json last: it tells that the rest is there.
FILES = (
    "model.safetensors",
    "README.md",
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "config.json",
)
PREFIX = "wav2vec2."
DELIMITER, PAD = "|", "<pad>"


def write(job: Job, folder: Path) -> list[Artifact]:
    """Writes the files into ``folder``.

    Raises:
      UserError: Hugging Face's class cannot compute this model.
    """
    loaded = job.loaded
    require_expressible(loaded, job.chunk.is_full_context)
    names = names_of(loaded)
    weights = {
        PREFIX + name: value
        for name, value in hugging_face_weights(loaded.model.encoder.xlsr).items()
    }
    rows, output = list(names), loaded.model.ctc_output
    weights["lm_head.weight"] = output.weight.detach()[rows].clone()
    weights["lm_head.bias"] = output.bias.detach()[rows].clone()
    files = _files(loaded.config, names)
    write_files(folder, weights, model_card(job, CTC_MODEL), files)

    def expected(waves: Sequence[Tensor]) -> list[Output]:
        outputs = recognise(offline(loaded, job.chunk), waves, SearchOptions())
        texts_of = loaded.tokenizer.decode
        return [_output(texts_of(o.tokens), o.encoder_out) for o in outputs]

    return [
        Artifact(
            FILES, run, job.chunk, tolerance=TOLERANCE, expected=expected, home=job.options.hf
        )
    ]


def require_expressible(loaded: LoadedModel, is_full_context: bool) -> None:
    """Refuses what Hugging Face's class has not.

    Raises:
      UserError: names it, and what to train instead.
    """
    config, letters = loaded.config, set(loaded.tokenizer.tokens) - {WORD_START}
    problems = {
        "--adapter conv: train with --adapter none": config.encoder.adapter != "none",
        "--weighted-layers 1: train with --weighted-layers 0": config.encoder.weighted_layers,
        "--normalize cumulative: train with --normalize utterance": (
            config.features.normalize == "cumulative"
        ),
        "chunks: export it in full context, with --decode-chunk-len -1": not is_full_context,
        "BPE pieces: train on letters, made by prepare.sh --unit char": any(
            WORD_START in letter for letter in letters
        ),
        "language tokens, which it would print: train with --language-token 0": bool(
            loaded.tokenizer.languages
        ),
        # transformers 5.23 reads no other delimiter from a folder.
        f"letter {DELIMITER}, its boundary of words: prepare texts with --punctuation drop": (
            DELIMITER in letters
        ),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise UserError(f"--hf: Wav2Vec2ForCTC has no {problem}")


def names_of(loaded: LoadedModel) -> dict[int, str]:
    """Returns the name in vocab.json of each token, without those that are never emitted."""
    tokens, biases = loaded.tokenizer.tokens, loaded.model.ctc_output.bias.tolist()
    taken = set(tokens[3:])
    named = {BLANK: PAD, SOS_EOS: "<s>", UNK: _unk_name(loaded.tokenizer), WORD_START: DELIMITER}
    names = {}
    for i, token in enumerate(tokens):
        name = named.get(token, token)
        if token in named and name in taken - {token}:
            name = token
        if biases[i] > NEVER / 2:
            names[i] = name
    return names


def _unk_name(tokenizer: Tokenizer) -> str:
    """The text of an unknown token where a foreign vocabulary has named it."""
    text = tokenizer.decode([tokenizer.unk_id])
    return UNK if text == "\u2047" else text


def _files(config: ModelConfig, names: dict[int, str]) -> dict[str, dict[str, Any]]:
    """Returns the JSON files of configuration, tokenizer and processor."""
    special = {
        "pad_token": names[Tokenizer.blank_id],
        "unk_token": names.get(Tokenizer.unk_id, UNK),
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    tokenizer = {
        **special,
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "word_delimiter_token": DELIMITER,
        "replace_word_delimiter_char": " ",
        "do_lower_case": False,
        "clean_up_tokenization_spaces": False,
    }
    preprocessor = {
        **PREPROCESSOR_CONFIG,
        "do_normalize": config.features.normalize == "utterance",
        # transformers' rule: models with group norm were trained without a mask of padding.
        "return_attention_mask": config.xlsr.feat_extract_norm == "layer",
    }
    network = config_of(
        config.xlsr,
        architectures=["Wav2Vec2ForCTC"],
        vocab_size=len(names),
        pad_token_id=0,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )
    vocabulary = {name: row for row, name in enumerate(names.values())}
    return dict(zip(FILES[2:], (vocabulary, tokenizer, special, preprocessor, network)))


def _output(text: str, hidden: Tensor) -> Output:
    """The characters of a text stand for tokens; a run of spaces counts as one."""
    return Output([ord(c) for c in " ".join(text.split())], [], hidden)


def run(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Recognises with transformers' classes alone.

    Raises:
      UserError: transformers does not find all weights.
    """
    from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

    folder = str(files[0].parent)
    processor = Wav2Vec2Processor.from_pretrained(folder)
    model, report = Wav2Vec2ForCTC.from_pretrained(folder, output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise UserError(f"{folder}: transformers reports {report}")
    outputs = []
    for wave in waves:
        if len(wave) < RECEPTIVE_FIELD:
            outputs.append(_output("", torch.zeros(0, 0)))
            continue
        inputs = processor(wave.numpy(), sampling_rate=SAMPLING_RATE, return_tensors="pt")
        with torch.no_grad():
            logits = model.eval()(inputs.input_values).logits
            # Versions differ in whether the last of their hidden_states is the output.
            hidden = model.wav2vec2(inputs.input_values).last_hidden_state
        [text] = processor.batch_decode(logits.argmax(-1))
        outputs.append(_output(text, hidden[0]))
    return outputs
