"""The rows of bench/gpu.py: single steps, whole runs, little memory and profiles, by the host's own sampling call."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import common
from hosting import module  # (first: the host in this process, on the device that the environment names)

# isort: split
import comfy.memory_management
import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import cost
import gpu_models
import psutil
import torch
from comfy.ldm.modules.attention import get_attention_function
from gpu_models import DEFAULT, FP8, SHAPES

SKETCH, RENDER = "sketch", "render"
STEPS = 10  # of a whole run
PAPER_STEPS = 50
SKETCH_STEPS = {cost.WAN: 10, cost.COGVIDEOX: 15}  # of 50: the paper's mean at delta 0.01
CFG = {cost.WAN: 5.0, cost.COGVIDEOX: 6.0}
# The share of its steps that TeaCache reuses on the render with real weights, from the seconds of the paper's Tables 2 and 3:
# those saved at threshold 0.14 and 0.1, over those of a step. Random weights change otherwise, so here the threshold is chosen
# to reuse as many.
REUSED = {cost.WAN: (296 - 215) / 158 * 50 / 40, cost.COGVIDEOX: (117 - 107) / 75 * 50 / 35}
FADE = 1.1  # the fitted width
SHORT_480P = cost.Size(832, 480, 33)
SIZE_720P = cost.Size(1280, 720, 81)
LIMITS = (24, 16, 12)  # GiB
ROUNDS = 2
SEED, SAMPLER, SCHEDULER = 0, "euler", "simple"
ROOM = 1.2  # main memory that must be free for a byte of weights
GIB = 1 << 30


class Unavailable(Exception):
    """This row can't be measured here; the text says why."""


@dataclass(frozen=True)
class Variant:
    """How the networks are computed."""

    weights: str = DEFAULT
    attention: str = "auto"
    compiled: bool = False


PLAIN = Variant()


@dataclass
class Work:
    """One part of a stage: where its rows go, and with which shapes."""

    results: Any  # gpu.Results
    part: dict[str, Any]
    shapes: str  # of gpu_models.SHAPES

    def row(self, name: str, measure: Callable[[], dict[str, Any]], number: int = 0) -> None:
        """Measure a row, unless it is there; ``number`` of the round."""
        what = {**self.part, "row": name, "round": number}
        if self.results.has(**what):
            return
        try:
            found = measure()
        except Unavailable as why:
            found = {"unavailable": str(why)}
        except Exception as error:  # noqa: BLE001  too little memory, or a kernel or a compiler that can't: the others still can
            traceback.print_exception(error)
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
        self.results.add({**what, **found})
        print("  ", name, {key: value for key, value in found.items() if key not in ("kernels", "notes")}, flush=True)


def run(what: str, work: Work) -> None:
    """One of PARTS, as the host runs its nodes."""
    if device().type == "cuda":
        torch.set_num_threads(os.cpu_count() or 1)  # 28 GB of weights are filled
    with torch.inference_mode():
        PARTS[what](work)


# --- the machine --------------------------------------------------------------------------------------------------------


def device() -> torch.device:
    """That the host computes on."""
    return comfy.model_management.get_torch_device()


def facts() -> dict[str, Any]:
    """Machine, host, versions, and what the device reaches: operations and bytes a second."""
    found: dict[str, Any] = {**common.facts(), "card": f"{os.cpu_count()} CPU cores"}
    del found["command"]
    if device().type == "cuda":
        found["card"] = torch.cuda.get_device_name(device())
        found["versions"] += f", CUDA {torch.version.cuda}, driver {_driver()}"
        found["memory"] = torch.cuda.get_device_properties(device()).total_memory
    side, length = (8192, 2 * GIB) if device().type == "cuda" else (512, 1 << 24)
    a, b = (torch.randn(side, side, device=device(), dtype=gpu_models.compute_dtype(device())) for _ in range(2))
    found["flops"] = 2 * side**3 / _best(lambda: a @ b)
    pinned = torch.empty(length, dtype=torch.uint8, pin_memory=device().type == "cuda")
    there, also = (torch.empty(length, dtype=torch.uint8, device=device()) for _ in range(2))
    found["copy"] = 2 * length / _best(lambda: also.copy_(there))
    found["bus"] = length / _best(lambda: there.copy_(pinned, non_blocking=True))
    return found


def _driver() -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.check_output(words, text=True).splitlines()[0].strip()
    return "unknown"


def _best(work: Callable[[], Any], rounds: int = 5) -> float:
    """Seconds of the fastest of some rounds, after one that warms up."""
    found = []
    for _ in range(rounds + 1):
        wait()
        begin = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def wait() -> None:
    """Until the device has done all that it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def gauge() -> Iterator[dict[str, Any]]:
    """What the block takes: seconds, and the peak of the GPU's memory in bytes."""
    found: dict[str, Any] = {}
    on_gpu, over = device().type == "cuda", threading.Event()
    watch = threading.Thread(target=_watch, args=(found, over), daemon=True)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        if comfy.memory_management.aimdo_enabled:  # takes memory behind torch's back
            watch.start()
    wait()
    begin = time.perf_counter()
    try:
        yield found
    finally:
        wait()
        over.set()
        if watch.is_alive():
            watch.join()
        found["seconds"] = time.perf_counter() - begin
        if on_gpu:
            found["peak"] = max(found.get("peak", 0), torch.cuda.max_memory_allocated())


def _watch(found: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(0.02):
        free, total = torch.cuda.mem_get_info()
        found["peak"] = max(found.get("peak", 0), total - free)


# --- models and sampling ------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A pair at one size."""

    sketch: cost.Network
    render: cost.Network
    size: cost.Size
    _pairs: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _variants: dict[Variant, tuple[Any, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, work: Work, family: str, size: cost.Size | None = None) -> Bench:
        sketch, render, usual = SHAPES[work.shapes][family]
        return cls(sketch, render, size if size and work.shapes == "real" else usual)

    @property
    def family(self) -> str:
        return self.sketch.family

    @property
    def cfg(self) -> float:
        return CFG[self.family]

    @property
    def k(self) -> int:
        """Steps of the sketch in a whole run."""
        return max(round(STEPS * SKETCH_STEPS[self.family] / PAPER_STEPS), 1)

    def pair(self, variant: Variant) -> tuple[Any, Any]:
        """(sketch, render) MODELs; weights are built at their first use, and those of another precision leave main memory where
        it is too small. Raises Unavailable for what does not work here."""
        if variant not in self._variants:
            if why := unavailable(variant, self.render):
                raise Unavailable(why)
            if variant.weights not in self._pairs:
                self._make_room(variant.weights)
                sketch, render = (gpu_models.build(network, variant.weights, device()) for network in (self.sketch, self.render))
                self._pairs[variant.weights] = sketch, render
            with_attention = module("srd_core.attention").with_attention
            sketch, render = (with_attention(model, variant.attention) for model in self._pairs[variant.weights])
            self._variants[variant] = (compiled(sketch), compiled(render)) if variant.compiled else (sketch, render)
        return self._variants[variant]

    def _make_room(self, weights: str) -> None:
        needed = ROOM * gpu_models.bytes_of((self.sketch, self.render), weights, device())
        if psutil.virtual_memory().available < needed:
            self._pairs.clear()
            self._variants.clear()
            unload()
            gc.collect()
        if (free := psutil.virtual_memory().available) < needed:
            raise Unavailable(f"{needed / 1e9:.0f} GB of weights don't fit into main memory: {free / 1e9:.0f} GB are free.")

    def put_on_device(self, *models: Any) -> None:
        """As a run finds the device after one of the same kind: these models are there as far as they fit, the first before the
        others, and no others of the pair."""
        memory = module("srd_core.memory")
        for model in [model for pair in self._pairs.values() for model in pair]:
            if not any(model.is_clone(mine) for mine in models):
                memory.release(model)
        conds = dict(zip(("positive", "negative"), map(comfy.sampler_helpers.convert_cond, gpu_models.conditioning(self.sketch))))
        for model in reversed(models):
            comfy.sampler_helpers.prepare_sampling(model, self.latent().shape, conds, model.model_options)

    def latent(self) -> torch.Tensor:
        """An empty one, [1, 16, frames, height, width]."""
        return torch.zeros(1, cost.CHANNELS, *self.size.latent)

    def sample(self, model: Any, cfg: float, callback: Any = None, steps: int = STEPS, **how: Any) -> torch.Tensor:
        """The host's sampling call over the schedule, or over a part of it."""
        positive, negative = gpu_models.conditioning(self.sketch)
        latent = how.pop("latent", self.latent())
        noise = torch.zeros_like(latent) if how.get("disable_noise") else comfy.sample.prepare_noise(latent, SEED)
        return comfy.sample.sample(model, noise, steps, cfg, SAMPLER, SCHEDULER, positive, negative, latent, callback=callback,
                                   disable_pbar=True, seed=SEED, **how)  # fmt: skip


def compiled(model: Any) -> Any:
    """Block by block, which leaves TeaCache its decision between the blocks; else as the host's own node does it."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    model = model.clone()
    blocks = [f"diffusion_model.blocks.{i}" for i in range(len(model.model.diffusion_model.blocks))]
    set_torch_compile_wrapper(model, backend="inductor", keys=blocks, options={"guard_filter_fn": skip_torch_compile_dict})
    return model


def unavailable(variant: Variant, network: cost.Network) -> str:
    """Why networks can't be computed so here; empty: they can."""
    attention = module("srd_core.attention")
    if (wanted := variant.attention) not in attention.backends():
        return f"ComfyUI has not registered {wanted} attention: pip install {attention.PACKAGES.get(wanted, wanted)}."
    if wanted != "auto":  # the host turns to pytorch's where one fails
        q, k, v = (torch.randn(1, 512, network.dim, device=device(), dtype=gpu_models.compute_dtype(device())) for _ in range(3))
        if torch.equal(*(get_attention_function(name)(q, k, v, network.heads) for name in (wanted, "pytorch"))):
            return f"{wanted} attention does not work here: ComfyUI takes pytorch's instead."
    if variant.compiled:
        try:
            torch.compile(lambda x: x * 2 + 1, backend="inductor")(torch.ones(8, device=device()))
        except (RuntimeError, ImportError, OSError) as error:
            return f"torch.compile does not work here: {str(error).strip().splitlines()[0]}"
    return ""


def unload() -> None:
    """Everything back to main memory, as after other models."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def cooperating(sketch: Any, render: Any, k: int, **settings: Any) -> tuple[Any, Any]:
    """(the pair as one MODEL that switches after ``k`` steps, its report)."""
    pair, route, report = module("srd_core.pair"), module("srd_core.route"), module("srd_core.report.data").Report()
    return pair.cooperate(sketch, render, route.Switch(mode="step", switch_step=k), pair.RenderSettings(**settings), report), report


def moved(report: Any) -> dict[str, float]:
    """Seconds of the hand-over of a run, and bytes of weights that came (the render's) and left (the sketch's)."""
    (hand_over,) = report.hand_overs
    before, after = hand_over.memory["before"], hand_over.memory["after"]
    on_gpu = device().type != "cpu"  # on the CPU the host counts them too, and nothing moves
    return {"seconds": hand_over.seconds, "in": max(after[RENDER] - before[RENDER], 0) * on_gpu,
            "out": max(before[SKETCH] - after[SKETCH], 0) * on_gpu}  # fmt: skip


def threshold_for(render: Any, sketch: Any, bench: Bench) -> float:
    """The TeaCache threshold at which a whole run reuses about REUSED of the render's steps with these weights."""
    plan, wan, cogvideox = (module(f"srd_core.teacache.{name}") for name in ("plan", "wan", "cogvideox"))
    sigmas = comfy.samplers.calculate_sigmas(sketch.get_model_object("model_sampling"), SCHEDULER, STEPS)[bench.k : -1]
    sigmas = module("srd_core.latent").check_pair(sketch, render).sigmas(sigmas)
    wanted = round(REUSED[bench.family] * len(sigmas))
    kind, table = (
        (wan, plan.wan_table(bench.render.dim, False, 0)[0])
        if bench.family == cost.WAN
        else (cogvideox, plan.cogvideox_table(bench.render.dim, 1)[0])
    )
    times = render.get_model_object("model_sampling").timestep(sigmas).float()
    distances = plan.distances(kind.modulation(render.model.diffusion_model, times, "e"))
    low, high = 1e-6, 100.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        enough = sum(plan.skip_plan(distances, table.coefficients("e"), middle)) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high * 1.001  # off the edge: the run computes the same distances on another device


# --- steps --------------------------------------------------------------------------------------------------------------


class StepClock:
    """A step callback that takes down the seconds from each step's end to the next one's."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self, *_: Any) -> None:
        wait()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:])]


def step(bench: Bench, stage: str, guided: bool = True, variant: Variant = PLAIN, count: int = 2) -> dict[str, Any]:
    """Seconds of ``count`` single steps of a model after a first one that is not counted, and what they reach."""
    model = bench.pair(variant)[stage == RENDER]
    bench.put_on_device(model)
    clock = StepClock()
    with gauge() as used:
        bench.sample(model, bench.cfg if guided else 1.0, clock, last_step=count + 1, force_full_denoise=True)
    flops = cost.forward_flops(bench.render if stage == RENDER else bench.sketch, bench.size) * (1 + guided)
    return {"steps": clock.seconds, "size": str(bench.size), "flops": flops / statistics.median(clock.seconds),
            "peak": used.get("peak"), "dtype": str(model.model.get_dtype_inference()).removeprefix("torch.")}  # fmt: skip


def steps(work: Work, bench: Bench, variants: dict[str, Variant]) -> None:
    """Steps of both models, guided and not, and guided by each of the variants."""
    for stage in (SKETCH, RENDER):
        work.row(f"{stage} step", lambda stage=stage: step(bench, stage, count=4 if stage == RENDER else 2))  # type: ignore[misc]
    for stage in (SKETCH, RENDER):
        work.row(f"{stage} step, no guidance", lambda stage=stage: step(bench, stage, guided=False))  # type: ignore[misc]
    for name, variant in variants.items():
        for stage in (RENDER, SKETCH):
            work.row(f"{stage} step, {name}", lambda stage=stage, variant=variant: step(bench, stage, variant=variant))  # type: ignore[misc]


VARIANTS = {"sage": Variant(attention="sage"), "fp8": Variant(FP8), "compiled": Variant(compiled=True)}


def wan_steps(work: Work) -> None:
    steps(work, Bench.of(work, cost.WAN), VARIANTS)


def wan_720p(work: Work) -> None:
    bench = Bench.of(work, cost.WAN, SIZE_720P)
    for stage in (RENDER, SKETCH):
        work.row(f"{stage} step", lambda stage=stage: step(bench, stage, count=1))  # type: ignore[misc]


# --- whole runs -----------------------------------------------------------------------------------------------------------


def alone(bench: Bench, stage: str, easycache: bool = False) -> dict[str, Any]:
    """A run of one model, for EasyCache with the host's own node at its defaults."""
    model = bench.pair(PLAIN)[stage == RENDER]
    bench.put_on_device(model)
    forwards: list[int] = []
    if easycache:
        from comfy_extras.nodes_easycache import EasyCacheNode

        node = EasyCacheNode.execute(model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False)
        model = node.result[0] if hasattr(node, "result") else node[0]
    count = lambda _, args, kwargs, __: forwards.append((args or tuple(kwargs.values()))[0].shape[0])  # noqa: E731
    hook = model.model.diffusion_model.blocks[0].register_forward_hook(count, with_kwargs=True)
    try:
        with gauge() as found:
            bench.sample(model, bench.cfg)
    finally:
        hook.remove()
    return {**found, "n": STEPS, "k": STEPS if stage == SKETCH else 0, "reused": STEPS - sum(forwards) / 2}


def chained(bench: Bench) -> dict[str, Any]:
    """Two KSampler (Advanced): the second continues with the noise that the first leaves."""
    sketch, render = bench.pair(PLAIN)
    bench.put_on_device(sketch, render)
    with gauge() as found:
        latent = bench.sample(sketch, bench.cfg, last_step=bench.k)
        bench.sample(render, bench.cfg, latent=latent, start_step=bench.k, disable_noise=True)
    return {**found, "n": STEPS, "k": bench.k}


def together(bench: Bench, variant: Variant = PLAIN, teacache: bool = False, warm: bool = False, **settings: Any) -> dict[str, Any]:
    """A cooperation. ``warm``: a run before, for what compiles."""
    sketch, render = bench.pair(variant)
    settings["teacache"] = threshold_for(render, sketch, bench) if teacache else 0.0
    model, report = cooperating(sketch, render, bench.k, **settings)
    bench.put_on_device(sketch, render)
    if warm:
        bench.sample(model, bench.cfg)
    with gauge() as found:
        bench.sample(model, bench.cfg)
    return {**found, "n": STEPS, "k": bench.k, "reused": report.reused(RENDER), "hand_over": moved(report),
            "render_bytes": render.model_size()}  # fmt: skip


def cold(bench: Bench) -> dict[str, Any]:
    """The hand-over of a run that starts with nothing on the device."""
    sketch, render = bench.pair(PLAIN)
    model, report = cooperating(sketch, render, 1)
    unload()
    with gauge() as found:
        bench.sample(model, bench.cfg, last_step=2, force_full_denoise=True)
    return {**found, "hand_over": moved(report), "render_bytes": render.model_size()}


def runs(work: Work, bench: Bench, more: dict[str, Callable[[], dict[str, Any]]], once: Callable[[], None] | None = None) -> None:
    """Whole runs, all of a round before the next round; ``once``: what is measured after the first."""
    rows = {
        "SR": lambda: together(bench),
        "sketch only": lambda: alone(bench, SKETCH),
        "SR, TeaCache": lambda: together(bench, teacache=True),
        "render only": lambda: alone(bench, RENDER),
        **more,
    }
    work.row("SR from main memory", lambda: cold(bench))  # warms up the device too
    for number in range(ROUNDS):
        for name, measure in rows.items():
            work.row(name, measure, number)
        if once and not number:
            once()


def wan_runs(work: Work) -> None:
    bench = Bench.of(work, cost.WAN)
    unguided: dict[str, Any] = {"teacache": True, "cfg": 1.0, "fade": FADE}
    more = {
        "SR, TeaCache, no guidance, fade": lambda: together(bench, **unguided),
        "two KSamplers": lambda: chained(bench),
        "EasyCache on the sketch": lambda: alone(bench, SKETCH, easycache=True),
    }

    def all_that_helps() -> None:
        attention = "auto" if unavailable(VARIANTS["sage"], bench.render) else "sage"
        name = f"all of these, fp8, {attention} attention, compiled"
        work.row(name, lambda: together(bench, Variant(FP8, attention, True), warm=True, **unguided))

    runs(work, bench, more, all_that_helps)


def wan_one_run(work: Work) -> None:
    """As most hosts on a GPU are: with dynamic VRAM."""
    bench = Bench.of(work, cost.WAN)
    work.row("SR", lambda: together(bench))
    work.row("sketch only", lambda: alone(bench, SKETCH))


def cogvideox(work: Work) -> None:
    bench = Bench.of(work, cost.COGVIDEOX)
    steps(work, bench, {})
    runs(work, bench, {})


# --- little memory --------------------------------------------------------------------------------------------------------


def limits(work: Work) -> None:
    """Short runs of the pair on a device with little free memory: its weights alone are larger."""
    bench = Bench.of(work, cost.WAN, SHORT_480P)
    for limit in LIMITS:
        work.row(f"{limit} GB", lambda limit=limit: limited(bench, limit))  # type: ignore[misc]


def limited(bench: Bench, limit: int) -> dict[str, Any]:
    """A run of 3 steps where ``limit`` GiB are free: something else holds the rest. Running out of memory is an outcome, as the
    pack's report tells it, and no error of the row."""
    sketch, render = bench.pair(PLAIN)
    model, report = cooperating(sketch, render, 1)
    unload()
    total = int(comfy.model_management.get_total_memory(device()))
    taken = max(torch.cuda.mem_get_info()[0] - limit * GIB, 0) if device().type == "cuda" else 0
    ballast = torch.empty(taken, dtype=torch.uint8, device=device())
    try:
        with gauge() as found:
            bench.sample(model, bench.cfg, steps=3)
    except Exception as error:
        if not comfy.model_management.is_oom(error):
            raise
    if "peak" in found:
        found["peak"] -= ballast.numel()
    del ballast
    unload()
    return {**found, "size": str(bench.size), "total": total, "status": report.status, "said": report.error, "notes": report.notes}


def profiles(work: Work) -> None:
    """A late render step alone, in a cooperation, and in one with TeaCache."""
    import gpu_profile

    bench = Bench.of(work, cost.WAN)
    sketch, render = bench.pair(PLAIN)
    models = {"render alone": render, "SR": cooperating(sketch, render, 1)[0],
              "SR, TeaCache": cooperating(sketch, render, 1, teacache=1e-9)[0]}  # fmt: skip
    for name, model in models.items():
        work.row(name, lambda model=model: gpu_profile.profiled(bench, model))  # type: ignore[misc]


PARTS: dict[str, Callable[[Work], None]] = {
    each.__name__: each for each in (limits, wan_steps, wan_runs, wan_one_run, profiles, cogvideox, wan_720p)
}
