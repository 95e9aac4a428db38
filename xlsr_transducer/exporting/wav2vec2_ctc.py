"""``wav2vec2_ctc.pt``: a transducer that stock sherpa serves from wav files as wav2vec 2.0.

sherpa hands raw audio to CTC models of the class ``Wav2Vec2Model`` and to nothing else. So this
one runs the greedy search inside and returns its tokens as logits that CTC decoding reads back.
Letters: N batch, n samples, T encoder frames of 40 ms, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.data.tokenizer import Tokenizer, read_tokens
from xlsr_transducer.exporting.formats import Artifact, Job
from xlsr_transducer.exporting.scripted import OfflineEncoder, save
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.exported import Output
from xlsr_transducer.recognition.script_models import load_script

MODEL, TOKENS = "wav2vec2_ctc.pt", "wav2vec2_ctc_tokens.txt"
SPACE = "|"  # sherpa refuses to load a tokens.txt without it


class Wav2Vec2Model(nn.Module):
    """Greedy search with one token per frame. sherpa must find no attribute ``joiner``."""

    def __init__(self, encoder: OfflineEncoder, model: SpeechModel):
        super().__init__()
        self.encoder = encoder
        self.prediction = model.decoder
        self.joint = model.joiner
        self.blank_id = model.decoder.blank_id
        self.context_size = model.decoder.context_size
        self.vocab_size = model.decoder.vocab_size

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tuple[Tensor, Tensor]:
        """Certain logits, two frames for each of the encoder's: its token or blank, then blank.

        Frames are thus 20 ms, as sherpa takes them to be, and equal neighbours stay two.

        Args:
          waveforms: (N, n) samples, anything beyond a row's length. lengths: (N,) int64.

        Returns:
          (N, 2 T, V) and lengths (N,).
        """
        encoder_out, lens = self.encoder(waveforms, lengths)
        tokens = self.search(encoder_out, lens)
        pairs = torch.stack((tokens, torch.full_like(tokens, self.blank_id)), dim=2).flatten(1)
        return 100.0 * F.one_hot(pairs, self.vocab_size).to(encoder_out.dtype), 2 * lens

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
    """Writes the files into ``folder``."""
    model = job.loaded.model
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
        outputs.append(ctc_output(logits[0, : lens[0]].argmax(-1).tolist()))
    return outputs


def ctc_output(best: list[int], blank_id: int = 0) -> Output:
    """Repeats and blanks taken out of the best token of each 20 ms frame."""
    before = [blank_id, *best]
    starts = [i for i, token in enumerate(best) if token not in (blank_id, before[i])]
    return Output([best[i] for i in starts], [i // 2 for i in starts])
