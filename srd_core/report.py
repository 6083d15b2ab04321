"""What happened in a run, step by step: plain data, JSON in and out. No tensors, no models, no host."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from .criterion import RENDER, SKETCH

VERSION = 1
LARGEST = 2**53  # of the numbers in a report that is read: up to here JSON and JavaScript agree on every whole number
MOST_STEPS = 100_000  # of a run whose report is read


@dataclass
class Step:
    """One scheduler step."""

    step: int  # 1-based
    sigma: float  # noise level at which the step starts
    stage: str  # sketch or render
    seconds: float | None = None  # wall time from the step before to this one (the last: to the run's end), without loading
    d: float | None = None  # Eq. 3, sketch steps only; of a batch the largest
    derivative: float | None = None  # D of the step before minus D of this step; of a batch the largest
    reused: bool = False  # TeaCache: no transformer block ran
    derivative_low: float | None = None  # of a batch the smallest derivative; it hands over when all are in (0, delta)


@dataclass
class HandOver:
    """One change of the stage in charge."""

    after_step: int  # completed steps, 0: the run starts with ``to``
    to: str  # the stage that takes over
    reason: str  # criterion, max_step, step or sigma
    sigma: float  # noise level of the first step of ``to``
    percent: float  # share of the run's steps completed, 0 to 100
    d: float | None = None
    derivative: float | None = None
    seconds: float = 0.0  # to load and prepare the model that takes over
    # before, at (what is to leave has left) and after -> free on the render's device, sketch and render on theirs; bytes
    memory: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class Report:
    """The newest run of one Sketch-Render Model, filled while it samples."""

    status: str = "not run"  # not run, running, done, interrupted, failed
    sketch: str = ""  # the models, as the artist knows them
    render: str = ""
    switch: dict[str, Any] = field(default_factory=dict)  # the switching settings as set
    delta: float = 0.0  # as used in a run of this length, see Switch.delta_for
    fix_step: int = 0  # as used in a run of this length
    limit: int = 0  # adaptive: the last step after which the run hands over in any case
    sampler: str = ""
    shape: list[int] = field(default_factory=list)  # of the latent
    sigmas: list[float] = field(default_factory=list)  # the run's schedule, length steps + 1
    steps: list[Step] = field(default_factory=list)
    hand_overs: list[HandOver] = field(default_factory=list)
    teacache: dict[str, dict[str, Any]] = field(default_factory=dict)  # stage -> skip plan, see teacache.plan.Plan
    calls: dict[str, int] = field(default_factory=lambda: {SKETCH: 0, RENDER: 0})  # model calls (guided predictions)
    seconds: dict[str, float] = field(default_factory=lambda: {SKETCH: 0.0, RENDER: 0.0})  # sampling, without loading
    total_seconds: float = 0.0  # the whole sampling run with loading
    notes: list[str] = field(default_factory=list)  # what the artist should know
    error: str = ""
    version: int = VERSION
    load_seconds: dict[str, float] = field(default_factory=lambda: {SKETCH: 0.0, RENDER: 0.0})  # until its first call

    def __post_init__(self) -> None:
        self.watch: Callable[[Report], None] | None = None  # whoever wants to know; no part of the data

    def begin(self, **facts: Any) -> None:
        """Forget the run before and start with these facts."""
        self.__dict__.update(Report(status="running", **facts).__dict__ | {"watch": self.watch})
        self.changed()

    def changed(self) -> None:
        """Tell the watcher: a run began, a step was booked, a stage took over, or the run is over."""
        if self.watch:
            try:
                self.watch(self)
            except Exception:
                logging.exception("SRDiffusion: the run goes on, but the page is not told of it any more.")
                self.watch = None

    def count(self, stage: str) -> int:
        """Scheduler steps that ``stage`` ran."""
        return sum(s.stage == stage for s in self.steps)

    def reused(self, stage: str) -> int:
        """Scheduler steps of ``stage`` that ran no transformer block."""
        return sum(s.stage == stage and s.reused for s in self.steps)

    def speed_up(self) -> float | None:
        """Over the sketch alone: (all calls at the sketch's mean seconds a call) / (this run's sampling seconds).

        None while a stage has not run: there is nothing to compare, or nothing to compare with.
        """
        sketch, render, total = self.calls[SKETCH], self.calls[RENDER], sum(self.seconds.values())
        if not (sketch and render and self.seconds[SKETCH] and total):
            return None
        return self.seconds[SKETCH] / sketch * (sketch + render) / total

    def never(self) -> str:
        """What to say of a run without a hand-over."""
        return "never; the sketch ran all steps" if self.status == "done" else "not reached"

    def to_json(self) -> str:
        """The report as JSON text. Raises ValueError for a number that JSON can't hold."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what ``to_json`` wrote. Raises ValueError with a sentence for anything else."""
        try:
            data = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"This is not a report: it is not JSON ({error}).") from error
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise ValueError(f"This is not a sketch-render report of version {VERSION}.")
        try:
            report = cls(**data)
            report.steps = [Step(**s) for s in report.steps]  # type: ignore[arg-type]
            report.hand_overs = [HandOver(**h) for h in report.hand_overs]  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(f"This report has fields that are not known here ({error}).") from error
        _check_types(report)
        for part in (*report.steps, *report.hand_overs):
            _check_types(part)
        _check_sense(report)
        return report


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number that a run could give")


def _check_types(part: Any) -> None:
    """Raises ValueError naming the first field whose value is not of the declared type."""
    kind: type = type(part)
    for name, hint in _type_hints(kind).items():
        if not _fits(getattr(part, name), hint):
            raise ValueError(f"This report is damaged: {name} of a {kind.__name__} is {getattr(part, name)!r:.60}.")


def _check_sense(report: Report) -> None:
    """Raises ValueError where values of the right types are not those of a run."""
    stages, moments = {SKETCH, RENDER}, [s.step for s in report.steps] + [h.after_step for h in report.hand_overs]
    numbers = [value for name, value in report.switch.items() if name != "mode"]
    plans = [plan for plan in report.teacache.values() if plan.get("table")]
    for what, holds in {
        "stage": {s.stage for s in report.steps} | {h.to for h in report.hand_overs} <= stages,
        "step": all(0 <= moment <= MOST_STEPS for moment in moments),
        "switch": isinstance(report.switch.get("mode", ""), str) and all(_fits(value, float) for value in numbers),
        "teacache": all(isinstance(p["table"], str) and _fits(p.get("threshold"), float) for p in plans)
        and all(_fits(p.get("growth", []), list[float]) for p in report.teacache.values()),
        "calls": set(report.calls) == stages and min(report.calls.values()) >= 0,
        "seconds": set(report.seconds) == stages and min(report.seconds.values()) >= 0,
    }.items():
        if not holds:
            raise ValueError(f"This report is damaged: its {what} can't be that of a run.")


@functools.cache  # every annotation is compiled anew
def _type_hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that JSON gave is of a type as the dataclasses here write it."""
    if hint is Any or hint is type(None):
        return hint is Any or value is None
    inner = get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if inner:  # a union
        return any(_fits(value, option) for option in inner)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST < value < LARGEST
    if hint is int and isinstance(value, int) and not -LARGEST < value < LARGEST:
        return False
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def describe_hand_over(hand_over: HandOver, report: Report) -> str:
    """One sentence for the log and the summary."""
    steps, switch = len(report.sigmas) - 1, report.switch
    why = {
        "criterion": f"criterion: D falls by {hand_over.derivative or 0:.4g} a step, delta is {described_delta(report)}",
        "max_step": f"max_step: latest step of an adaptive switch ({report.limit} of {steps})",
        "step": f"step: switch_step is {switch.get('switch_step')}",
        "sigma": f"sigma: below switch_sigma {switch.get('switch_sigma')}",
    }.get(hand_over.reason, hand_over.reason)
    return (
        f"{hand_over.to} takes over after step {hand_over.after_step} of {steps} "
        f"(sigma {hand_over.sigma:.4g}, {hand_over.percent:.0f} % of the steps; {why})"
    )


def describe_memory(hand_over: HandOver) -> str:
    """One line: what was free and what was loaded around a hand-over, by the host's accounting."""
    moments = {"before": "before", "at": "at the hand-over", "after": "after it"}
    sizes = [
        f"{words} {' / '.join(f'{hand_over.memory[moment].get(of, 0) / 1e9:.1f}' for of in ('free', SKETCH, RENDER))}"
        for moment, words in moments.items()
        if moment in hand_over.memory
    ]
    return f"Memory, GB (free / sketch / render): {', '.join(sizes)}"


def described_delta(report: Report) -> str:
    """Delta as set, and as used where the run has not the 50 steps that it is set for."""
    as_set = report.switch.get("delta", 0)
    return f"{as_set:g}" if report.delta in (0, as_set) else f"{as_set:g} ({report.delta:.3g} at {len(report.sigmas) - 1} steps)"


def summarize(report: Report) -> str:
    """The run in a few lines for people."""
    if report.status == "not run":
        return (
            "No run yet, or one without steps (denoise 0). With Sketch-Render Model, connect the sampler's latent to the "
            "Inspector's `after`, so that it waits for the run."
        )
    lines = [f"Sketch: {report.sketch}", f"Render: {report.render}", f"Status: {report.status} {report.error}".rstrip()]
    lines += [f"Hand-over: {describe_hand_over(h, report)}, loaded in {h.seconds:.2f} s" for h in report.hand_overs]
    lines += [describe_memory(h) for h in report.hand_overs if h.memory]
    if not report.hand_overs:
        lines.append(f"Hand-over: {report.never()}")
    for stage in (SKETCH, RENDER):
        count = report.count(stage)
        each = f", {report.seconds[stage] / count:.3g} s a step" if count else ""
        lines.append(f"{stage.capitalize()}: {count} steps, {report.seconds[stage]:.3g} s{each}")
        if plan := report.teacache.get(stage, {}).get("table"):
            threshold = report.teacache[stage]["threshold"]
            lines.append(f"TeaCache on the {stage}: {report.reused(stage)} of {count} steps reused, "
                         f"threshold {threshold:g}, coefficients of {plan}")  # fmt: skip
    if speed_up := report.speed_up():
        lines.append(
            f"Speed-up over the sketch alone: {speed_up:.2f}x (from this run's seconds a call, without loading)"
        )
    return "\n".join(lines + report.notes)
