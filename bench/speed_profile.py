"""A render step under torch's profiler, alone and in a cooperation: which kernels take its time, and who waits."""

from __future__ import annotations

import dataclasses
from typing import Any

import speed_measure
import torch
from speed_rows import CFG, PLAIN, Bench, cooperating, sample

NAMES = ALONE, TOGETHER, CACHED = "render alone", "cooperation", "cooperation with TeaCache"
STEPS = 12  # of a run; enough that the hand-over and the counting of calls lie behind the recorded steps


class StepProfile:
    """A step callback that records the step after ``first`` (0-based) with the profiler, and who waits in the one after
    that: the second record would be part of the first."""

    def __init__(self, device: torch.device, first: int) -> None:
        self.device, self.first = device, first
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler, self.waits = torch.profiler.profile(activities=activities), speed_measure.Waits(device)

    def __call__(self, step: int, *_: Any) -> None:
        if step == self.first:
            speed_measure.wait(self.device)
            self.profiler.start()
        elif step == self.first + 1:
            self.profiler.stop()  # waits for the device
            self.waits.__enter__()
        elif step == self.first + 2:
            self.waits.__exit__(None, None, None)

    def found(self) -> dict[str, Any]:
        """See speed_measure.profile_table; and the waits that the pack's own code asked for."""
        return {**speed_measure.profile_table(self.profiler, self.device, own_waits=1), "own_waits": self.waits.of_pack()}


def profiled(bench: Bench, name: str) -> dict[str, Any]:
    """A step late in the run of one of NAMES: the render alone, in a cooperation, in one with TeaCache on the render."""
    bench = dataclasses.replace(bench, steps=min(bench.steps, STEPS))
    sketch, model = bench.pair(PLAIN)
    if name != ALONE:
        model, _ = cooperating(sketch, model, 1, teacache=1e-9 if name == CACHED else 0.0)
    profile = StepProfile(bench.device, bench.steps - 4)
    sample(model, bench, CFG[bench.sketch.family], profile)
    return profile.found()
