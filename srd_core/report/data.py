"""What happened in a run, step by step: plain data, JSON in and out. No tensors, no models, no host."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..route import LISTED, read_steps
from .version1 import upgraded

VERSION = 2
LARGEST = 2**53  # of the numbers in a report that is read: up to here JSON and JavaScript agree on every whole number
MOST_STEPS = 100_000  # of a run whose report is read

Number = Annotated[float, Field(gt=-LARGEST, lt=LARGEST, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=MOST_STEPS)]
STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass
class StageReport:
    """One stage of the route."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: str  # as steps and hand-overs call it
    model: str = ""  # as the artist knows it
    calls: Count = 0  # guided predictions
    seconds: Annotated[Number, Field(ge=0)] = 0.0  # sampling, without loading
    load_seconds: Annotated[Number, Field(ge=0)] = 0.0  # until its first call
    teacache: dict[str, Any] = field(default_factory=dict)  # its skip plan, see teacache.plan.Plan; empty: none
    weight_bytes: Size = 0  # of the model whole, reckoned before the run; 0: not known
    step_bytes: Size = 0  # that the host will ask for beside it, for one step


@dataclass
class Step:
    """One scheduler step."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    step: Count  # 1-based
    sigma: Number  # noise level at which the step starts
    stage: str
    # wall time from the step before to this one (the last: to the run's end), without loading
    seconds: Number | None = None
    d: Number | None = None  # Eq. 3, where a rule saw the step; of a batch the largest
    fall: Number | None = None  # of D, in 50ths of the timesteps; of a batch the largest
    fall_low: Number | None = None  # of a batch the smallest: the rule holds when all are in (0, delta)
    reused: bool = False  # a cache (TeaCache, EasyCache) answered in place of the network


@dataclass
class HandOver:
    """One change of the stage in charge."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    after_step: Count  # completed steps, 0: the run starts with ``to``
    to: str  # the stage that takes over
    reason: str  # criterion, earliest, latest, step, sigma or listed
    sigma: Number  # noise level of the first step of ``to``
    percent: Number  # share of the run's steps completed, 0 to 100
    d: Number | None = None
    fall: Number | None = None
    seconds: Number = 0.0  # to load and prepare the model that takes over
    # before, at (what is to leave has left) and after -> free on the new stage's device, and each stage on its own;
    # bytes
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    # the settings of the switch that made it; empty: those of the report
    rule: dict[str, Any] = field(default_factory=dict)
    # share of the velocity that is held, in each step from here on, at most: new noise ends it; empty: a cut
    fade: list[Number] = field(default_factory=list)


@dataclass
class Report:
    """The newest run of one Sketch-Render Model, filled while it samples."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    status: str = "not run"  # not run, running, done, interrupted, failed
    stages: list[StageReport] = field(default_factory=list)  # of the route, in the order of their first legs
    switch: dict[str, Any] = field(default_factory=dict)  # the switching settings as set
    earliest: Count = 0  # adaptive: the rule decides after this many steps at the earliest
    latest: Count = 0  # adaptive: the run hands over after this many steps at the latest
    sampler: str = ""
    sampler_node: str = ""  # id of the node that sampled
    shape: list[Size] = field(default_factory=list)  # of the latent
    # of the latent while the sketch ran it smaller; empty: it did not
    small_shape: list[Size] = field(default_factory=list)
    device_bytes: Size = 0  # that the first stage's device has; 0: not known
    render_steps: Count = 0  # as set, 0: the schedule's own
    given_steps: Count = 0  # of the schedule that the sampler was given; 0: as many as ``sigmas`` has
    sigmas: list[Number] = field(default_factory=list)  # the run's schedule as it is walked, length steps + 1
    steps: list[Step] = field(default_factory=list)
    hand_overs: list[HandOver] = field(default_factory=list)
    total_seconds: Annotated[Number, Field(ge=0)] = 0.0  # the whole sampling run with loading
    notes: list[str] = field(default_factory=list)  # what the artist should know
    error: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        # No part of the data: who wants to know of changes, which node samples, and the newest runs of other such
        # nodes.
        self.watch: Callable[[Report], None] | None = None
        self.ask_node: Callable[[], str] | None = None
        self.others: dict[str, Report] = {}

    def begin(self, **facts: Any) -> None:
        """Start with these facts; the run before is forgotten, unless it was of another sampling node."""
        node = self.ask_node() if self.ask_node else ""
        if self.status != "not run" and node != self.sampler_node:
            self.others[self.sampler_node] = copy.copy(self)
        self.others.pop(node, None)
        kept = {name: getattr(self, name) for name in ("watch", "ask_node", "others")}
        self.__dict__.update(Report(status="running", sampler_node=node, **facts).__dict__ | kept)
        self.changed()

    def of_nodes(self, nodes: Collection[str]) -> Report:
        """The newest run of one of these sampling nodes; without one, the newest of all."""
        found = [other for node, other in self.others.items() if node in nodes]
        return self if self.sampler_node in nodes or not found else found[-1]

    def changed(self) -> None:
        """Tell the watcher: a run began, a step was booked, a stage took over, or the run is over."""
        if self.watch:
            try:
                self.watch(self)
            except Exception:
                logging.exception("SRDiffusion: the run continues, but the page is told nothing more of it.")
                self.watch = None

    def stage(self, name: str) -> StageReport:
        """The stage of that name. Raises KeyError."""
        return {stage.name: stage for stage in self.stages}[name]

    def count(self, stage: str) -> int:
        """Scheduler steps that ``stage`` ran."""
        return sum(s.stage == stage for s in self.steps)

    def reused(self, stage: str) -> int:
        """Scheduler steps of ``stage`` that ran no transformer block."""
        return sum(s.stage == stage and s.reused for s in self.steps)

    def never(self) -> str:
        """What to say of a run without a hand-over."""
        first = self.stages[0].name if self.stages else "first stage"
        return f"never; the {first} ran all steps" if self.status == "done" else "not reached"

    def to_json(self) -> str:
        """The report as JSON text. Raises ValueError for a number that JSON can't hold."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what ``to_json`` wrote, of this version or the first. Raises ValueError with a sentence for all else.

        ``figures`` beside the fields, which saved files have for the page, are left out: they follow from the fields.
        """
        try:
            data = json.loads(text, parse_constant=_finite, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"This is not a report: it is not JSON ({error}).") from error
        if not isinstance(data, dict) or data.get("version") not in (1, VERSION):
            raise ValueError(f"This is not a sketch-render report of version 1 or {VERSION}.")
        try:
            data.pop("figures", None)
            data = upgraded(data) if data["version"] == 1 else data
            report: Report = READER.validate_json(json.dumps(data))
        except ValidationError as error:
            raise ValueError(f"This report is damaged: {fault_of(error)}.") from error
        except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"This report is damaged: it has not the parts of a report ({error!r:.80}).") from error
        _check_sense(report)
        return report


READER: TypeAdapter[Report] = TypeAdapter(Report)


def fault_of(error: ValidationError) -> str:
    """What is wrong in data that was read, as a part of a sentence."""
    fault = error.errors()[0]
    place = repr(".".join(map(str, fault["loc"])))[1:-1]
    return f"{place or 'text':.60} is {fault['input']!r:.60} ({fault['msg']})"


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a number that a run could give")
    return value


def _check_sense(report: Report) -> None:
    """Raises ValueError where values of the right types are not those of a run."""
    names = {stage.name for stage in report.stages}
    plans = [stage.teacache for stage in report.stages if stage.teacache]
    for what, holds in {
        "stages": len(names) == len(report.stages),
        "stage": {s.stage for s in report.steps} | {h.to for h in report.hand_overs} <= names,
        "switch": all(map(_is_switch, [report.switch, *(h.rule for h in report.hand_overs)])),
        "teacache": all(map(_is_plan, plans)),
    }.items():
        if not holds:
            raise ValueError(f"This report is damaged: its {what} can't be that of a run.")


def _is_switch(switch: dict[str, Any]) -> bool:
    if switch.get("mode") == LISTED:
        try:
            read_steps(switch.get("sketch_steps", "-"))
        except (ValueError, AttributeError):
            return False
    return all(isinstance(v, str) if name in ("mode", "sketch_steps") else _is_number(v) for name, v in switch.items())


def _is_plan(plan: dict[str, Any]) -> bool:
    growth, reuse = plan.get("growth", []), plan.get("reuse", [])
    return (
        isinstance(plan.get("table", ""), str)
        and _is_number(plan.get("threshold", None if plan.get("table") else 0.0))
        and type(plan.get("first_step", 0)) is int
        and isinstance(growth, list)
        and all(map(_is_number, growth))
        and isinstance(reuse, list)
        and all(type(value) is bool for value in reuse)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST < value < LARGEST
