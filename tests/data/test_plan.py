"""The plan of an epoch beside plain loops over utterances."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lhotse.utils import perturb_num_samples

from xlsr_transducer.core.geometry import encoder_frames
from xlsr_transducer.data import packing
from xlsr_transducer.data import plan as plans
from xlsr_transducer.data.plan import Plan, PlanOptions, Utterances, fixed_plan, make_plan
from xlsr_transducer.data.steps import Share, step_ends

SPEEDS = (0.9, 1.0, 1.1)
OPTIONS = PlanOptions(60.0, num_buckets=5, min_utterance=1.0, max_utterance=20.0)


def some(count: int, shards: int = 1, seed: int = 0) -> Utterances:
    """Utterances of which some are too short, too long, too wordy or flawed."""
    rng = np.random.default_rng(seed)
    seconds = np.round(rng.gamma(3, 2, count), 4)
    tokens = rng.poisson(8 * seconds).astype(np.int32)
    return Utterances(
        seconds=seconds,
        frames=encoder_frames(seconds).astype(np.int32),
        tokens=tokens,
        needed=(tokens * 1.3).astype(np.int32),
        usable=rng.random(count) > 0.05,
        groups=rng.integers(0, 3, count).astype(np.int32),
        shards=np.sort(rng.integers(0, shards, count)).astype(np.int32),
    )


def fit_rows(u: Utterances, o: PlanOptions) -> list[int]:
    return [
        row
        for row in range(len(u.seconds))
        if u.usable[row]
        and o.min_utterance <= u.seconds[row] <= o.max_utterance
        and u.needed[row] <= encoder_frames(u.seconds[row])
    ]


def check(plan: Plan, u: Utterances, o: PlanOptions, rows: list[int]) -> None:
    """Every row of ``rows`` is planned once; sums and bounds hold, by loops over utterances."""
    assert sorted(plan.rows.tolist()) == rows
    for k in range(len(plan)):
        batch, speeds, pauses = plan.batch(k)
        seconds = [
            u.seconds[row] / speed + pause for row, speed, pause in zip(batch, speeds, pauses)
        ]
        tokens = [int(u.tokens[row]) for row in batch]
        assert plan.seconds[k] == pytest.approx(sum(seconds))
        assert (plan.longest[k], plan.most_tokens[k]) == (max(seconds), max(tokens))
        assert plan.tokens[k] == sum(tokens)
        padded = len(batch) * max(seconds)
        assert len(batch) == 1 or padded <= o.max_duration
        if o.max_frames_tokens:
            size = padded / 0.04 * max(tokens) / 1e6
            assert len(batch) == 1 or size <= o.max_frames_tokens * (1 + 1e-9)
        if o.group_batches or o.matched:
            assert len({int(u.groups[row]) for row in batch}) == 1
        for row, length in zip(batch, seconds):
            assert o.min_utterance <= length <= o.max_utterance
            assert u.needed[row] <= encoder_frames(length)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"speeds": SPEEDS},
        {"pause_prob": 0.4},
        {"group_batches": True},
        {"max_frames_tokens": 0.03},
        {"max_duration": 0.5},
        {"num_buckets": 1},
        {"matched": True},
        {"matched": True, "max_duration": 0.5},
        {"matched": True, "speeds": SPEEDS, "max_frames_tokens": 0.05, "pause_prob": 1.0},
        {"group_batches": True, "speeds": SPEEDS, "max_frames_tokens": 0.05, "pause_prob": 1.0},
    ],
)
@pytest.mark.parametrize("count, shards", [(0, 1), (1, 1), (2, 1), (37, 1), (900, 1), (900, 40)])
def test_every_utterance_that_fits_is_planned_once_within_the_bounds(
    count: int, shards: int, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "WINDOW", 100)
    monkeypatch.setattr(plans, "CHUNK", 50)
    monkeypatch.setattr(packing, "LEAST", 50)
    monkeypatch.setattr(packing, "OPEN", 4)
    u, o = some(count, shards), dataclasses.replace(OPTIONS, **changes)
    rows = fit_rows(u, o)
    plan = make_plan(u, o, seed=1, epoch=1)
    check(plan, u, o, rows)
    same, other = (make_plan(u, o, seed=1, epoch=epoch) for epoch in (1, 2))
    for field in dataclasses.fields(Plan):
        assert np.array_equal(getattr(plan, field.name), getattr(same, field.name))
    assert count < 30 or not np.array_equal(plan.rows, other.rows)
    left = make_plan(u, o, 2, 1, without=plan.rows[: len(rows) // 2])
    check(left, u, o, sorted(plan.rows[len(rows) // 2 :].tolist()))


def greedy(cells, seconds, tokens, o: PlanOptions) -> list[int]:
    """Where batches end, one utterance after the other."""
    ends, batch, in_cell = [], [], 0
    for i, cell in enumerate(cells):
        in_cell = in_cell + 1 if i and cells[i - 1] == cell else 0
        taken = [*batch, i]
        padded = len(taken) * max(seconds[j] for j in taken)
        most = max(tokens[j] for j in taken)
        over = padded > o.max_duration or padded / 0.04 * most > o.max_frames_tokens * 1e6
        if batch and (over or in_cell % plans.CHUNK == 0):
            ends.append(i)
            taken = [i]
        batch = taken
    return [*ends, len(cells)] if batch else ends


def test_batches_are_filled_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "CHUNK", 64)
    rng, o = np.random.default_rng(5), dataclasses.replace(OPTIONS, max_frames_tokens=0.03)
    for count in (1, 2, 63, 64, 65, 500):
        cells = np.sort(rng.integers(0, 4, count)).astype(np.int32)
        seconds, tokens = rng.gamma(3, 2, count), rng.integers(0, 90, count).astype(np.int32)
        assert plans._fill(cells, seconds, tokens, o).tolist() == greedy(cells, seconds, tokens, o)


def test_utterances_are_mixed_and_batches_are_full_and_little_padded() -> None:
    u = Utterances.plain(np.random.default_rng(0).gamma(3, 2, 50_000) + 0.3)
    plan = make_plan(u, PlanOptions(200.0), 1, 1)
    padded = plan.sizes * plan.longest
    assert padded.mean() > 0.93 * 200 and plan.seconds.sum() > 0.93 * padded.sum()
    third = plan.rows[: len(plan.rows) // 3].mean()
    assert abs(third - 25_000) < 500  # of 50,000 in the order of the manifest
    assert abs(np.corrcoef(np.arange(len(plan)), plan.longest)[0, 1]) < 0.05


def first_fit(lengths: list[float], o: PlanOptions, most_audio: float) -> list[list[float]]:
    """Each length into the first batch in which it fits, one after the other."""
    batches: list[list[float]] = []
    for length in lengths:
        for batch in batches:
            longer = [*batch, length]
            if sum(longer) <= most_audio and len(longer) * max(longer) <= o.max_duration:
                batch.append(length)
                break
        else:
            batches.append([length])
    return batches


@pytest.mark.parametrize("count, max_duration", [(3, 40.0), (400, 60.0), (400, 25.0), (64, 0.5)])
def test_matched_batches_are_filled_longest_first(
    count: int, max_duration: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without blur, of one chunk: beside plain first fit, with sums that are exact."""
    monkeypatch.setattr(packing, "BLUR", 0.0)
    monkeypatch.setattr(packing, "OPEN", count)
    u = Utterances.plain(np.random.default_rng(count).integers(2, 40, count) / 2)
    o = PlanOptions(max_duration, matched=True)
    plan = make_plan(u, o, 1, 1)
    most_audio = max(max_duration - u.seconds.max(), max_duration / 2)
    expected = first_fit(sorted(u.seconds.tolist(), reverse=True), o, most_audio)
    found = [sorted(u.seconds[plan.batch(k)[0]].tolist(), reverse=True) for k in range(len(plan))]
    assert sorted(found) == sorted(sorted(batch, reverse=True) for batch in expected)


def test_matched_batches_hold_as_much_audio_in_every_group_and_alternate() -> None:
    """Four languages, 10 : 3 : 1 : 1 hours, one of them of short utterances."""
    rng = np.random.default_rng(0)
    groups = rng.choice(4, 20_000, p=[10 / 15, 3 / 15, 1 / 15, 1 / 15]).astype(np.int32)
    seconds = np.clip(rng.gamma(3, np.where(groups == 3, 0.7, 2.0)), 0.3, 20)
    u = dataclasses.replace(Utterances.plain(seconds), groups=groups)
    o = PlanOptions(100.0, matched=True)
    plan = make_plan(u, o, 1, 1)
    check(plan, u, dataclasses.replace(o, group_batches=True), list(range(20_000)))
    group = u.groups[plan.rows[plan.ends - 1]]
    for one in range(4):
        mine = plan.seconds[group == one]
        assert np.median(mine) > 0.98 * 80 and mine.max() <= 80 * (1 + 1e-9)
        assert (mine > 0.9 * 80).mean() > 0.93  # but for the last of each chunk
        places = np.flatnonzero(group == one) / len(group)
        even = (np.arange(len(places)) + 0.5) / len(places)
        assert np.abs(places - even).max() < 0.5 / len(places) + 4 / len(group)
    plain = make_plan(u, PlanOptions(100.0, group_batches=True), 1, 1)
    assert plan.seconds[group < 3].std() < plain.seconds.std()
    padded = plan.sizes * plan.longest
    assert plan.seconds.sum() > 0.85 * padded.sum()
    batches = [
        {frozenset(p.batch(k)[0].tolist()) for k in range(len(p))}
        for p in (plan, make_plan(u, o, 1, 2))
    ]
    assert not batches[0] & batches[1]


def test_speeds_are_equally_frequent_and_drawn_again_in_each_epoch() -> None:
    u = Utterances.plain(np.full(30_000, 5.0))
    o = PlanOptions(200.0, speeds=SPEEDS)
    drawn = []
    for epoch in (1, 2):
        plan = make_plan(u, o, 1, epoch)
        speed = np.empty(30_000)
        speed[plan.rows] = plan.speeds
        assert all(abs(n - 10_000) < 400 for n in Counter(speed.tolist()).values())
        drawn.append(speed)
    assert abs((drawn[0] == drawn[1]).mean() - 1 / 3) < 0.02


def test_pauses_are_as_frequent_as_asked_for_of_any_length_and_drawn_again_in_each_epoch() -> None:
    u = Utterances.plain(np.full(30_000, 5.0))
    drawn = []
    for epoch in (1, 2):
        plan = make_plan(u, PlanOptions(200.0, pause_prob=0.4), 1, epoch)
        pause = np.empty(30_000)
        pause[plan.rows] = plan.pauses
        longer = [(pause > share * plans.LONGEST_PAUSE).mean() for share in (0, 0.25, 0.5, 1)]
        assert longer == pytest.approx([0.4, 0.3, 0.2, 0], abs=0.01)
        drawn.append(pause)
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.02
    assert not make_plan(u, PlanOptions(200.0), 1, 1).pauses.any()
    short = make_plan(u, PlanOptions(200.0, max_utterance=6.0, pause_prob=1.0), 1, 1)
    assert short.pauses.max() <= 1 and (short.pauses > 0).mean() == pytest.approx(1 / 3, abs=0.01)


def test_the_rounding_of_lhotse_costs_no_frame_that_the_plan_counts_on() -> None:
    """lhotse rounds a changed duration to samples of the recording's rate, and then to 16 kHz."""
    lost = 0
    for rate in (8000, 11025, 16000, 44100):
        for speed in (0.9, 1.1):
            lengths = np.arange(rate, rate + 9000)
            seconds = lengths / rate / speed
            changed = np.array([perturb_num_samples(n, speed) / rate for n in lengths.tolist()])
            assert (encoder_frames(changed) >= encoder_frames(seconds - plans.ROUNDING)).all()
            lost += (encoder_frames(changed) < encoder_frames(seconds)).sum()
    assert lost > 0  # so that the margin is needed


def test_few_shards_are_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "WINDOW", 200)
    u = dataclasses.replace(
        Utterances.plain(np.random.default_rng(0).gamma(3, 2, 2000) + 0.3),
        shards=np.repeat(np.arange(40), 50).astype(np.int32),
    )
    plan = make_plan(u, PlanOptions(60.0, num_buckets=4), 1, 1)
    in_order = u.shards[plan.rows]
    for shard in range(40):
        places = np.flatnonzero(in_order == shard)
        assert np.ptp(places) < 200 + 50  # within its window
    assert in_order[:200].tolist() != sorted(in_order[:200].tolist())
    assert set(in_order[:200].tolist()) != set(range(4))


def test_a_fixed_plan_has_all_usable_utterances_sorted_by_length() -> None:
    u = some(500)
    plan = fixed_plan(u, OPTIONS)
    assert sorted(plan.rows.tolist()) == np.flatnonzero(u.usable).tolist()
    ranges = sorted((u.seconds[plan.batch(k)[0]].min(), plan.longest[k]) for k in range(len(plan)))
    assert all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:]))


def test_the_largest_batches_are_those_by_tokens_by_seconds_and_by_length() -> None:
    u = Utterances.plain(np.array([1.0] * 6 + [2.0] * 3 + [5.0] + [1.1]))
    tokens = np.array([1] * 10 + [400], dtype=np.int32)
    u = dataclasses.replace(u, tokens=tokens, needed=tokens * 0)
    plan = make_plan(u, PlanOptions(6.3, num_buckets=20, max_frames_tokens=0.02), 1, 1)
    sizes = [
        (len(rows), max(u.seconds[rows]), max(tokens[rows]))
        for rows in (plan.batch(k)[0] for k in range(len(plan)))
    ]
    measures = (lambda n, s, t: n * s * t, lambda n, s, t: n * s, lambda n, s, t: n * s * s)
    best = [max(range(len(plan)), key=lambda k: m(*sizes[k])) for m in measures]
    assert plan.largest() == list(dict.fromkeys(best)) and len(plan.largest()) > 1
    assert make_plan(Utterances.plain(np.zeros(0)), OPTIONS, 1, 1).largest() == []


def test_a_plan_is_the_same_out_of_its_files(tmp_path: Path) -> None:
    for count in (0, 300):
        plan = make_plan(some(count), OPTIONS, 1, 1)
        plan.save(tmp_path)
        loaded = Plan.load(tmp_path)
        for field in dataclasses.fields(Plan):
            values = getattr(loaded, field.name)
            assert np.array_equal(getattr(plan, field.name), values)
            assert not len(values) or isinstance(values, np.memmap)


@pytest.mark.parametrize("total", [0.0, 10.0, 130.0, 1e9])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_processes_together_take_the_same_steps(total: float, world_size: int) -> None:
    plan = make_plan(some(400), OPTIONS, 1, 1)
    for skip in (0, 3 * world_size, len(plan)):
        shares = [
            list(Share(plan, total, rank, world_size, skip, first=100))
            for rank in range(world_size)
        ]
        assert len({len(share) for share in shares}) == 1
        steps, step, begin = [], [], skip
        for turn in zip(*shares):
            step += turn
            assert len({planned.place.is_last for planned in turn}) == 1
            if turn[0].place.is_last:
                steps.append(step)
                step = []
        assert not step
        for step in steps:
            taken = [p for p in step if len(p.rows)]
            end = begin + len(taken)
            assert [p.rows.tolist() for p in taken] == [
                plan.batch(k)[0].tolist() for k in range(begin, end)
            ]
            assert [p.place.index for p in step] == [
                100 + k for k in range(begin, begin + len(step))
            ]
            assert {(p.place.batches, p.place.tokens) for p in step} == {
                (len(taken), int(plan.tokens[begin:end].sum()))
            }
            seconds = plan.seconds[begin:end]
            assert total == 0 or len(taken) == 1 or seconds.sum() <= total
            assert total > 0 or len(taken) == min(world_size, len(plan) - begin)
            begin = end
        assert begin == len(plan)
    if total:
        assert step_ends(plan.seconds, total, 1) == step_ends(plan.seconds, total, world_size)
