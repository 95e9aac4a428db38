"""The thread that forms batches: what is in one, and what an error ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.live_server import expected, load_live, texts_of, waves
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving import scheduler as scheduler_module
from xlsr_transducer.serving.scheduler import FAILED, Scheduler, StepReport, Ticket, Update

SECONDS = 300  # for what takes a moment on an idle machine
CHUNK = 16 * 320  # samples
FIRST = CHUNK + 80  # samples of a stream's first chunk


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LiveModel:
    return load_live(checkpoint)


@pytest.fixture(scope="module")
def audio(checkpoint: Path) -> list[torch.Tensor]:
    return waves(load_model(CheckpointOptions(checkpoint=checkpoint)).model, 3)


class Caller:
    """Keeps what the scheduler posts for one stream."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.is_over = threading.Event()

    def __call__(self, update: Update) -> None:
        self.updates.append(update)
        if update.is_over:
            self.is_over.set()

    def wait(self) -> None:
        assert self.is_over.wait(SECONDS)

    @property
    def error(self) -> str:
        return self.updates[-1].error

    def texts(self, model: LiveModel) -> list[tuple]:
        ended = [h for update in self.updates for h in update.ended]
        return texts_of([model.timed(h, n, is_final=True) for n, h in enumerate(ended)])


class Running:
    """A scheduler with its reports; its steps may be held up."""

    def __init__(self, model: LiveModel, max_wait: float = 0.0):
        self.engine = model.engine()
        self.reports: list[StepReport] = []
        self.may_step = threading.Event()
        self.is_stepping = threading.Event()
        self.may_step.set()
        self._step = self.engine.step
        self.engine.step = self._held
        self.scheduler = Scheduler(self.engine, self._post, self.reports.append, max_wait)

    def _held(self) -> Any:
        self.is_stepping.set()
        assert self.may_step.wait(SECONDS)
        return self._step()

    def _post(self, updates: list[tuple[Callable, Update]]) -> None:
        for receiver, update in updates:
            receiver(update)

    def open(self) -> tuple[Ticket, Caller]:
        caller = Caller()
        return self.scheduler.open(caller), caller

    def send_all(self, ticket: Ticket, wave: torch.Tensor) -> None:
        self.scheduler.feed(ticket, wave)
        self.scheduler.finish(ticket)


@pytest.fixture
def running(model: LiveModel) -> Iterator[Running]:
    running = Running(model)
    yield running
    running.may_step.set()
    running.scheduler.stop()


def test_a_batch_takes_every_stream_that_has_a_chunk_when_the_thread_is_free(
    running: Running,
) -> None:
    streams = [running.open() for _ in range(4)]
    running.may_step.clear()
    running.send_all(streams[0][0], torch.zeros(FIRST))
    assert running.is_stepping.wait(SECONDS)  # the first goes alone, as no other has a chunk
    for ticket, _ in streams[1:3]:
        running.send_all(ticket, torch.zeros(FIRST))
    running.scheduler.feed(streams[3][0], torch.zeros(FIRST - 1))
    running.may_step.set()
    for _, caller in streams[:3]:
        caller.wait()
    assert [report.size for report in running.reports] == [1, 2]
    running.scheduler.finish(streams[3][0])
    streams[3][1].wait()
    assert [report.size for report in running.reports] == [1, 2, 1]


def test_max_wait_lets_a_chunk_wait_for_the_others(model: LiveModel) -> None:
    running = Running(model, max_wait=SECONDS)
    streams = [running.open() for _ in range(3)]
    for ticket, _ in streams:
        running.send_all(ticket, torch.zeros(FIRST))
    for _, caller in streams:
        caller.wait()
    running.scheduler.stop()
    assert [report.size for report in running.reports] == [3]


def test_a_chunk_waits_from_its_last_sample_on_also_behind_others_of_its_stream(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock on which each step takes a second, and nothing else any time."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(scheduler_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    inner = running._step

    def step() -> Any:
        clock.now += 1
        return inner()

    running._step = step
    ticket, caller = running.open()
    running.may_step.clear()
    running.send_all(ticket, torch.zeros(80 + 3 * CHUNK + 320))
    running.may_step.set()
    caller.wait()
    assert [report.waited for report in running.reports] == [[1.0], [2.0], [3.0], [4.0]]
    assert [report.elapsed for report in running.reports] == [1.0] * 4
    audio = [report.audio for report in running.reports]
    assert audio == pytest.approx([FIRST / 16000, *[CHUNK / 16000] * 2, 320 / 16000])


def fail_once(function: Callable, error: Exception) -> Callable:
    """Returns ``function``, which raises when it is called first."""
    calls = []

    def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise error
        return function(*args)

    return failing


@pytest.mark.parametrize("method", ["_compute", "read"])
def test_a_step_that_fails_ends_the_streams_of_its_chunks_and_no_other(
    model: LiveModel, audio: list[torch.Tensor], running: Running, method: str
) -> None:
    inner = getattr(running.engine, method)
    setattr(running.engine, method, fail_once(inner, RuntimeError("of the test")))
    bystander, hurt, later = (running.open() for _ in range(3))
    running.scheduler.feed(bystander[0], audio[0][: FIRST - 1])
    running.send_all(hurt[0], audio[1])
    hurt[1].wait()
    assert hurt[1].error == FAILED
    running.send_all(bystander[0], audio[0][FIRST - 1 :])
    running.send_all(later[0], audio[2])
    for (_, caller), wave in ((bystander, audio[0]), (later, audio[2])):
        caller.wait()
        assert not caller.error
        assert caller.texts(model) == texts_of(expected(model, wave))
    assert running.scheduler.is_alive and not len(running.engine)


def test_a_step_that_fails_after_a_stream_has_left_the_engine_does_not_end_the_thread(
    model: LiveModel, audio: list[torch.Tensor], running: Running
) -> None:
    """A stream that is over has left the engine before its results are read."""
    inner = running._step

    def step() -> Any:
        found = inner()
        if found[1]:
            running._step = inner
            raise RuntimeError("of the test")
        return found

    running._step = step
    hurt, later = running.open(), running.open()
    running.send_all(hurt[0], audio[1])
    hurt[1].wait()
    assert hurt[1].error == FAILED
    running.send_all(later[0], audio[2])
    later[1].wait()
    assert later[1].texts(model) == texts_of(expected(model, audio[2]))


def test_a_stream_that_cannot_be_opened_ends_alone(
    model: LiveModel, audio: list[torch.Tensor], running: Running
) -> None:
    running.engine.open = fail_once(running.engine.open, RuntimeError("of the test"))
    hurt, other = running.open(), running.open()
    running.send_all(hurt[0], audio[0])
    running.send_all(other[0], audio[1])
    for _, caller in (hurt, other):
        caller.wait()
    assert hurt[1].error == FAILED and not other[1].error
    assert other[1].texts(model) == texts_of(expected(model, audio[1]))


def test_an_error_of_the_scheduler_itself_ends_the_streams_and_not_the_thread(
    model: LiveModel, audio: list[torch.Tensor], running: Running
) -> None:
    running.scheduler._report = fail_once(running.reports.append, RuntimeError("of the test"))
    hurt = running.open()
    running.scheduler.feed(hurt[0], audio[0])
    hurt[1].wait()
    assert hurt[1].error == FAILED
    later = running.open()
    running.send_all(later[0], audio[1])
    later[1].wait()
    assert later[1].texts(model) == texts_of(expected(model, audio[1]))


def test_what_is_asked_of_a_stream_after_its_end_does_nothing(
    audio: list[torch.Tensor], running: Running
) -> None:
    ticket, caller = running.open()
    running.send_all(ticket, audio[0])
    caller.wait()
    count = len(caller.updates)
    running.send_all(ticket, audio[1])
    for _ in range(2):
        running.scheduler.close(ticket)
    closed, never = running.open()
    running.scheduler.close(closed)
    running.send_all(closed, audio[1])
    other = running.open()
    running.send_all(other[0], audio[2])
    other[1].wait()
    assert len(caller.updates) == count and not never.updates
    assert not len(running.engine) and running.scheduler.is_alive
