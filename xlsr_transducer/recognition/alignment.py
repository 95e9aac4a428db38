"""Forced alignment: the best path of a given text through the transducer's lattice or CTC's.

The transducer's: a state is (t, s): frame t, s tokens emitted. Blank leads to (t + 1, s). Where
the next token leads depends on the type of the loss: `regular` to (t, s + 1), so that a frame
may hold any number of tokens; `modified` to (t + 1, s + 1); `constrained` likewise, with a blank
after the token. Source: A. Graves, "Sequence transduction with recurrent neural networks", 2012.

CTC's: each frame has one label of `blank, token, blank, token, ..., blank`, from left to right;
only a blank between different tokens may be left out. Source: A. Graves et al., "Connectionist
temporal classification", ICML 2006.

Letters: N utterances, T frames, S tokens, L = 2 S + 1 labels of CTC, J joiner width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.model.heads.ctc import BLANK_ID
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.search.base import CTC_NORM
from xlsr_transducer.search.hypothesis import Hypothesis

# Elements of logits made at a time.
CHUNK_ELEMENTS = 2**24
NEVER = -float("inf")


@torch.no_grad()
def align(
    model: SpeechModel,
    encoder_out: Tensor,
    lens: Tensor,
    tokens: Tensor,
    token_lens: Tensor,
    rnnt_type: str = "regular",
) -> list[Hypothesis]:
    """Finds the most probable frames of given tokens.

    Args:
      encoder_out: (N, T, D); lens: (N,) int64 frames.
      tokens: (N, S) int64 without blanks, anything beyond token_lens; token_lens: (N,) int64.

    Returns:
      For each utterance its tokens with frames and log-probs, and the log-prob of the path as
      score, which is -inf, without any tokens, where there is no path.
    """
    tokens = _without_padding(tokens, token_lens, model.decoder.blank_id)
    blank, emit = lattice_log_probs(model, encoder_out[:, : int(lens.max())], tokens)
    score, frames = best_path(blank, emit, lens, token_lens, rnnt_type)
    norm = model.decoder.context_size
    return _hypotheses(tokens, token_lens, score, frames, emit, norm)


@torch.no_grad()
def align_ctc(
    model: SpeechModel, encoder_out: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor
) -> list[Hypothesis]:
    """Returns the same as ``align`` by the CTC head, which the model has to have; a transducer
    it may lack.

    A token's frame is the first one that has it as its label.
    """
    tokens = _without_padding(tokens, token_lens, BLANK_ID)
    logits = model.ctc_output(encoder_out[:, : int(lens.max())])
    log_probs = logits.double().log_softmax(-1)
    score, frames = ctc_best_path(log_probs, lens, tokens, token_lens, BLANK_ID)
    emit = log_probs.gather(2, tokens.unsqueeze(1).expand(-1, log_probs.shape[1], -1))
    return _hypotheses(tokens, token_lens, score, frames, emit, CTC_NORM)


def _without_padding(tokens: Tensor, token_lens: Tensor, blank_id: int) -> Tensor:
    """Returns (N, S) with S the longest of ``token_lens``, and blanks beyond each of them."""
    tokens = tokens[:, : int(token_lens.max())]
    is_token = torch.arange(tokens.shape[1], device=tokens.device) < token_lens.unsqueeze(1)
    return tokens.masked_fill(~is_token, blank_id)


def _hypotheses(
    tokens: Tensor, token_lens: Tensor, score: Tensor, frames: Tensor, emit: Tensor, norm: int
) -> list[Hypothesis]:
    """Returns paths as hypotheses; ``emit`` (N, T, S) has the log-prob of each token in each
    frame."""
    found = []
    for n, count in enumerate(token_lens.tolist()):
        value = float(score[n])
        if value == NEVER:
            found.append(Hypothesis(score=NEVER, norm_score=NEVER))
            continue
        at = frames[n, :count]
        log_probs = emit[n, at, torch.arange(count, device=at.device)].tolist()
        emitted = tokens[n, :count].tolist()
        found.append(Hypothesis(emitted, at.tolist(), value, log_probs, value / (count + norm)))
    return found


def lattice_log_probs(
    model: SpeechModel, encoder_out: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the log-probs of blank (N, T, S + 1) and of each next token (N, T, S), in float64.

    Args:
      encoder_out: (N, T, D); tokens: (N, S) int64.
    """
    blank_id = model.decoder.blank_id
    # As in training: the first context ends in a blank.
    decoder_out = model.decoder(F.pad(tokens, (1, 0), value=blank_id))
    decoder_side = model.joiner.decoder_proj(decoder_out).unsqueeze(1)
    encoder_side = model.joiner.encoder_proj(encoder_out).unsqueeze(2)
    num_streams, num_tokens = tokens.shape
    per_frame = num_streams * (num_tokens + 1) * model.decoder.vocab_size
    blanks, emits = [], []
    for part in encoder_side.split(max(1, CHUNK_ELEMENTS // max(1, per_frame)), 1):
        logits = model.joiner(part, decoder_side, project_input=False).float()
        norm = logits.logsumexp(-1)
        index = tokens[:, None, :, None].expand(-1, part.shape[1], -1, -1)
        token = logits[:, :, :num_tokens].gather(3, index)[..., 0]
        blanks.append(logits[..., blank_id] - norm)
        emits.append(token - norm[:, :, :num_tokens])
    return torch.cat(blanks, 1).double(), torch.cat(emits, 1).double()


def best_path(
    blank: Tensor, emit: Tensor, lens: Tensor, token_lens: Tensor, rnnt_type: str = "regular"
) -> tuple[Tensor, Tensor]:
    """Viterbi search: all utterances and all token positions of a frame at once.

    Args:
      blank: (N, T, S + 1) log-prob of blank after s tokens.
      emit: (N, T, S) log-prob of token s after those before it.
      lens, token_lens: (N,) int64, up to T and S.

    Returns:
      The score of the best path (N,), -inf where there is none; the frame of each token
      (N, S) int64, meaningless beyond token_lens.
    """
    num_streams, num_frames, num_states = blank.shape
    score = blank.new_full((num_streams, num_states), NEVER)
    score[:, 0] = 0
    position = torch.arange(num_states, device=blank.device).expand(num_streams, -1)
    enter = _any_number if rnnt_type == "regular" else _at_most_one
    came_from = []
    for t in range(num_frames):
        new, origin = enter(score, blank[:, t], emit[:, t], rnnt_type == "constrained")
        has_frame = (t < lens).unsqueeze(1)
        came_from.append(torch.where(has_frame, origin, position))
        score = torch.where(has_frame, new, score)

    at = token_lens.unsqueeze(1)
    total = score.gather(1, at)[:, 0].masked_fill(lens == 0, NEVER)
    frames = torch.zeros(num_streams, num_states - 1, dtype=torch.int64, device=blank.device)
    for t in range(num_frames - 1, -1, -1):
        before = came_from[t].gather(1, at)
        is_emitted = (before <= position[:, :-1]) & (position[:, :-1] < at)
        frames = frames.masked_fill(is_emitted, t)
        at = before
    return total, frames


def _any_number(
    score: Tensor, blank: Tensor, emit: Tensor, constrained: bool
) -> tuple[Tensor, Tensor]:
    """Scores one frame, tokens staying in it: (N, S + 1) scores after it, and the states before
    it.

    The best way to s begins at some s' <= s and emits all tokens between them, so with the sums
    of emissions c it has the score max over s' of (score[s'] - c[s']) + c[s].
    """
    c = F.pad(emit.cumsum(1), (1, 0))
    best, origin = (score - c).cummax(1)
    return best + c + blank, origin


def _at_most_one(
    score: Tensor, blank: Tensor, emit: Tensor, constrained: bool
) -> tuple[Tensor, Tensor]:
    """Scores one frame, which a token ends: (N, S + 1) scores after it, and the states before
    it."""
    moved = score[:, :-1] + emit
    if constrained:
        moved = moved + blank[:, 1:]
    moved = F.pad(moved, (1, 0), value=NEVER)
    stayed = score + blank
    position = torch.arange(score.shape[1], device=score.device)
    return torch.maximum(stayed, moved), position - (moved > stayed).long()


def ctc_best_path(
    log_probs: Tensor, lens: Tensor, tokens: Tensor, token_lens: Tensor, blank_id: int
) -> tuple[Tensor, Tensor]:
    """Viterbi search through CTC's lattice: all labels of a frame at once.

    Args:
      log_probs: (N, T, V).
      tokens: (N, S) int64 without blanks, anything but tokens beyond token_lens.
      lens, token_lens: (N,) int64, up to T and S.

    Returns:
      As ``best_path``; the frame of a token is the first that has it as its label.
    """
    num_streams, num_tokens = tokens.shape
    labels = F.pad(tokens.unsqueeze(2), (1, 0), value=blank_id).flatten(1)
    labels = F.pad(labels, (0, 1), value=blank_id)
    two_before = F.pad(labels, (2, 0), value=blank_id)[:, :-2]
    leaps = (labels != blank_id) & (labels != two_before)
    emit = log_probs.gather(2, labels.unsqueeze(1).expand(-1, log_probs.shape[1], -1))
    position = torch.arange(labels.shape[1], device=labels.device).expand(num_streams, -1)
    # Before the first frame there is a blank: it leads to both labels that may come first.
    score = emit.new_full(labels.shape, NEVER)
    score[:, 0] = 0
    came_from = []
    for t in range(emit.shape[1]):
        moved = F.pad(score, (1, 0), value=NEVER)[:, :-1]
        leapt = F.pad(score, (2, 0), value=NEVER)[:, :-2].masked_fill(~leaps, NEVER)
        best, back = torch.stack([score, moved, leapt]).max(0)
        has_frame = (t < lens).unsqueeze(1)
        came_from.append(torch.where(has_frame, position - back, position))
        score = torch.where(has_frame, best + emit[:, t], score)

    ends = torch.stack([2 * token_lens, (2 * token_lens - 1).clamp(min=0)], 1)
    total, which = score.gather(1, ends).max(1)
    at = ends.gather(1, which.unsqueeze(1))
    frames = torch.zeros_like(tokens)
    for t in range(emit.shape[1] - 1, -1, -1):
        before = came_from[t].gather(1, at)
        begins = (before != at) & (position[:, 1::2] == at)
        frames = frames.masked_fill(begins, t)
        at = before
    return total.masked_fill(lens == 0, NEVER), frames
