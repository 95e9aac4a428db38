"""Where batches are formed: one thread computes the chunks of all sessions.

A step starts when the thread is free and at least one stream has a chunk; it takes all that have
one. So batches are small while there is little to do, and grow by themselves under load.
``max_wait`` lets a step wait for a fuller batch.

Any thread may call ``open``, ``feed``, ``finish`` and ``close``: they leave a note, which the
thread reads before its next step. The engine belongs to that thread alone.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor

from xlsr_transducer.recognition.engine import Stream, StreamingEngine
from xlsr_transducer.search import Hypothesis
from xlsr_transducer.search.token_graph import TokenGraph


@dataclasses.dataclass(frozen=True)
class Update:
    """What a step gave a stream."""

    ended: list[Hypothesis]  # segments that ended in it
    live: Hypothesis | None  # the segment that goes on; None: as before
    seconds: float  # of audio computed so far, or that is known not to give anything
    is_over: bool = False
    error: str = ""  # why the stream ended early


Receiver = Callable[[Update], None]


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What a step cost; times in seconds."""

    size: int  # streams of which a chunk was computed
    elapsed: float
    waited: Sequence[float]  # of each, from its chunk's last sample to the end of the step
    audio: float  # computed, of all streams


class Ticket:
    """A stream as the scheduler's callers know it."""

    def __init__(self, receiver: Receiver):
        self.receiver = receiver
        self.stream: Stream | None = None  # all of these: the scheduler's thread alone
        self.ready_since: float | None = None  # when its chunk was complete
        self.shown: tuple[list[int], list[int], int] = ([], [], 0)  # what was last sent as live
        self.seconds = 0.0  # of audio computed


class Scheduler:
    """Runs an engine in a thread of its own.

    >>> scheduler = Scheduler(engine, post)
    >>> ticket = scheduler.open(receiver)
    >>> scheduler.feed(ticket, samples)       # as they arrive; scheduler.finish(ticket) at the end
    >>> scheduler.stop()
    """

    def __init__(
        self,
        engine: StreamingEngine,
        post: Callable[[list[tuple[Receiver, Update]]], None],
        report: Callable[[StepReport], None] = lambda report: None,
        max_wait: float = 0.0,
    ):
        """
        Args:
          post: called in the scheduler's thread with what each step gave, and whom it is for.
          report: called in the scheduler's thread after each step.
          max_wait: seconds that a chunk may wait for others, while other streams have none yet.
        """
        self.engine = engine
        self._post, self._report, self._max_wait = post, report, max_wait
        self._notes: deque[tuple[Callable[..., None], tuple]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._tickets: dict[Stream, Ticket] = {}
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def open(self, receiver: Receiver, hotwords: TokenGraph | None = None) -> Ticket:
        """Returns a new stream; ``receiver`` is who its updates are posted for."""
        ticket = Ticket(receiver)
        self._note(self._open, ticket, hotwords)
        return ticket

    def feed(self, ticket: Ticket, samples: Tensor) -> None:
        """Adds (n,) float32 samples at 16 kHz."""
        self._note(self._feed, ticket, samples)

    def finish(self, ticket: Ticket) -> None:
        """Ends the audio of a stream; its last update, which ``is_over``, follows."""
        self._note(self._finish, ticket)

    def close(self, ticket: Ticket) -> None:
        """Drops a stream; no update follows. Nothing happens if it is over."""
        self._note(self._close, ticket)

    def stop(self) -> None:
        """Ends the thread after the step at hand."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _note(self, action: Callable[..., None], *args: object) -> None:
        with self._changed:
            self._notes.append((action, args))
            self._changed.notify()

    def _run(self) -> None:
        while not self._stopping:
            self._read_notes(until=None)
            self._wait_for_others()
            if not self._stopping:
                self._step()

    def _read_notes(self, until: float | None) -> None:
        """Acts on the notes left by others.

        Args:
          until: wait for one until then; None: if there is nothing to compute, for as long as it
            takes.
        """
        with self._changed:
            if until is not None:
                self._changed.wait_for(self._is_called, max(until - time.monotonic(), 0))
            elif not self.engine.has_work():
                self._changed.wait_for(self._is_called)
            notes, self._notes = self._notes, deque()
        for action, args in notes:
            action(*args)

    def _is_called(self) -> bool:
        return bool(self._notes) or self._stopping

    def _wait_for_others(self) -> None:
        """Lets the first chunk wait, up to ``max_wait``, while some stream has none."""
        waiting = [t.ready_since for t in self._tickets.values() if t.ready_since is not None]
        if not waiting or not self._max_wait:
            return
        until = min(waiting) + self._max_wait
        while (
            not self._stopping
            and time.monotonic() < until
            and any(t.ready_since is None for t in self._tickets.values())
        ):
            self._read_notes(until)

    def _step(self) -> None:
        start = time.monotonic()
        try:
            computed, over = self.engine.step()
            self.engine.read(computed)
        except Exception:
            logging.exception("a step failed; its streams end")
            self._drop_failed()
            return
        end = time.monotonic()
        updates = [
            self._update(stream, is_over=False) for stream in computed if stream not in over
        ]
        updates += [self._update(stream, is_over=True) for stream in over]
        self._post([update for update in updates if update is not None])
        if computed:
            self._report(self._measured(computed, start, end))
        for stream in over:
            del self._tickets[stream]

    def _measured(self, computed: list[Stream], start: float, end: float) -> StepReport:
        waited, audio = [], 0.0
        for ticket in map(self._tickets.__getitem__, computed):
            waited.append(end - (ticket.ready_since or start))
            audio += ticket.stream.arrived - ticket.seconds
            ticket.seconds = ticket.stream.arrived
            ticket.ready_since = end if ticket.stream.buffer.has_chunk() else None
        return StepReport(len(computed), end - start, waited, audio)

    def _update(self, stream: Stream, is_over: bool) -> tuple[Receiver, Update]:
        """Returns what is new of a stream, and whom it is for."""
        ticket = self._tickets[stream]
        ended = stream.take_segments()
        seconds = stream.seconds if is_over else stream.arrived
        if is_over:
            return ticket.receiver, Update(ended, None, seconds, is_over=True)
        live = stream.live.hypothesis()
        shown = (live.tokens, live.frames, live.num_stable)
        is_new = bool(ended) or shown != ticket.shown
        ticket.shown = shown
        return ticket.receiver, Update(ended, live if is_new else None, seconds)

    def _drop_failed(self) -> None:
        """Ends the streams whose chunks a failed step took, with an error."""
        failed = [t for s, t in self._tickets.items() if s.buffer.is_finished or t.ready_since]
        for ticket in failed:
            self._close(ticket)
        error = "internal error: the server could not compute this stream"
        self._post(
            [(t.receiver, Update([], None, 0.0, is_over=True, error=error)) for t in failed]
        )

    def _open(self, ticket: Ticket, hotwords: TokenGraph | None) -> None:
        ticket.stream = self.engine.open("session", hotwords)
        self._tickets[ticket.stream] = ticket

    def _feed(self, ticket: Ticket, samples: Tensor) -> None:
        if ticket.stream in self._tickets:
            ticket.stream.accept(samples)
            self._note_ready(ticket)

    def _finish(self, ticket: Ticket) -> None:
        if ticket.stream in self._tickets:
            ticket.stream.finish()
            self._note_ready(ticket)

    def _note_ready(self, ticket: Ticket) -> None:
        if ticket.ready_since is None and ticket.stream.buffer.has_chunk():
            ticket.ready_since = time.monotonic()

    def _close(self, ticket: Ticket) -> None:
        if self._tickets.pop(ticket.stream, None) is not None:
            self.engine.close(ticket.stream)
