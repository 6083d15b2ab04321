"""What a run notes while it samples: seconds, steps and hand-overs, as they go into the report."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .report.data import HandOver, Report, Step
from .report.text import describe_hand_over
from .route import Turn


@dataclass
class Books:
    """Keeps a report up to date during one run."""

    report: Report
    sigmas: Sequence[float]  # the run's schedule, length steps + 1
    first_stage: str  # which the host loads before the first call
    started: float = field(default_factory=time.perf_counter)
    open: bool = False  # a step is noted and its callback has not come
    _clock: float = field(default_factory=time.perf_counter)  # the last model call or, before any, the start
    _step_clock: float = field(default_factory=time.perf_counter)  # the last callback, moved by loading times

    def tick(self, stage: str) -> None:
        """Before a model call: the time since the call before it belongs to the ``stage`` that made that one."""
        now = time.perf_counter()
        if any(stage.calls for stage in self.report.stages):
            self.report.stage(stage).seconds += now - self._clock
        else:  # until now the host loaded the first stage
            self._step_clock, self.report.stage(self.first_stage).load_seconds = now, now - self.started
        self._clock = now

    def begin_step(self, step: int, stage: str) -> None:
        """``step``: 0-based."""
        self.report.steps.append(Step(step + 1, self.sigmas[step], stage))
        self.open = True

    def end_step(self, step: int, stage: str, reused: Callable[[Step], bool]) -> None:
        """The sampler called back in ``step`` (0-based): one that was not seen to begin is noted now."""
        steps = self.report.steps
        if not self.open and step + 1 > (steps[-1].step if steps else 0):
            self.begin_step(step, stage)
        if steps:
            self.add_seconds()
            steps[-1].reused = reused(steps[-1])
        self.open = False
        self.report.changed()

    def add_seconds(self) -> None:
        """To the last noted step: the time since seconds were last added."""
        now, last = time.perf_counter(), self.report.steps[-1]
        last.seconds, self._step_clock = (last.seconds or 0) + now - self._step_clock, now

    def observed(self, d: Sequence[float] | None, fall: Sequence[float] | None) -> None:
        """What the criterion says of the last noted step, one value per sample."""
        step = self.report.steps[-1]
        step.d, step.fall = _largest(d), _largest(fall)
        step.fall_low = None if step.fall is None else min(fall or [])

    def hand_over(
        self, step: int, turn: Turn, fade: list[float], seconds: float, memory: dict[str, dict[str, int]]
    ) -> None:
        """A change at ``step`` (0-based) after ``seconds`` of loading; ``fade`` and ``memory`` as in HandOver."""
        self.report.stage(turn.to).load_seconds += seconds
        self._clock += seconds
        self._step_clock += seconds
        last = self.report.steps[-1] if self.report.steps else None
        d, fall = (last.d, last.fall) if last else (None, None)
        sigma, percent = self.sigmas[step], 100 * step / (len(self.sigmas) - 1)
        rule = turn.pair.switch.settings()
        hand_over = HandOver(step, turn.to, turn.reason, sigma, percent, d, fall, seconds, memory, rule, fade)
        for before in self.report.hand_overs:  # what was to fade longer ends here
            before.fade = before.fade[: step - before.after_step]
        self.report.hand_overs.append(hand_over)
        logging.info("SRDiffusion: switched %s", describe_hand_over(hand_over, self.report))
        self.report.changed()

    def close(self, stage: str) -> None:
        """The run is over; ``stage`` was in charge."""
        self.tick(stage)
        self.report.total_seconds = time.perf_counter() - self.started


def _largest(values: Sequence[float] | None) -> float | None:
    """The largest of a batch; None where there is none, or one that is not finite (JSON has no word for it)."""
    return max(values) if values and all(map(math.isfinite, values)) else None
