"""A session: one caller's stream, as the protocols see it.

All of this runs in the event loop. Audio that comes faster than it is computed waits in ``send``:
a protocol that awaits it does not read from its socket, so that the caller is slowed down and
memory stays bounded. Results that a caller does not fetch do not pile up either: of the segment
that goes on only the latest state is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.recognition.spans import TimedText
from xlsr_transducer.search import Hypothesis
from xlsr_transducer.search.token_graph import TokenGraph
from xlsr_transducer.serving.scheduler import Receiver, Scheduler, Ticket, Update

T = TypeVar("T")

SHUTTING_DOWN = "the server is shutting down"
MOST_UNREAD = 64  # ended segments that a caller has not fetched, before its audio waits
MOST_HOTWORDS = 100  # of a session
LONGEST_HOTWORD = 100  # characters


class SessionRefused(Exception):
    """Why there is no new session; the text is the reason given to the caller."""


class SessionFailed(Exception):
    """Why a session ended early; the text is the reason given to the caller."""


class Session:
    """One stream: audio in, segments out.

    >>> session = sessions.open()
    >>> await session.send(samples)          # as they arrive; session.finish() after the last
    >>> async for segment in session.results(): ...
    >>> session.close()                      # always
    """

    def __init__(self, sessions: Sessions, hotwords: Sequence[str]):
        self._sessions = sessions
        self._model = sessions.model
        self.number = next(sessions.numbers)  # counted from the start of the server
        graph = hotwords_of(self._model, hotwords)
        self._ended: deque[Hypothesis] = deque()
        self._live: Hypothesis | None = None
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._segment = 0
        self._fed = self._computed = 0.0  # seconds of audio
        self._error = ""
        self.is_finished = False  # no more audio will come
        self.is_over = False  # all of it is computed
        self._is_cut = asyncio.Event()
        self.cut_reason = ""  # why the server ended the audio, if it did
        self._ticket: Ticket = sessions.scheduler.open(self._receive, graph)

    def take_hotwords(self, hotwords: Sequence[str]) -> None:
        """Takes hotwords instead of those at the opening; before the first audio.

        Raises:
          UserError: they cannot be used, or are too many.
        """
        graph = hotwords_of(self._model, hotwords)
        if self.is_finished:  # the server has ended the audio: a new stream would have no end
            return
        self._sessions.scheduler.close(self._ticket)
        self._ticket = self._sessions.scheduler.open(self._receive, graph)

    async def send(self, samples: np.ndarray) -> None:
        """Takes the next (n,) float32 samples at 16 kHz; waits while too many are not computed.

        Raises:
          SessionFailed: the session has ended early.
        """
        await self._has_room.wait()
        if self._error:
            raise SessionFailed(self._error)
        if self.is_finished or not len(samples):
            return
        self._fed += len(samples) / SAMPLING_RATE
        self._sessions.scheduler.feed(self._ticket, torch.from_numpy(samples))
        self._check_room()

    def finish(self) -> None:
        """Ends the audio; ``results`` ends after the last segment."""
        if not self.is_finished:
            self.is_finished = True
            self._sessions.scheduler.finish(self._ticket)

    def cut(self, reason: str) -> None:
        """Ends the audio for the caller, who may have more; its text so far is its result."""
        if not self.is_finished:
            self.cut_reason = reason
            self._is_cut.set()
            self.finish()

    async def unless_cut(self, work: Awaitable[T]) -> T:
        """Returns what ``work`` gives, which brings the audio.

        Raises:
          SessionRefused: the server has ended the audio before.
        """
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self._is_cut.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                raise SessionRefused(self.cut_reason)
            return tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def results(self) -> AsyncIterator[TimedText]:
        """Yields segments: the live one when it has changed, and each once it is final.

        Ends when the session is over.

        Raises:
          SessionFailed: the session has ended early.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._ended:
                ended = self._model.timed(self._ended.popleft(), self._segment, is_final=True)
                self._segment += 1
                self._check_room()
                yield ended
            if self._error:
                raise SessionFailed(self._error)
            if self.is_over:
                return
            if self._live is not None:
                live, self._live = self._live, None
                yield self._model.timed(live, self._segment, is_final=False)

    def close(self, how: str = "", reason: str = "") -> None:
        """Ends the session, at its end or before.

        Args:
          how: a word for metrics and the log; by default what the session knows itself.
          reason: that was given to the caller.
        """
        self._has_room.set()
        self._sessions.scheduler.close(self._ticket)
        self._sessions.forget(self, how or self._how(), reason or self._error)

    def _how(self) -> str:
        if self._error:
            return "failed"
        if self.cut_reason:
            return "cut"
        return "finished" if self.is_exhausted else "left"

    @property
    def seconds(self) -> float:
        """Seconds of audio that have come."""
        return self._fed

    @property
    def backlog(self) -> float:
        """Seconds of audio that are not computed."""
        return max(self._fed - self._computed, 0.0)

    @property
    def is_exhausted(self) -> bool:
        """Whether the session is over and its last segment was taken."""
        return self.is_over and not self._ended

    @property
    def next_segment(self) -> int:
        """The number of the segment that has not ended."""
        return self._segment

    def fail(self, reason: str) -> None:
        """Ends the session early."""
        self._receive(Update([], None, self._computed, is_over=True, error=reason))

    def _receive(self, update: Update) -> None:
        self._ended.extend(update.ended)
        if update.ended:
            self._live = None
        if update.live is not None:
            self._live = update.live
        self._computed = max(self._computed, update.seconds)
        self.is_over |= update.is_over
        self._error = self._error or update.error
        self._check_room()
        self._changed.set()

    def _check_room(self) -> None:
        full = self.backlog > self._sessions.max_backlog or len(self._ended) > MOST_UNREAD
        if full and not self.is_over:
            self._has_room.clear()
        else:
            self._has_room.set()


class Sessions:
    """All sessions of a server: how many there may be, and whether there may be new ones."""

    def __init__(
        self, model: LiveModel, scheduler: Scheduler, max_sessions: int, max_backlog: float
    ):
        """
        Args:
          max_backlog: seconds of a session's audio that may wait to be computed.
        """
        self.model = model
        self.scheduler = scheduler
        self.max_sessions = max_sessions
        self.max_backlog = max_backlog
        self.is_draining = False
        self.numbers = itertools.count(1)
        self.on_end: Callable[[str], None] = lambda how: None  # told how each session ended
        self._sessions: set[Session] = set()

    def open(self, hotwords: Sequence[str] = ()) -> Session:
        """Returns a new session.

        Raises:
          SessionRefused: the server is full, or is shutting down.
          UserError: the hotwords cannot be used, or are too many.
        """
        self.require_room()
        session = Session(self, hotwords)
        self._sessions.add(session)
        return session

    def require_room(self) -> None:
        """Raises SessionRefused if ``open`` would."""
        if self.is_draining:
            raise SessionRefused(SHUTTING_DOWN)
        if len(self._sessions) >= self.max_sessions:
            raise SessionRefused(f"the server is full: {self.max_sessions} sessions are open")

    def forget(self, session: Session, how: str, reason: str) -> None:
        """Takes a session that has ended off the list, and logs its end."""
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        self.on_end(how)
        words = f"session {session.number}: {session.seconds:.1f} s of audio, {how}"
        logging.info(f"{words}: {printable(reason)}" if reason else words)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions))

    @property
    def backlog(self) -> float:
        """Seconds of audio of all sessions that are not computed."""
        return sum(session.backlog for session in self._sessions)


def hotwords_of(model: LiveModel, hotwords: Sequence[str]) -> TokenGraph | None:
    """Returns the hotwords of a caller; None without any.

    Raises:
      UserError: they cannot be used, or are more, or longer, than a caller may bring.
    """
    if len(hotwords) > MOST_HOTWORDS:
        raise UserError(f"{len(hotwords)} hotwords: a session may have {MOST_HOTWORDS}")
    if any(len(phrase) > LONGEST_HOTWORD for phrase in hotwords):
        raise UserError(f"a hotword is longer than {LONGEST_HOTWORD} characters")
    return model.hotwords(hotwords)


def printable(text: str) -> str:
    """Returns a text of a caller as one harmless line of a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:300])


async def both(receiving: Awaitable[None], sending: Awaitable[None]) -> None:
    """Runs the two directions of a connection until all is sent; an error of one ends both, and
    is raised."""
    tasks = [asyncio.ensure_future(receiving), asyncio.ensure_future(sending)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[1] not in done:  # the audio has ended, and may have ended badly
            tasks[0].result()
        await tasks[1]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def post_to(
    loop: asyncio.AbstractEventLoop,
) -> Callable[[list[tuple[Receiver, Update]]], None]:
    """Returns what brings a step's updates from the scheduler's thread into the event loop."""

    def deliver(updates: list[tuple[Receiver, Update]]) -> None:
        for receiver, update in updates:
            receiver(update)

    def post(updates: list[tuple[Receiver, Update]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(deliver, updates)

    return post
