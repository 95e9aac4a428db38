"""``wav2vec2_ctc.pt``: a model that stock sherpa serves from wav files as wav2vec 2.0.

sherpa hands raw audio to CTC models of the class ``Wav2Vec2Model`` and to nothing else. A CTC
head gives its logits; a transducer runs its greedy search inside and returns its tokens as logits
that CTC decoding reads back. Letters: N batch, n samples, T encoder frames, E width of the
encoder, V vocabulary, R frames of 20 ms in an encoder frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.tokenizer import Tokenizer, read_tokens
from xlsr_transducer.exporting.formats import Artifact, Job
from xlsr_transducer.exporting.scripted import OfflineEncoder, save
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.exported import Output, without_repeats
from xlsr_transducer.recognition.script_models import load_script

MODEL, TOKENS = "wav2vec2_ctc.pt", "wav2vec2_ctc_tokens.txt"
SPACE = "|"  # sherpa refuses to load a tokens.txt without it


class Wav2Vec2Model(nn.Module):
    """sherpa asks for this name, and must find no attribute ``joiner``."""

    def __init__(self, encoder: OfflineEncoder, model: SpeechModel):
        super().__init__()
        self.encoder = encoder
        self.frames_per_encoder_frame = model.encoder.subsampling_factor
        self.logits = GreedyLogits(model) if model.joiner is not None else CtcLogits(model)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tuple[Tensor, Tensor]:
        """Returns logits in frames of 20 ms, as sherpa takes them to be.

        Args:
          waveforms: (N, n) samples, anything beyond a row's length. lengths: (N,) int64.

        Returns:
          (N, R T, V) and lengths (N,).
        """
        encoder_out, lens = self.encoder(waveforms, lengths)
        return self.logits(encoder_out, lens), self.frames_per_encoder_frame * lens


class CtcLogits(nn.Module):
    """The logits of a CTC head; those of a frame of 40 ms twice, which CTC reads as one token."""

    def __init__(self, model: SpeechModel):
        super().__init__()
        self.output = model.ctc_output
        self.repeats = model.encoder.subsampling_factor

    def forward(self, encoder_out: Tensor, lens: Tensor) -> Tensor:
        """(N, T, E) and lengths (N,) -> (N, R T, V)."""
        return self.output(encoder_out).repeat_interleave(self.repeats, dim=1)


class GreedyLogits(nn.Module):
    """Greedy search with one token per frame, for frames of 40 ms."""

    def __init__(self, model: SpeechModel):
        super().__init__()
        self.prediction = model.decoder
        self.joint = model.joiner
        self.blank_id = model.decoder.blank_id
        self.context_size = model.decoder.context_size
        self.vocab_size = model.decoder.vocab_size

    def forward(self, encoder_out: Tensor, lens: Tensor) -> Tensor:
        """Certain logits, two frames for each of the encoder's: its token or blank, then blank.

        Equal neighbours thus stay two. (N, T, E) and lengths (N,) -> (N, 2 T, V).
        """
        tokens = self.search(encoder_out, lens)
        pairs = torch.stack((tokens, torch.full_like(tokens, self.blank_id)), dim=2).flatten(1)
        return 100.0 * F.one_hot(pairs, self.vocab_size).to(encoder_out.dtype)

    def search(self, encoder_out: Tensor, lens: Tensor) -> Tensor:
        """Returns the token of each frame, or blank: (N, T) int64."""
        encoder_side = self.joint.encoder_proj(encoder_out)
        batch, frames = encoder_side.shape[0], encoder_side.shape[1]
        context = torch.full((batch, self.context_size), -1, device=lens.device)
        context[:, -1] = self.blank_id
        decoder_side = self.joint.decoder_proj(self.prediction(context, False)[:, 0])
        tokens = torch.full((batch, frames), self.blank_id, device=lens.device)
        for t in range(frames):
            best = self.joint(encoder_side[:, t], decoder_side, False).argmax(-1)
            emits = (best != self.blank_id) & (t < lens)
            if bool(emits.any()):
                tokens[:, t] = torch.where(emits, best, tokens[:, t])
                longer = torch.cat((context[:, 1:], best.unsqueeze(1)), dim=1)
                context = torch.where(emits.unsqueeze(1), longer, context)
                decoder_side = self.joint.decoder_proj(self.prediction(context, False)[:, 0])
        return tokens


def write(job: Job, folder: Path) -> list[Artifact]:
    """Writes the files into ``folder``.

    Raises:
      UserError: a transducer has frames of 20 ms, without room for the blank between two tokens.
    """
    model = job.loaded.model
    if model.joiner is not None and model.encoder.subsampling_factor == 1:
        raise UserError(
            "--wav2vec2-ctc 1: sherpa's frames of 20 ms hold a token and a blank of an encoder "
            "frame of 40 ms, and this transducer has --adapter none; export it with --jit 1"
        )
    module = Wav2Vec2Model(OfflineEncoder(model.encoder, job.chunk), model)
    save(torch.jit.script(module.eval()), folder / MODEL, job.loaded.tokenizer.tokens)
    write_tokens(job.loaded.tokenizer, folder / TOKENS)
    return [Artifact((MODEL, TOKENS), run, job.chunk)]


def write_tokens(tokenizer: Tokenizer, path: Path) -> None:
    """tokens.txt with one more line, for the symbol that sherpa asks for."""
    tokenizer.write_tokens(path)
    if SPACE not in tokenizer.tokens:
        with open(path, "a", encoding="utf-8") as f:
            f.write(f"{SPACE} {tokenizer.vocab_size}\n")


def run(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Runs the file, and reads its logits as CTC decoding does."""
    model = load_script(files[0])
    if SPACE not in read_tokens(files[1]):
        raise ValueError(f"{files[1]} lacks {SPACE}")
    outputs = []
    for wave in waves:
        with torch.no_grad():
            logits, lens = model(wave.unsqueeze(0), torch.tensor([len(wave)]))
        best = logits[0, : lens[0]].argmax(-1).tolist()
        outputs.append(without_repeats(best, model.frames_per_encoder_frame))
    return outputs
