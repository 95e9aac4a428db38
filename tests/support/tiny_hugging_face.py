"""Random models of transformers' three kinds of recognisers, saved to folders; nothing is loaded
from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import torch

LETTERS = "abcdefgh"
ENCODER = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    conv_dim=(16,) * 7,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
)


def write_ctc(folder: Path) -> Path:
    """Writes a wav2vec 2.0 with a CTC head over letters."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder.mkdir(parents=True)
    vocabulary = {t: i for i, t in enumerate(["<pad>", "<unk>", "|", *LETTERS])}
    path = folder / "letters.json"
    path.write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(path), pad_token="<pad>", unk_token="<unk>")
    torch.manual_seed(0)
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(vocabulary), **ENCODER)).save_pretrained(folder)
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer)
    processor.save_pretrained(folder)
    return folder


def write_encoder_decoder(folder: Path) -> Path:
    """Writes a wav2vec 2.0 encoder with a text decoder, as XLS-R's translation models are."""
    from transformers import (
        BartConfig,
        BartForCausalLM,
        SpeechEncoderDecoderModel,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
    )

    tokenizer = _words()
    torch.manual_seed(0)
    decoder = BartConfig(
        vocab_size=len(tokenizer), d_model=16, decoder_layers=1, decoder_attention_heads=2,
        decoder_ffn_dim=16, max_position_embeddings=64, is_decoder=True,
        add_cross_attention=True)  # fmt: skip
    model = SpeechEncoderDecoderModel(
        encoder=Wav2Vec2Model(Wav2Vec2Config(**ENCODER)), decoder=BartForCausalLM(decoder)
    )
    given = dict(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, bos_token_id=1)
    for config in (model.config, model.generation_config):
        for name, value in given.items():
            setattr(config, name, value)
    model.generation_config.max_length = 6
    model.generation_config.suppress_tokens = [0, 1, 2, 3]
    model.generation_config.forced_eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def write_translator(folder: Path) -> Path:
    """Writes a wav2vec 2.0 encoder with an mBART decoder, whose first token is the language."""
    from transformers import (
        MBart50Tokenizer,
        MBartConfig,
        MBartForCausalLM,
        SpeechEncoderDecoderModel,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
    )

    words = ["\u2581one", "\u2581two", "\u2581eins", "\u2581zwei", "\u2581drei", "!"]
    tokenizer = MBart50Tokenizer(vocab=[(w, -1.0) for w in ["<unk>", "<s>", "</s>", *words]])
    torch.manual_seed(0)
    decoder = MBartConfig(
        vocab_size=len(tokenizer), d_model=16, decoder_layers=2, decoder_attention_heads=2,
        decoder_ffn_dim=16, max_position_embeddings=64, is_decoder=True, init_std=1.0,
        add_cross_attention=True)  # fmt: skip
    model = SpeechEncoderDecoderModel(
        encoder=Wav2Vec2Model(Wav2Vec2Config(**ENCODER)), decoder=MBartForCausalLM(decoder)
    )
    given = dict(decoder_start_token_id=2, pad_token_id=1, eos_token_id=2, bos_token_id=0)
    for config in (model.config, model.generation_config):
        for name, value in given.items():
            setattr(config, name, value)
    model.generation_config.max_length = 24
    model.generation_config.forced_eos_token_id = None
    model.generation_config.suppress_tokens = [0, 1, 2, 3]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def write_whisper(folder: Path) -> Path:
    """Writes a Whisper."""
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    special = ["<|endoftext|>", "<|startoftranscript|>", "<|et|>", "<|en|>", "<|transcribe|>"]
    special += ["<|translate|>", "<|nospeech|>", "<|notimestamps|>", "<|0.00|>", "<|30.00|>"]
    vocabulary = {token: i for i, token in enumerate([*LETTERS, "\u0120"])}
    tokenizer = WhisperTokenizer(
        vocab=vocabulary, merges=[], unk_token=special[0], bos_token=special[0],
        eos_token=special[0], pad_token=special[0])  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    end, start = ids[special[0]], ids[special[1]]
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_target_positions=32, decoder_start_token_id=start,
        bos_token_id=end, eos_token_id=end, pad_token_id=end, suppress_tokens=None,
        begin_suppress_tokens=None)  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    settings = model.generation_config
    settings._from_model_config = False  # or the settings below would be made anew
    settings.max_length, settings.suppress_tokens = 12, sorted(ids.values())
    settings.is_multilingual, settings.no_timestamps_token_id = True, ids["<|notimestamps|>"]
    settings.lang_to_id = {token: ids[token] for token in ("<|et|>", "<|en|>")}
    settings.task_to_id = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def _words():
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", "Tere,", "ema", "on", "kodus.", "Ilm", "hea"]
    tokenizer = Tokenizer(WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>")  # fmt: skip
