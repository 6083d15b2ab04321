"""The rows of bench/gpu.py: single steps, whole runs, little memory and profiles."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gpu_bench
from gpu_bench import PLAIN, RENDER, SKETCH, STEPS, Bench, StepClock, Unavailable, Variant, cooperating, device, gauge

# isort: split
import comfy.model_management
import cost
import torch
from gpu_models import FP8

Row = dict[str, Any]
FADE = 1.1  # the fitted width
SCALE = 0.75  # of a smaller sketch
SHORT_480P = cost.Size(832, 480, 33)
SIZE_720P = cost.Size(1280, 720, 81)
LIMITS = (24, 16, 12)  # GiB
ROUNDS = 2
VARIANTS = {"sage": Variant(attention="sage"), "fp8": Variant(FP8), "compiled": Variant(compiled=True)}


@dataclass
class Work:
    """One part of a stage: where its rows go, and with which shapes."""

    results: Any  # gpu.Results
    part: dict[str, Any]
    shapes: str  # of gpu_models.SHAPES

    def row(self, name: str, measure: Callable[[], Row], number: int = 0) -> None:
        """Measure a row, unless it is there; ``number`` of the round."""
        what = {**self.part, "row": name, "round": number}
        if self.results.has(**what):
            return
        try:
            found = measure()
        except Unavailable as why:
            found = {"unavailable": str(why)}
        except Exception as error:  # noqa: BLE001  (too little memory, a kernel that can't: the other rows still can)
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


# --- steps ------------------------------------------------------------------------------------------------------------


def step(bench: Bench, stage: str, guided: bool = True, variant: Variant = PLAIN, count: int = 2) -> Row:
    """Seconds of ``count`` single steps of a model after a first one that is not counted, and what they reach."""
    model = bench.pair(variant)[stage == RENDER]
    bench.put_on_device(model)
    clock = StepClock()
    with gauge() as used:
        bench.sample(model, bench.cfg if guided else 1.0, clock, last_step=count + 1, force_full_denoise=True)
    return {"steps": clock.seconds, "size": str(bench.size), "peak": used.get("peak")}


def small_step(bench: Bench) -> Row:
    """A step of the sketch at SCALE of width and height, in a run that a step of the render ends at full size."""
    sketch, render = bench.pair(PLAIN)
    model, _ = cooperating(sketch, render, 3, sketch_scale=SCALE)
    bench.put_on_device(sketch, render)
    clock = StepClock()
    with gauge() as used:
        bench.sample(model, bench.cfg, clock, steps=4)
    return {"steps": clock.seconds[:2], "size": str(bench.size), "peak": used.get("peak")}


def steps(work: Work, bench: Bench, variants: dict[str, Variant]) -> None:
    """Steps of both models, guided and not, and guided by each of the variants."""
    work.row("sketch step", partial(step, bench, SKETCH))
    work.row("render step", partial(step, bench, RENDER, count=4))
    for stage in (SKETCH, RENDER):
        work.row(f"{stage} step, no guidance", partial(step, bench, stage, guided=False))
    for name, variant in variants.items():
        for stage in (RENDER, SKETCH):
            work.row(f"{stage} step, {name}", partial(step, bench, stage, variant=variant))


def wan_steps(work: Work) -> None:
    """Steps at 480p, in all variants."""
    steps(work, Bench.of(work.shapes, cost.WAN), VARIANTS)


def wan_720p(work: Work) -> None:
    """Steps at 720p, where a smaller sketch is meant for."""
    bench = Bench.of(work.shapes, cost.WAN, SIZE_720P)
    for stage in (RENDER, SKETCH):
        work.row(f"{stage} step", partial(step, bench, stage, count=1))
    work.row(f"sketch step, sketch_scale {SCALE}", partial(small_step, bench))


# --- whole runs -------------------------------------------------------------------------------------------------------


def alone(bench: Bench, stage: str, easycache: bool = False) -> Row:
    """A run of one model, for EasyCache with the host's own node at its defaults."""
    model = bench.pair(PLAIN)[stage == RENDER]
    bench.put_on_device(model)
    batches: list[int] = []
    if easycache:
        from comfy_extras.nodes_easycache import EasyCacheNode

        node = EasyCacheNode.execute(model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False)
        model = node.result[0] if hasattr(node, "result") else node[0]

    def count(_: Any, args: Any, kwargs: Any, __: Any) -> None:
        batches.append((args or tuple(kwargs.values()))[0].shape[0])

    hook = model.model.diffusion_model.blocks[0].register_forward_hook(count, with_kwargs=True)
    try:
        with gauge() as found:
            bench.sample(model, bench.cfg)
    finally:
        hook.remove()
    return {**found, "n": STEPS, "k": STEPS if stage == SKETCH else 0, "reused": STEPS - sum(batches) / 2}


def chained(bench: Bench) -> Row:
    """Two KSampler (Advanced): the second continues with the noise that the first leaves."""
    sketch, render = bench.pair(PLAIN)
    bench.put_on_device(sketch, render)
    with gauge() as found:
        latent = bench.sample(sketch, bench.cfg, last_step=bench.k)
        bench.sample(render, bench.cfg, latent=latent, start_step=bench.k, disable_noise=True)
    return {**found, "n": STEPS, "k": bench.k}


def together(bench: Bench, variant: Variant = PLAIN, teacache: bool = False, **settings: Any) -> Row:
    """A cooperation, where it compiles after one that warms up."""
    sketch, render = bench.pair(variant)
    settings["teacache"] = gpu_bench.threshold_for(render, sketch, bench) if teacache else 0.0
    model, report = cooperating(sketch, render, bench.k, **settings)
    bench.put_on_device(sketch, render)
    if variant.compiled:
        bench.sample(model, bench.cfg)
    with gauge() as found:
        bench.sample(model, bench.cfg)
    moves = {"hand_over": gpu_bench.moved(report), "render_bytes": render.model_size()}
    return {**found, "n": STEPS, "k": bench.k, "reused": report.reused(RENDER), **moves}


def cold(bench: Bench) -> Row:
    """The switch of a run that starts with nothing on the device."""
    sketch, render = bench.pair(PLAIN)
    model, report = cooperating(sketch, render, 1)
    gpu_bench.unload()
    with gauge() as found:
        bench.sample(model, bench.cfg, last_step=2, force_full_denoise=True)
    return {**found, "hand_over": gpu_bench.moved(report), "render_bytes": render.model_size()}


def runs(work: Work, bench: Bench, more: dict[str, Callable[[], Row]], once: dict[str, Callable[[], Row]]) -> None:
    """Whole runs, all of a round before the next round; ``once``: what is measured after the first."""
    rows: dict[str, Callable[[], Row]] = {
        "SR": partial(together, bench),
        "sketch only": partial(alone, bench, SKETCH),
        "SR, TeaCache": partial(together, bench, teacache=True),
        "render only": partial(alone, bench, RENDER),
        **more,
    }
    work.row("SR from main memory", partial(cold, bench))  # warms up the device too
    for number in range(ROUNDS):
        for name, measure in (rows if number else {**rows, **once}).items():
            work.row(name, measure, number)


def wan_runs(work: Work) -> None:
    """Whole runs at 480p, beside other ways."""
    bench = Bench.of(work.shapes, cost.WAN)
    unguided: dict[str, Any] = {"teacache": True, "cfg": 1.0, "fade": FADE}
    more: dict[str, Callable[[], Row]] = {
        "SR, TeaCache, no guidance, fade": partial(together, bench, **unguided),
        f"SR, sketch_scale {SCALE}": partial(together, bench, sketch_scale=SCALE),
        "two KSamplers": partial(chained, bench),
        "EasyCache on the sketch": partial(alone, bench, SKETCH, easycache=True),
    }
    attention = "auto" if gpu_bench.unavailable("sage", bench.render) else "sage"
    all_that_helps = partial(together, bench, Variant(FP8, attention, compiled=True), **unguided)
    runs(work, bench, more, {f"all of these, fp8, {attention} attention, compiled": all_that_helps})


def wan_one_run(work: Work) -> None:
    """As most hosts on a GPU are: with dynamic VRAM."""
    bench = Bench.of(work.shapes, cost.WAN)
    work.row("SR", partial(together, bench))
    work.row("sketch only", partial(alone, bench, SKETCH))


def cogvideox(work: Work) -> None:
    """Steps and whole runs."""
    bench = Bench.of(work.shapes, cost.COGVIDEOX)
    steps(work, bench, {})
    runs(work, bench, {}, {})


# --- little memory and profiles ---------------------------------------------------------------------------------------


def limits(work: Work) -> None:
    """Short runs of the pair on a device with little free memory: its weights alone are larger."""
    bench = Bench.of(work.shapes, cost.WAN, SHORT_480P)
    for limit in LIMITS:
        work.row(f"{limit} GB", partial(limited, bench, limit))


def limited(bench: Bench, limit: int) -> Row:
    """A run of 3 steps where ``limit`` GiB are free: something else holds the rest.

    Running out of memory is an outcome, as the pack's report tells it, and no error of the row.
    """
    sketch, render = bench.pair(PLAIN)
    model, report = cooperating(sketch, render, 1)
    gpu_bench.unload()
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
    return {**found, "size": str(bench.size), "status": report.status, "said": report.error, "notes": report.notes}


def profiles(work: Work) -> None:
    """A late render step alone, in a cooperation, and in one with TeaCache."""
    import gpu_profile

    bench = Bench.of(work.shapes, cost.WAN)
    sketch, render = bench.pair(PLAIN)
    models = {
        "render alone": render,
        "SR": cooperating(sketch, render, 1)[0],
        "SR, TeaCache": cooperating(sketch, render, 1, teacache=1e-9)[0],
    }
    for name, model in models.items():
        work.row(name, partial(gpu_profile.profiled, bench, model))


PARTS: dict[str, Callable[[Work], None]] = {
    each.__name__: each for each in (limits, wan_steps, wan_runs, wan_one_run, profiles, cogvideox, wan_720p)
}
