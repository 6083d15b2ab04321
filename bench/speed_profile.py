"""A render step under torch's profiler, alone and in a cooperation: which kernels take its time, and who waits."""

from __future__ import annotations

import dataclasses
from typing import Any

import speed_measure
import torch
from quality_host import module
from speed_rows import CFG, PLAIN, Bench, sample

STEPS = 12  # of a run; enough that the hand-over and the counting of calls lie behind the recorded steps


class StepProfile:
    """A step callback that records the step after ``first`` (0-based) with the profiler, and who waits in the one after
    that: the second record would be part of the first."""

    def __init__(self, device: torch.device, first: int) -> None:
        self.device, self.first = device, first
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler, self.waits = torch.profiler.profile(activities=activities), speed_measure.Waits()

    def __call__(self, step: int, *_: Any) -> None:
        if step == self.first:
            speed_measure.wait(self.device)
            self.profiler.start()
        elif step == self.first + 1:
            speed_measure.wait(self.device)
            self.profiler.stop()
            self.waits.__enter__()
        elif step == self.first + 2:
            self.waits.__exit__(None, None, None)

    def found(self) -> dict[str, Any]:
        """See speed_measure.profile_table; and the waits that the pack's own code asked for."""
        return {**speed_measure.profile_table(self.profiler), "own_waits": self.waits.of_pack()}


def compare(bench: Bench) -> dict[str, dict[str, Any]]:
    """The same steps, late in the run, of the render alone, in a cooperation, and in one with TeaCache on the render."""
    bench = dataclasses.replace(bench, steps=min(bench.steps, STEPS))
    _, render = bench.pair(PLAIN)
    cooperation, criterion = module("srd_core.cooperation"), module("srd_core.criterion")
    switch = criterion.Switch(mode="step", switch_step=1)

    def cooperated(teacache: float) -> Any:
        settings = cooperation.RenderSettings(teacache=teacache)
        return cooperation.cooperate(bench.pair(PLAIN)[0], render, switch, settings, module("srd_core.report").Report())

    models = {"render alone": render, "cooperation": cooperated(0.0), "cooperation with TeaCache": cooperated(1e-9)}
    found = {}
    for name, model in models.items():
        profile = StepProfile(bench.device, bench.steps - 4)
        sample(model, bench, CFG[bench.sketch.family], profile)
        found[name] = profile.found()
    return found
