"""Predictions that are not finite: named by the step they belong to, and no GPU waits to be asked."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import torch
from hosting import module
from runs import STEPS, Report, before, broken_from, sr_model

finite = module("srd_core.finite")


class Late:
    """An answer's event that happens after it was looked at ``looks`` times, or when somebody waits for it."""

    def __init__(self, looks: float) -> None:
        self.looks, self.waited = looks, False

    def query(self) -> bool:
        self.looks -= 1
        return self.waited or self.looks < 0

    def synchronize(self) -> None:
        self.waited = True


@pytest.fixture
def answers_after(monkeypatch: Any) -> Any:
    """A function of the looks that each answer takes, as from a GPU that has much to do; it returns the events."""

    def delay(looks: float) -> list[Late]:
        events: list[Late] = []
        ask = finite.ask

        def late(tensor: torch.Tensor) -> Any:
            events.append(Late(looks))
            return finite.Answer(ask(tensor).value, events[-1])

        monkeypatch.setattr(finite, "ask", late)
        return events

    return delay


@pytest.mark.parametrize("looks", [1, 2], ids=["before the next call", "during it"])
@pytest.mark.parametrize(("stage", "at"), [("sketch", 3), ("render", 4)])
def test_a_late_answer_stops_the_run_and_names_the_step_and_stage_that_it_is_about(
    stage: str, at: int, looks: int, wan: Any, answers_after: Any
) -> None:
    answers_after(looks)
    broken, _ = broken_from(wan(), at if stage == "sketch" else at - 3, float("nan"))
    pair = (broken, wan(seed=1)) if stage == "sketch" else (wan(), broken)
    report = Report()
    with pytest.raises(RuntimeError, match=f"The {stage}'s prediction .*not finite.* at step {at} of {STEPS} .sigma"):
        helpers.ksampler(sr_model(*pair, 3, report), STEPS)
    assert report.status == "failed" and sum(entry.calls for entry in report.stages) == at + looks - 1
    assert looks > 1 or len(report.steps) == at


def test_an_answer_that_would_not_come_is_waited_for_at_the_end_of_the_next_step(wan: Any, answers_after: Any) -> None:
    events = answers_after(float("inf"))
    broken, calls = broken_from(wan(), 1, float("inf"))
    with pytest.raises(RuntimeError, match=f"The render's prediction .*not finite.* at step 4 of {STEPS} .sigma"):
        helpers.ksampler(sr_model(wan(), broken, 3), STEPS)
    assert len(calls) == 2 and [event.waited for event in events] == [True] * 4 + [False]


def test_the_last_step_s_answer_is_waited_for_before_anything_is_returned(wan: Any, answers_after: Any) -> None:
    events = answers_after(float("inf"))
    broken, _ = broken_from(wan(), 3, float("inf"))
    with pytest.raises(RuntimeError, match=f"The render's prediction .*not finite.* at step 6 of {STEPS} .sigma"):
        helpers.ksampler(sr_model(wan(), broken, 3), STEPS)
    assert len(events) == STEPS


def test_nobody_waits_for_the_newest_answer_before_the_run_s_end(wan: Any, answers_after: Any) -> None:
    """So the device always has a step to do."""
    events, waited = answers_after(float("inf")), []
    render = before(wan(seed=1), lambda _: waited.append([event.waited for event in events]))
    helpers.ksampler(sr_model(wan(), render, 3), STEPS)
    assert waited == [[True] * done + [False] for done in (2, 3, 4)]
    assert len(events) == STEPS and all(event.waited for event in events)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_bad_value_among_many_is_seen(bad: float, dtype: torch.dtype) -> None:
    tensor = torch.ones(1, 16, 5, 8, 8, dtype=dtype)
    assert finite.ask(tensor).value
    tensor[0, 7, 3, 1, 2] = bad
    assert not finite.ask(tensor).value


class Unread:
    """The answer of a device that would have to be waited for: says when it is read."""

    def __init__(self, value: bool) -> None:
        self.value, self.read, self.is_cuda = value, False, False

    def __bool__(self) -> bool:
        self.read = True
        return self.value


def watched(monkeypatch: Any, kind: str, *values: bool) -> tuple[Any, list[Unread]]:
    """(guard, the answers of predictions on a device of that kind); check() is for the caller to call."""
    answers = [Unread(value) for value in values]
    left = iter(answers)
    monkeypatch.setattr(finite, "_kind", lambda _: kind)
    monkeypatch.setattr(torch, "isfinite", lambda _: type("Asked", (), {"all": lambda _: next(left)})())
    return finite.FiniteGuard(), answers


@pytest.mark.parametrize("kind", ["mps", "xpu", "npu"])
def test_a_device_without_events_is_read_one_call_later(kind: str, monkeypatch: Any) -> None:
    guard, answers = watched(monkeypatch, kind, True, False)
    for i in range(2):
        guard.watch(torch.zeros(1), lambda i=i: f"call {i}")
        guard.check()
        assert [answer.read for answer in answers] == [i > 0, False]
    with pytest.raises(RuntimeError, match="call 1"):
        guard.check()


def test_its_last_answer_is_read_at_the_run_s_end(monkeypatch: Any) -> None:
    guard, answers = watched(monkeypatch, "mps", False)
    guard.watch(torch.zeros(1), lambda: "the last")
    guard.check()
    assert not answers[0].read
    with pytest.raises(RuntimeError, match="the last"):
        guard.check(wait=True)


def test_main_memory_is_read_at_once(monkeypatch: Any) -> None:
    guard, _ = watched(monkeypatch, "cpu", False)
    guard.watch(torch.zeros(1), lambda: "at once")
    with pytest.raises(RuntimeError, match="at once"):
        guard.check()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_asked_and_answers_without_anybody_waiting() -> None:
    good, bad = torch.ones(64, 1024, 1024, device="cuda"), torch.full((3,), torch.nan, device="cuda")
    guard = finite.FiniteGuard()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        guard.watch(good, lambda: "the good one")
        guard.watch(bad, lambda: "the bad one")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(RuntimeError, match="the bad one"):
        guard.check(wait=True)
