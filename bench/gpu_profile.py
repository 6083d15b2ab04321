"""A render step under torch's profiler: which kernels take its time, and who waits for the device."""

from __future__ import annotations

import os
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import common
import gpu_bench
import torch
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

TORCH = str(Path(torch.__file__).parent)
# What makes the program wait for a GPU, as the profiler names it. A copy that waits shows as cudaStreamSynchronize, and
# cudaDeviceSynchronize is left out: it is the bench's own and the profiler's.
CUDA_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "aten::_local_scalar_dense")
# Reads of a value and copies, as torch names them; in inference mode it shows the first name, not what that is made of.
READS, COPIES = ("item", "is_nonzero", "_local_scalar_dense"), ("to", "_to_copy")
KERNELS = 12  # that are kept
STEPS = 8  # of a run; the recorded ones lie far behind the switch


class Waits(TorchDispatchMode):
    """Takes down every read of a value from a tensor of the device, and every blocking copy between devices.

    By the file and line that asked for it. On a GPU each of them waits; that they happen is seen on any device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.places: Counter[tuple[str, str]] = Counter()  # (operation, file:line) -> times

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read = name in READS and args[0].device.type == self.device.type
        devices = {t.device.type for t in (*args, out) if isinstance(t, torch.Tensor)}
        if read or (len(devices) > 1 and not _in_passing(func, args, kwargs or {}, out)):
            self.places[name, _asked_by()] += 1
        return out

    def of_pack(self) -> dict[str, int]:
        """Only those that the pack's own code asked for: "operation, file:line" -> times."""
        own = tuple(str(common.REPOSITORY / folder) for folder in ("srd_core", "nodes"))
        return {
            f"{name}, {place.removeprefix(str(common.REPOSITORY) + os.sep)}": times
            for (name, place), times in sorted(self.places.items())
            if place.startswith(own)
        }


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


def profiled(bench: Any, model: Any) -> dict[str, Any]:
    """A step late in a run of ``model`` under the profiler, and who waits in the one after it.

    Wall seconds, the share of them that kernels took (on the CPU: operators), all waits, the pack's own, the largest
    kernels with their seconds.
    """
    cuda = gpu_bench.device().type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * cuda]
    profiler, waits, first = torch.profiler.profile(activities=kinds), Waits(gpu_bench.device()), STEPS - 4
    times = []

    def at_step(step: int, *_: Any) -> None:
        if step == first:
            gpu_bench.wait()
            profiler.start()
            times.append(time.perf_counter())
        elif step == first + 1:
            gpu_bench.wait()
            times.append(time.perf_counter())
            profiler.stop()
            waits.__enter__()
        elif step == first + 2:
            waits.__exit__(None, None, None)

    bench.sample(model, bench.cfg, at_step, steps=STEPS)
    seconds, events = times[1] - times[0], profiler.key_averages()
    # On a GPU an operator has the seconds of the kernels that it started: those stand there by themselves too.
    timed = [e for e in events if not cuda or (e.device_type == DeviceType.CUDA and not e.is_user_annotation)]
    spent = Counter({e.key: (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e6 for e in timed})
    return {
        "seconds": seconds,
        "busy": sum(spent.values()) / seconds,
        "waits": {e.key: e.count for e in events if e.key in CUDA_WAITS},
        "own_waits": waits.of_pack(),
        "kernels": dict(spent.most_common(KERNELS)),
    }
