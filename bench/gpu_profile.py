"""A render step under torch's profiler: which kernels take its time, and who waits for the device."""

from __future__ import annotations

import os
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import gpu_bench
import torch
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

TORCH = str(Path(torch.__file__).parent)
# What makes the program wait for a GPU, as the profiler names it. A copy that waits shows as cudaStreamSynchronize.
CUDA_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
# Reads of a value and copies, as torch names them; in inference mode it shows the first name, not what that is made of.
READS, COPIES = ("item", "is_nonzero", "_local_scalar_dense"), ("to", "_to_copy")
KERNELS = 12  # that are told
STEPS = 8  # of a run; the recorded ones lie far behind the hand-over


@dataclass(eq=False)
class Waits(TorchDispatchMode):
    """Takes down every read of a value from a tensor of the device (.item(), bool(), float()) and every blocking copy between
    devices, by the file and line that asked for it. On a GPU each of them waits; that they happen is seen on any device.
    """

    device: torch.device = torch.device("cpu")
    places: Counter[tuple[str, str]] = field(default_factory=Counter)  # (operation, file:line) -> times

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read = name in READS and args[0].device.type == self.device.type
        if read or (_changes_device(args, out) and not _in_passing(func, args, kwargs or {}, out)):
            self.places[name, _asked_by()] += 1
        return out

    def of_pack(self) -> dict[str, int]:
        """Only those that the pack's own code asked for: "operation, file:line" -> times."""
        root = str(common.REPOSITORY)
        return {
            f"{name}, {place.removeprefix(root + os.sep)}": times
            for (name, place), times in sorted(self.places.items())
            if place.startswith((os.path.join(root, "srd_core"), os.path.join(root, "nodes")))
        }


def _changes_device(args: Any, out: Any) -> bool:
    devices = {t.device.type for t in (*args, out) if isinstance(t, torch.Tensor)}
    return len(devices) > 1


def _in_passing(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> bool:
    """Whether a copy is .to("cpu", ..., non_blocking=True): torch takes page-locked memory for it, so nobody waits."""
    by_name = dict(zip([argument.name for argument in func._schema.arguments], args)) | kwargs
    return func.overloadpacket.__name__ in COPIES and bool(by_name.get("non_blocking")) and out.device.type == "cpu"


def _asked_by() -> str:
    """file:line of the innermost caller that is not torch's or this file's."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith((TORCH, __file__, "<")):
            return f"{frame.filename}:{frame.lineno}"
    return "?"


class StepProfile:
    """A step callback that records the step after ``first`` (0-based) with the profiler, and who waits in the one after that: the
    second record would be part of the first.
    """

    def __init__(self, device: torch.device, first: int) -> None:
        self.device, self.first = device, first
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler, self.waits = torch.profiler.profile(activities=activities), Waits(device)
        self.begin = self.seconds = 0.0

    def __call__(self, step: int, *_: Any) -> None:
        if step == self.first:
            gpu_bench.wait()
            self.profiler.start()
            self.begin = time.perf_counter()
        elif step == self.first + 1:
            gpu_bench.wait()
            self.seconds = time.perf_counter() - self.begin
            self.profiler.stop()
            self.waits.__enter__()
        elif step == self.first + 2:
            self.waits.__exit__(None, None, None)

    def found(self) -> dict[str, Any]:
        """Wall seconds, how much of them the largest kernels took (on the CPU: operators), all waits, and the pack's own."""
        events, cuda = self.profiler.key_averages(), self.device.type == "cuda"
        # On a GPU an operator has the seconds of the kernels that it started: those stand there by themselves too.
        timed = [e for e in events if not cuda or (e.device_type == DeviceType.CUDA and not e.is_user_annotation)]
        spent = Counter({e.key: (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e6 for e in timed})
        waits = Counter({e.key: e.count for e in events if e.key in {*CUDA_WAITS, "aten::_local_scalar_dense"}})
        waits.subtract(
            {"cudaDeviceSynchronize": 1 + cuda} if waits["cudaDeviceSynchronize"] else {}
        )  # ours, and the profiler's
        return {
            "seconds": self.seconds,
            "busy": sum(spent.values()) / self.seconds,
            "waits": dict(+waits),
            "own_waits": self.waits.of_pack(),
            "kernels": dict(spent.most_common(KERNELS)),
        }


def profiled(bench: Any, model: Any) -> dict[str, Any]:
    """A step late in a run of ``model``."""
    profile = StepProfile(gpu_bench.device(), STEPS - 4)
    bench.sample(model, bench.cfg, profile, steps=STEPS)
    return profile.found()
