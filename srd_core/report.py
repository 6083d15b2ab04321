"""What happened in a run, step by step: plain data, JSON in and out. No tensors, no models, no host."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from .criterion import RENDER, SKETCH

VERSION = 1


@dataclass
class Step:
    """One scheduler step."""

    step: int  # 1-based
    sigma: float  # noise level at which the step starts
    stage: str  # sketch or render
    seconds: float | None = None  # wall time from the step before to this one, without loading
    d: float | None = None  # Eq. 3, sketch steps only; of a batch the largest
    derivative: float | None = None  # D of the step before minus D of this step; of a batch the largest
    reused: bool = False  # TeaCache: no transformer block ran


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


@dataclass
class Report:
    """The newest run of one Sketch-Render Model, filled while it samples."""

    status: str = "not run"  # not run, running, done, interrupted, failed
    sketch: str = ""  # the models, as the artist knows them
    render: str = ""
    switch: dict[str, Any] = field(default_factory=dict)  # the switching settings as set
    fix_step: int = 0  # as used in a run of this length
    limit: int = 0  # adaptive: the last step after which the run hands over in any case
    sampler: str = ""
    shape: list[int] = field(default_factory=list)  # of the latent
    sigmas: list[float] = field(default_factory=list)  # the run's schedule, length steps + 1
    steps: list[Step] = field(default_factory=list)
    hand_overs: list[HandOver] = field(default_factory=list)
    teacache: dict[str, dict[str, Any]] = field(default_factory=dict)  # stage -> skip plan, see reuse.Plan
    calls: dict[str, int] = field(default_factory=lambda: {SKETCH: 0, RENDER: 0})  # model calls (guided predictions)
    seconds: dict[str, float] = field(default_factory=lambda: {SKETCH: 0.0, RENDER: 0.0})  # sampling, without loading
    total_seconds: float = 0.0  # the whole sampling run with loading
    notes: list[str] = field(default_factory=list)  # what the artist should know
    error: str = ""
    version: int = VERSION

    def begin(self, **facts: Any) -> None:
        """Forget the run before and start with these facts."""
        self.__dict__.update(Report(status="running", **facts).__dict__)

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
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"This is not a report: it is not JSON ({error}).") from error
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise ValueError(f"This is not a sketch-render report of version {VERSION}.")
        try:
            report = cls(**data)
            report.steps = [Step(**s) for s in report.steps]  # type: ignore[arg-type]
            report.hand_overs = [HandOver(**h) for h in report.hand_overs]  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(f"This report has fields that are not known here ({error}).") from error
        return report


def describe_hand_over(hand_over: HandOver, report: Report) -> str:
    """One sentence for the log and the summary."""
    steps, switch = len(report.sigmas) - 1, report.switch
    why = {
        "criterion": f"criterion: D falls by {hand_over.derivative or 0:.4g} a step, delta is {switch.get('delta')}",
        "max_step": f"max_step: latest step of an adaptive switch ({report.limit} of {steps})",
        "step": f"step: switch_step is {switch.get('switch_step')}",
        "sigma": f"sigma: below switch_sigma {switch.get('switch_sigma')}",
    }.get(hand_over.reason, hand_over.reason)
    return (
        f"{hand_over.to} takes over after step {hand_over.after_step} of {steps} "
        f"(sigma {hand_over.sigma:.4g}, {hand_over.percent:.0f} % of the steps; {why})"
    )


def summarize(report: Report) -> str:
    """The run in a few lines for people."""
    if report.status == "not run":
        return (
            "No run yet, or one without steps (denoise 0). With Sketch-Render Model, connect the sampler's latent to the "
            "Inspector's `after`, so that it waits for the run."
        )
    lines = [f"Sketch: {report.sketch}", f"Render: {report.render}", f"Status: {report.status} {report.error}".rstrip()]
    lines += [f"Hand-over: {describe_hand_over(h, report)}, loaded in {h.seconds:.2f} s" for h in report.hand_overs]
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
