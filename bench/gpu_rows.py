"""The rows of bench/gpu.py: single steps, whole runs, little memory and profiles."""

from __future__ import annotations

import os
import statistics
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpu_bench
from gpu_bench import RENDER, SKETCH, STEPS, Bench, Unavailable, Variant, cooperating, device, gauge, moved

# isort: split
import comfy.model_management
import cost
import torch
from gpu_models import FP8

FADE = 1.1  # the fitted width
SCALE = 0.75  # of a smaller sketch
SHORT_480P = cost.Size(832, 480, 33)
SIZE_720P = cost.Size(1280, 720, 81)
LIMITS = (24, 16, 12)  # GiB
ROUNDS = 2


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


# --- steps -------------------------------------------------------------------------------------------------------------


def step(
    bench: Bench, stage: str, guided: bool = True, variant: Variant = gpu_bench.PLAIN, count: int = 2
) -> dict[str, Any]:
    """Seconds of ``count`` single steps of a model after a first one that is not counted, and what they reach."""
    model = bench.pair(variant)[stage == RENDER]
    bench.put_on_device(model)
    clock = gpu_bench.StepClock()
    with gauge() as used:
        bench.sample(model, bench.cfg if guided else 1.0, clock, last_step=count + 1, force_full_denoise=True)
    flops = cost.forward_flops(bench.render if stage == RENDER else bench.sketch, bench.size) * (1 + guided)
    return {
        "steps": clock.seconds,
        "size": str(bench.size),
        "flops": flops / statistics.median(clock.seconds),
        "peak": used.get("peak"),
        "dtype": str(model.model.get_dtype_inference()).removeprefix("torch."),
    }


def small_step(bench: Bench) -> dict[str, Any]:
    """A step of the sketch at SCALE of width and height, in a run that a step of the render ends at full size."""
    sketch, render = bench.pair(gpu_bench.PLAIN)
    model, _ = cooperating(sketch, render, 3, sketch_scale=SCALE)
    bench.put_on_device(sketch, render)
    clock = gpu_bench.StepClock()
    with gauge() as used:
        bench.sample(model, bench.cfg, clock, steps=4)
    return {
        "steps": clock.seconds[:2],
        "size": str(bench.size),
        "peak": used.get("peak"),
        "dtype": str(sketch.model.get_dtype_inference()).removeprefix("torch."),
    }


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
    steps(work, Bench.of(work.shapes, cost.WAN), VARIANTS)


def wan_720p(work: Work) -> None:
    bench = Bench.of(work.shapes, cost.WAN, SIZE_720P)
    for stage in (RENDER, SKETCH):
        work.row(f"{stage} step", lambda stage=stage: step(bench, stage, count=1))  # type: ignore[misc]
    work.row(f"sketch step, sketch_scale {SCALE}", lambda: small_step(bench))


# --- whole runs --------------------------------------------------------------------------------------------------------


def alone(bench: Bench, stage: str, easycache: bool = False) -> dict[str, Any]:
    """A run of one model, for EasyCache with the host's own node at its defaults."""
    model = bench.pair(gpu_bench.PLAIN)[stage == RENDER]
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
    sketch, render = bench.pair(gpu_bench.PLAIN)
    bench.put_on_device(sketch, render)
    with gauge() as found:
        latent = bench.sample(sketch, bench.cfg, last_step=bench.k)
        bench.sample(render, bench.cfg, latent=latent, start_step=bench.k, disable_noise=True)
    return {**found, "n": STEPS, "k": bench.k}


def together(
    bench: Bench, variant: Variant = gpu_bench.PLAIN, teacache: bool = False, warm: bool = False, **settings: Any
) -> dict[str, Any]:
    """A cooperation. ``warm``: a run before, for what compiles."""
    sketch, render = bench.pair(variant)
    settings["teacache"] = gpu_bench.threshold_for(render, sketch, bench) if teacache else 0.0
    model, report = cooperating(sketch, render, bench.k, **settings)
    bench.put_on_device(sketch, render)
    if warm:
        bench.sample(model, bench.cfg)
    with gauge() as found:
        bench.sample(model, bench.cfg)
    return {
        **found,
        "n": STEPS,
        "k": bench.k,
        "reused": report.reused(RENDER),
        "hand_over": moved(report),
        "render_bytes": render.model_size(),
    }


def cold(bench: Bench) -> dict[str, Any]:
    """The hand-over of a run that starts with nothing on the device."""
    sketch, render = bench.pair(gpu_bench.PLAIN)
    model, report = cooperating(sketch, render, 1)
    gpu_bench.unload()
    with gauge() as found:
        bench.sample(model, bench.cfg, last_step=2, force_full_denoise=True)
    return {**found, "hand_over": moved(report), "render_bytes": render.model_size()}


def runs(
    work: Work, bench: Bench, more: dict[str, Callable[[], dict[str, Any]]], once: Callable[[], None] | None = None
) -> None:
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
    bench = Bench.of(work.shapes, cost.WAN)
    unguided: dict[str, Any] = {"teacache": True, "cfg": 1.0, "fade": FADE}
    more = {
        "SR, TeaCache, no guidance, fade": lambda: together(bench, **unguided),
        f"SR, sketch_scale {SCALE}": lambda: together(bench, sketch_scale=SCALE),
        "two KSamplers": lambda: chained(bench),
        "EasyCache on the sketch": lambda: alone(bench, SKETCH, easycache=True),
    }

    def all_that_helps() -> None:
        attention = "auto" if gpu_bench.unavailable(VARIANTS["sage"], bench.render) else "sage"
        name = f"all of these, fp8, {attention} attention, compiled"
        work.row(name, lambda: together(bench, Variant(FP8, attention, True), warm=True, **unguided))

    runs(work, bench, more, all_that_helps)


def wan_one_run(work: Work) -> None:
    """As most hosts on a GPU are: with dynamic VRAM."""
    bench = Bench.of(work.shapes, cost.WAN)
    work.row("SR", lambda: together(bench))
    work.row("sketch only", lambda: alone(bench, SKETCH))


def cogvideox(work: Work) -> None:
    bench = Bench.of(work.shapes, cost.COGVIDEOX)
    steps(work, bench, {})
    runs(work, bench, {})


# --- little memory -----------------------------------------------------------------------------------------------------


def limits(work: Work) -> None:
    """Short runs of the pair on a device with little free memory: its weights alone are larger."""
    bench = Bench.of(work.shapes, cost.WAN, SHORT_480P)
    for limit in LIMITS:
        work.row(f"{limit} GB", lambda limit=limit: limited(bench, limit))  # type: ignore[misc]


def limited(bench: Bench, limit: int) -> dict[str, Any]:
    """A run of 3 steps where ``limit`` GiB are free: something else holds the rest. Running out of memory is an outcome, as the
    pack's report tells it, and no error of the row.
    """
    sketch, render = bench.pair(gpu_bench.PLAIN)
    model, report = cooperating(sketch, render, 1)
    gpu_bench.unload()
    total = int(comfy.model_management.get_total_memory(device()))
    taken = max(torch.cuda.mem_get_info()[0] - limit * gpu_bench.GIB, 0) if device().type == "cuda" else 0
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
    gpu_bench.unload()
    return {
        **found,
        "size": str(bench.size),
        "total": total,
        "status": report.status,
        "said": report.error,
        "notes": report.notes,
    }


def profiles(work: Work) -> None:
    """A late render step alone, in a cooperation, and in one with TeaCache."""
    import gpu_profile

    bench = Bench.of(work.shapes, cost.WAN)
    sketch, render = bench.pair(gpu_bench.PLAIN)
    models = {
        "render alone": render,
        "SR": cooperating(sketch, render, 1)[0],
        "SR, TeaCache": cooperating(sketch, render, 1, teacache=1e-9)[0],
    }
    for name, model in models.items():
        work.row(name, lambda model=model: gpu_profile.profiled(bench, model))  # type: ignore[misc]


PARTS: dict[str, Callable[[Work], None]] = {
    each.__name__: each for each in (limits, wan_steps, wan_runs, wan_one_run, profiles, cogvideox, wan_720p)
}
