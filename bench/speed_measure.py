"""The clocks of the speed bench: seconds that wait for the device, its peaks, memory, energy, and hidden waits."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import common
import torch
from comfy.ldm.modules.attention import get_attention_function
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode

RECIPE = 2  # raise when rows are measured in another way: older seconds are then not put together with newer ones
TORCH = str(Path(torch.__file__).parent)
# What makes the program wait for a GPU, as the profiler names it. A copy that waits shows as cudaStreamSynchronize.
DEVICE_WAIT = "cudaDeviceSynchronize"
CUDA_WAITS = ("cudaStreamSynchronize", DEVICE_WAIT, "cudaEventSynchronize", "cudaMemcpy")
# Reads of a value and copies, as torch names them; in inference mode it shows the first name, not what that is made of.
READS, COPIES = ("item", "is_nonzero", "_local_scalar_dense"), ("to", "_to_copy")
QUANTISED = ("sage", "sage3")  # attention backends that never give the bits of pytorch's, unless that stands in for them
PEAK_SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices of the peak
COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}
NVML = "libnvidia-ml.so.1"


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> float:
    """Seconds from some moment. One thread on the CPU: of the processor that this process had, which other programs do not
    lengthen much; else wall time."""
    return time.process_time() if by_processor(device) else time.perf_counter()


def by_processor(device: torch.device) -> bool:
    """Whether ``clock`` tells processor time."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def card(device: torch.device) -> str:
    """The name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def facts(device: torch.device) -> dict[str, Any]:
    """Date, command, machine, host and versions of a session, and how it is timed."""
    common_facts = common.facts()
    if device.type == "cuda":
        common_facts["versions"] += f", CUDA {torch.version.cuda or ''}, driver {_ask_driver()}"
    return {
        **common_facts,
        "card": card(device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "clock": "processor time" if by_processor(device) else "wall time",
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "recipe": RECIPE,
        "fp8_products": bool(comfy.model_management.supports_fp8_compute(device)),
    }


def _ask_driver() -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.check_output(words, text=True).splitlines()[0].strip()
    return "unknown"


def compute_dtype(device: torch.device) -> torch.dtype:
    """That of the models without fp8."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def peak_flops(device: torch.device, rounds: int = 5) -> float:
    """Operations a second of one large matrix product, the best of some: the card's measured peak."""
    side = PEAK_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=compute_dtype(device)) for _ in range(2))
    return 2 * side**3 / min(_seconds(lambda: a @ b, device, rounds))


def bandwidth(device: torch.device, rounds: int = 5) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    size = COPY_BYTES[device.type]
    a, b = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / min(_seconds(lambda: b.copy_(a), device, rounds))


def _seconds(work: Callable[[], Any], device: torch.device, rounds: int) -> list[float]:
    work()
    found = []
    for _ in range(rounds):
        wait(device)
        begin = clock(device)
        work()
        wait(device)
        found.append(clock(device) - begin)
    return found


def attention_seconds(network: Any, tokens: int, device: torch.device, names: list[str]) -> dict[str, float]:
    """Median seconds of one self-attention of a network at this many tokens, for those backends that can do it."""
    q, k, v = _projected(network, tokens, device)
    found = {}
    for name in names:
        function = get_attention_function(name)
        try:
            if falls_back(name, network, device):
                sys.stderr.write(f"attention {name}: it gives what pytorch's gives, so it is not timed by itself\n")
                continue
            found[name] = statistics.median(_seconds(lambda f=function: f(q, k, v, network.heads), device, 3))  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001  too little memory, or a kernel or a compiler that is not for this card
            sys.stderr.write(f"attention {name}: {error}\n")
    return found


def falls_back(name: str, network: Any, device: torch.device) -> bool:
    """Whether a backend of QUANTISED is pytorch's under another name here: the host turns to that where one fails."""
    if name not in QUANTISED:
        return False
    q, k, v = _projected(network, 512, device)
    ours, theirs = (get_attention_function(which)(q, k, v, network.heads) for which in (name, "pytorch"))
    return torch.equal(ours, theirs)


def _projected(network: Any, tokens: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Random queries, keys and values, [1, tokens, dim] each."""
    return tuple(torch.randn(1, tokens, network.dim, device=device, dtype=compute_dtype(device)) for _ in range(3))


# --- memory and energy ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def gauge(device: torch.device) -> Iterator[dict[str, float | None]]:
    """What the block takes: seconds, peak memory in bytes (on the CPU: of the whole process so far), energy in joules
    (None where the driver does not tell it)."""
    found: dict[str, float | None] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    wait(device)
    before, begin = joules(device), clock(device)
    yield found
    wait(device)
    found["seconds"] = clock(device) - begin
    after = joules(device)
    found["energy"] = after - before if before is not None and after is not None else None
    found["memory"] = _peak_memory(device)


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def joules(device: torch.device) -> float | None:
    """The card's energy counter by its driver (NVML); None where there is none."""
    if device.type != "cuda":
        return None
    try:
        nvml = ctypes.CDLL(NVML)
    except OSError:
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    handle, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
    calls = (
        lambda: nvml.nvmlInit_v2(),
        lambda: nvml.nvmlDeviceGetHandleByUUID(ctypes.c_char_p(uuid), ctypes.byref(handle)),
        lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)),
    )
    if any(call() != 0 for call in calls):
        return None
    return energy.value / 1000  # the driver counts millijoules


# --- hidden waits ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Waits(TorchDispatchMode):
    """Takes down every read of a value from a tensor of the device (.item(), bool(), float()) and every blocking copy between
    devices, by the file and line that asked for it. On a GPU each of them waits; that they happen is seen on any device."""

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
        return {f"{name}, {place.removeprefix(root + os.sep)}": times for (name, place), times in sorted(self.places.items())
                if place.startswith((os.path.join(root, "srd_core"), os.path.join(root, "nodes")))}  # fmt: skip


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


def profile_table(profiler: Any, device: torch.device, own_waits: int = 0, rows: int = 15) -> dict[str, Any]:
    """Of a finished torch profile: seconds and share of each of the largest kernels (on the CPU: operators), and how often
    the program waited; ``own_waits`` of the device are the profile's own."""
    events, cuda = profiler.key_averages(), device.type == "cuda"
    # On a GPU an operator has the seconds of the kernels that it started: those stand there by themselves too.
    timed = [e for e in events if not cuda or (e.device_type == DeviceType.CUDA and not e.is_user_annotation)]
    seconds = {e.key: (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e6 for e in timed}
    total = sum(seconds.values())
    largest = sorted(seconds, key=lambda key: -seconds[key])[:rows]
    waits = {event.key: event.count for event in events if event.key in {*CUDA_WAITS, "aten::_local_scalar_dense"}}
    if DEVICE_WAIT in waits:
        waits[DEVICE_WAIT] -= own_waits
    return {
        "seconds": total,
        "kernels": {key: {"seconds": seconds[key], "share": seconds[key] / total} for key in largest if seconds[key]},
        "waits": {name: count for name, count in waits.items() if count > 0},
    }
