"""Where batches are formed: one thread computes the chunks of all sessions.

A step (``Scheduler._step``) starts when the thread is free and at least one stream has a chunk;
``engine.step`` makes a batch of all that have one. So batches are small while there is little to
do, and grow by themselves under load. ``max_wait`` lets a step wait for a fuller batch.

Any thread may call ``open``, ``feed``, ``finish`` and ``close``: they leave a note, which the
thread reads before its next step. The engine belongs to that thread alone.

No error ends the thread, since all streams live by it. A note that cannot be carried out ends its
stream; a step that fails ends the streams whose chunks it took, and no other.
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


FAILED = "internal error: the server could not compute this stream"


class Ticket:
    """A stream as the scheduler's callers know it."""

    def __init__(self, receiver: Receiver):
        self.receiver = receiver
        self.stream: Stream | None = None  # all of these: the scheduler's thread alone
        self.complete: deque[float] = deque()  # when each chunk that waits was complete
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
        self._notes: deque[tuple] = deque()  # (action, ticket, *arguments)
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

    def _note(self, action: Callable[..., None], ticket: Ticket, *args: object) -> None:
        with self._changed:
            self._notes.append((action, ticket, *args))
            self._changed.notify()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._act_on_notes(until=None)
                self._wait_for_others()
                if not self._stopping and self.engine.has_work():
                    self._step()
            except Exception:
                logging.exception("the scheduler failed; all streams end")
                self._fail(list(self._tickets.values()))

    def _act_on_notes(self, until: float | None) -> None:
        """Does what others have asked for.

        Args:
          until: wait for a note until then; None: if there is nothing to compute, for as long as
            it takes.
        """
        if until is not None:
            seconds = max(until - time.monotonic(), 0.0)
        else:
            seconds = 0.0 if self.engine.has_work() else None
        with self._changed:
            self._changed.wait_for(lambda: self._notes or self._stopping, seconds)
            notes, self._notes = self._notes, deque()
        for action, ticket, *args in notes:
            try:
                action(ticket, *args)
            except Exception:
                logging.exception("a stream failed")
                self._fail([ticket])

    def _wait_for_others(self) -> None:
        """Lets the first chunk wait, up to ``max_wait``, while some stream has none."""
        waiting = [t.complete[0] for t in self._tickets.values() if t.complete]
        if not waiting or not self._max_wait:
            return
        until = min(waiting) + self._max_wait
        while (
            not self._stopping
            and time.monotonic() < until
            and not all(t.complete for t in self._tickets.values())
        ):
            self._act_on_notes(until)

    def _step(self) -> None:
        """Computes a batch: a chunk of every stream that has one."""
        start = time.monotonic()
        try:
            computed, over = self.engine.step()
            self.engine.read(computed)
        except Exception:
            logging.exception("a step failed; its streams end")
            self._fail([t for s, t in self._tickets.items() if t.complete or s.buffer.is_finished])
            return
        end = time.monotonic()
        updates = [
            self._update(stream, is_over=False) for stream in computed if stream not in over
        ]
        updates += [self._update(stream, is_over=True) for stream in over]
        if computed:
            self._report(self._measured(computed, start, end))
        self._post(updates)
        for stream in over:
            del self._tickets[stream]

    def _measured(self, computed: list[Stream], start: float, end: float) -> StepReport:
        waited, audio = [], 0.0
        for ticket in map(self._tickets.__getitem__, computed):
            waited.append(end - ticket.complete.popleft())
            audio += ticket.stream.arrived - ticket.seconds
            ticket.seconds = ticket.stream.arrived
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

    def _fail(self, tickets: list[Ticket]) -> None:
        """Ends streams with an error."""
        for ticket in tickets:
            self._close(ticket)
        self._post(
            [(t.receiver, Update([], None, 0.0, is_over=True, error=FAILED)) for t in tickets]
        )

    def _open(self, ticket: Ticket, hotwords: TokenGraph | None) -> None:
        ticket.stream = self.engine.open("session", hotwords)
        self._tickets[ticket.stream] = ticket

    def _feed(self, ticket: Ticket, samples: Tensor) -> None:
        if ticket.stream in self._tickets:
            ticket.stream.accept(samples)
            self._note_complete(ticket)

    def _finish(self, ticket: Ticket) -> None:
        if ticket.stream in self._tickets:
            ticket.stream.finish()
            self._note_complete(ticket)

    def _note_complete(self, ticket: Ticket) -> None:
        """Notes the time for each chunk that has become complete."""
        buffer, now = ticket.stream.buffer, time.monotonic()
        # A stream without a slot has not had its first chunk, which the overlap precedes.
        samples = buffer.num_waiting - (buffer.overlap if ticket.stream.slot is None else 0)
        chunks, rest = divmod(max(samples, 0), buffer.chunk_samples)
        if buffer.is_finished and rest >= buffer.hop:
            chunks += 1
        ticket.complete.extend([now] * (chunks - len(ticket.complete)))

    def _close(self, ticket: Ticket) -> None:
        if self._tickets.pop(ticket.stream, None) is not None:
            if ticket.stream in self.engine.streams:  # not if it has left the engine at its end
                self.engine.close(ticket.stream)
