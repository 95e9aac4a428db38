"""The tokens of all hypotheses of a batch of streams so far, as tensors.

A search appends tokens piece by piece. Those that all live hypotheses of a stream share can no
longer change: once there are many, they move to host memory, so that the tensors of a stream
which runs for hours stay small.

Letters: N streams, B hypotheses per stream, W width of the open part, K steps of one piece.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.search.hypothesis import Hypothesis

NEVER = -float("inf")

# Open tokens per hypothesis beyond which the common beginning moves to host memory.
MAX_OPEN = 128

# Odd multiplier of the rolling hash (Knuth's MMIX generator); products wrap modulo 2^64.
HASH_MULTIPLIER = 6364136223846793005


def hash_with(hashes: Tensor, tokens: Tensor) -> Tensor:
    """Returns hashes of token sequences with ``tokens`` added; int64, any shape."""
    return hashes * HASH_MULTIPLIER + (tokens + 1)


@dataclass(frozen=True)
class Settled:
    """A stretch of tokens that is final, and what came before it (a linked list)."""

    before: Settled | None
    tokens: list[int]
    frames: list[int]
    log_probs: list[float]

    def stretches(self, after: Settled | None = None) -> list[Settled]:
        """Returns the stretches that follow ``after``, one of them (None: all); oldest first."""
        found: list[Settled] = []
        node: Settled | None = self
        while node is not after:
            found.append(node)
            node = node.before
        return found[::-1]


@dataclass(frozen=True)
class History:
    """Tokens, their frames and log-probs per hypothesis. Only ``put`` changes it in place."""

    tokens: Tensor  # (N, B, W) int64, only the first `lengths` of each row count
    frames: Tensor  # (N, B, W) int64
    log_probs: Tensor  # (N, B, W) float32
    lengths: Tensor  # (N, B) int64
    num_settled: Tensor  # (N,) int64
    settled: tuple[Settled | None, ...]  # N

    @staticmethod
    def empty(num_streams: int, num_hyps: int, device: torch.device | str) -> History:
        """Returns hypotheses without tokens."""
        shape = (num_streams, num_hyps, 0)
        return History(
            tokens=torch.zeros(shape, dtype=torch.int64, device=device),
            frames=torch.zeros(shape, dtype=torch.int64, device=device),
            log_probs=torch.zeros(shape, device=device),
            lengths=torch.zeros(shape[:2], dtype=torch.int64, device=device),
            num_settled=torch.zeros(num_streams, dtype=torch.int64, device=device),
            settled=(None,) * num_streams,
        )

    def extend(
        self, origin: Tensor, tokens: Tensor, frames: Tensor, log_probs: Tensor, blank_id: int
    ) -> History:
        """Appends one piece.

        Args:
          origin: (N, B) which present hypothesis each new one grew from.
          tokens: (N, B, K) what it added, ``blank_id`` where it added nothing.
          frames: (N, B, K) frame of each token, counted from the start of the stream.
          log_probs: (N, B, K) log-prob of each token.
        """
        keep = tokens != blank_id
        old = self.lengths.gather(1, origin)
        lengths = old + keep.sum(2)
        width = int(lengths.max()) if lengths.numel() else 0
        # What is not kept goes to one spare column, cut off afterwards.
        where = (old.unsqueeze(2) + keep.cumsum(2) - 1).masked_fill(~keep, width)

        def grown(present: Tensor, new: Tensor) -> Tensor:
            rows = origin.unsqueeze(2).expand(-1, -1, present.shape[2])
            room = max(width + 1 - present.shape[2], 0)
            out = F.pad(present.gather(1, rows), (0, room))
            return out.scatter(2, where, new.to(out.dtype))[..., :width]

        return replace(
            self,
            tokens=grown(self.tokens, tokens),
            frames=grown(self.frames, frames),
            log_probs=grown(self.log_probs, log_probs),
            lengths=lengths,
        )

    def settle(self, live: Tensor, most: int = MAX_OPEN) -> History:
        """Moves what all live hypotheses share to host memory, if it is more than ``most`` tokens.

        The last token of a live hypothesis always stays open (see ``last_frames``).

        Args:
          live: (N, B) bool; the others do not count and lose what they had.
        """
        if self.tokens.shape[2] <= most:
            return self
        first, column = self._first(live), torch.arange(self.tokens.shape[2], device=live.device)
        same_frames = self.frames == self.frames.gather(1, first)
        shortest = self.lengths.masked_fill(~live, len(column)).amin(1)
        common = torch.minimum(self._common(live, same_frames), shortest - 1).clamp(min=0)

        best = (row.gather(1, first)[:, 0].tolist() for row in (self.tokens, self.frames))
        probs = self.log_probs.gather(1, first)[:, 0].tolist()
        settled = tuple(
            Settled(before, t[:n], f[:n], p[:n]) if n else before
            for before, n, t, f, p in zip(self.settled, common.tolist(), *best, probs)
        )
        lengths = self.lengths.masked_fill(~live, 0)
        lengths = (lengths - common.unsqueeze(1)).clamp(min=0)
        width = int(lengths.max())
        source = (common[:, None, None] + column[:width]).clamp(max=len(column) - 1)
        source = source.expand(-1, live.shape[1], -1)
        return History(
            tokens=self.tokens.gather(2, source),
            frames=self.frames.gather(2, source),
            log_probs=self.log_probs.gather(2, source),
            lengths=lengths,
            num_settled=self.num_settled + common,
            settled=settled,
        )

    def num_shared(self, live: Tensor) -> Tensor:
        """Returns (N,) how many open tokens all live hypotheses begin with, whatever their frames.

        Args:
          live: (N, B) bool.
        """
        return self._common(live, torch.ones_like(self.tokens, dtype=torch.bool))

    def _first(self, live: Tensor) -> Tensor:
        """Returns (N, 1, W) the place of a live hypothesis of each stream."""
        width = self.tokens.shape[2]
        return live.to(torch.int64).argmax(1)[:, None, None].expand(-1, 1, width)

    def _common(self, live: Tensor, same: Tensor) -> Tensor:
        """Returns (N,) how many open tokens all live hypotheses begin with.

        Args:
          same: (N, B, W) whether what else counts of a token is the same in all of them.
        """
        column = torch.arange(self.tokens.shape[2], device=live.device)
        same = same & (self.tokens == self.tokens.gather(1, self._first(live)))
        same = (same & (column < self.lengths.unsqueeze(2))) | ~live.unsqueeze(2)
        return same.all(1).to(torch.int64).cumprod(1).sum(1)

    def extend_single(
        self, tokens: Tensor, frames: Tensor, log_probs: Tensor, blank_id: int
    ) -> History:
        """``extend``, then ``settle``, where each stream has one hypothesis; all are (N, K)."""
        origin = torch.zeros_like(self.lengths)
        added = (x.unsqueeze(1) for x in (tokens, frames, log_probs))
        return self.extend(origin, *added, blank_id).settle(torch.ones_like(origin).bool())

    def last_frames(self) -> Tensor:
        """(N, B) the frame of each hypothesis's last token, -1 where it has none."""
        frames = F.pad(self.frames, (1, 0), value=-1)
        return frames.gather(2, self.lengths.unsqueeze(2))[:, :, 0]

    def hypotheses(
        self, which: Tensor, scores: Tensor, norm: int, with_settled: bool = True
    ) -> list[list[Hypothesis]]:
        """Reads hypotheses out; one of score -inf and no tokens for a stream that has none.

        Args:
          which: (N, M) the hypotheses wanted, in the order wanted.
          scores: (N, M) their log-probs; -inf marks one that does not exist and is left out.
          norm: added to the number of tokens that the score is divided by.
          with_settled: whether their tokens include those that have settled.
        """
        columns = which.unsqueeze(2).expand(-1, -1, self.tokens.shape[2])
        tokens, frames, log_probs = (
            x.gather(1, columns).tolist() for x in (self.tokens, self.frames, self.log_probs)
        )
        lengths = self.lengths.gather(1, which).tolist()
        num_settled = self.num_settled.tolist()
        found: list[list[Hypothesis]] = []
        for n, settled in enumerate(self.settled):
            before = settled.stretches() if settled and with_settled else []
            start = [
                [x for s in before for x in getattr(s, name)]
                for name in ("tokens", "frames", "log_probs")
            ]
            found.append([])
            for m, score in enumerate(scores[n].tolist()):
                if score == -float("inf"):
                    continue
                end = lengths[n][m]
                found[-1].append(
                    Hypothesis(
                        tokens=start[0] + tokens[n][m][:end],
                        frames=start[1] + frames[n][m][:end],
                        score=score,
                        log_probs=start[2] + log_probs[n][m][:end],
                        norm_score=score / (num_settled[n] + end + norm),
                    )
                )
        return [hyps or [Hypothesis(score=NEVER, norm_score=NEVER)] for hyps in found]

    def rank(self, score: Tensor, norm: int) -> tuple[Tensor, Tensor]:
        """Orders hypotheses by score / (tokens + ``norm``), best first.

        Args:
          score: (N, B) log-probs, -inf where there is no hypothesis.

        Returns:
          (N, B) which hypothesis has each place, and its score.
        """
        length = self.lengths + self.num_settled.unsqueeze(1) + norm
        which = (score / length).sort(dim=1, descending=True, stable=True).indices
        return which, score.gather(1, which)
