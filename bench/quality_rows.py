"""The rows of the evaluation, as data, and the graph that each of them is.

A row says what is compared; a plan says what is sampled. An adaptive row's plan follows from the changes that sketch
only left: "sketch k steps, then render" with that sample's own k, which is the same latent (tests/test_quality.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from quality_host import Graph, defaults, has_node, module

SKETCH, RENDER = "sketch", "render"
KEPT_FROM_SKETCH = ("x0", "prediction", "latent")  # what the adaptive rows read
DELTAS = (0.002, 0.01, 0.03)
FIXED = (3, 5, 8, 10, 12, 15, 20, 30)  # of 50; 12 is where sigma 0.875 lies, the last for what a late hand-over gives
BOUNDARY = 0.875  # the noise level at which two-model samplers for Wan 2.2 change models
EASYCACHE = (0.05, 0.1, 0.2)
TEACACHE = (0.05, 0.08, 0.14, 0.2)
PAPER_STEPS = 50
SHEET_PROMPTS = 8  # whose frames the contact sheet shows


More = tuple[tuple[str, Any], ...]
FADE, NO_GUIDANCE = ("fade", 1.1), ("render_cfg", 1.0)
# Beyond the paper, at a fixed step: name -> further inputs of SR Sampler.
BEYOND: dict[str, More] = {
    "fade": (FADE,),
    "fade, no guidance": (FADE, NO_GUIDANCE),
    "no guidance": (NO_GUIDANCE,),
}
FEWER: dict[str, More] = {
    "20 render steps": (("render_steps", 20),),
    "fade, no guidance, 20 render steps": (FADE, NO_GUIDANCE, ("render_steps", 20)),
}
# A sketch of fewer pixels, for a size above the family's own: --size 192x192x9.
SMALLER: dict[str, More] = {
    f"sketch_scale {scale}{fade}": (("sketch_scale", scale), *more)
    for fade, more in (("", ()), (", fade", (FADE,)))
    for scale in (0.5, 0.667, 0.75)
}
LISTED = ("1-8, 20, 35", "1-8, 49-50")  # ten sketch steps of 50, not all of them first


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    kind: str  # plain, reverse, fixed, adaptive, chained, renoised, easycache, teacache
    model: str = SKETCH  # plain, easycache, teacache: which of the two
    value: float = (
        0  # fixed, reverse, chained: steps of the first model; adaptive: delta; renoised: sigma; caches: threshold
    )
    reading: str = "x0"  # adaptive: what D is taken of
    fix_step: int = 5  # adaptive
    cache: float = 0  # TeaCache threshold on the render of an adaptive row
    main: bool = False  # sampled on more prompts and seeds
    peer: bool = False  # what others do
    steps: int = PAPER_STEPS
    sampler: str = "euler"
    scheduler: str = "simple"
    more: More = ()  # fixed: further inputs of SR Sampler

    @property
    def run(self) -> tuple[int, str]:
        """Steps and sampler: rows are only compared within one of these."""
        return self.steps, self.sampler


def all_rows() -> list[Row]:
    """Every row, in the order in which they are sampled: sketch only first in each run, what matters most first."""
    base = rows_of_fifty()
    main = [replace(row, sampler="uni_pc") for row in base if row.main]
    few = [row for steps in (20, 8) for row in rows_of(steps)]
    others = [row for sampler in ("uni_pc", "dpmpp_2m") for row in rows_beyond(PAPER_STEPS, 10, sampler)]
    beyond = [*rows_beyond(20, 4), *rows_beyond(10, 3), *others]
    found: dict[tuple[Any, ...], Row] = {}
    for row in [*base, *few, *main, *beyond]:
        if available(row):
            found.setdefault((row.name, row.run), row)
    return list(found.values())


def rows_beyond(steps: int, k: int, sampler: str = "euler") -> list[Row]:
    """A hand-over after ``k`` of so many steps: as a cut, and beyond the paper; with what they are compared to."""
    models = [Row(f"{model} only", "plain", model, steps=steps, sampler=sampler) for model in (SKETCH, RENDER)]
    cut = Row(f"fixed, step {k}", "fixed", value=k, steps=steps, sampler=sampler)
    return [*models, cut, *(replace(cut, name=f"step {k}, {name}", more=more) for name, more in BEYOND.items())]


def rows_of_fifty() -> list[Row]:
    """The rows at 50 steps with euler."""
    return [
        Row("sketch only", "plain", SKETCH, main=True),
        Row("render only", "plain", RENDER, main=True),
        *(Row(f"adaptive, delta {d}", "adaptive", value=d, main=True) for d in (0.01, 0.03, 0.002)),
        Row("fixed, step 10", "fixed", value=10, main=True),
        Row("two KSamplers, step 10", "chained", value=10, main=True, peer=True),
        Row(f"sigma {BOUNDARY}, re-noised", "renoised", value=BOUNDARY, main=True, peer=True),
        *(
            Row(f"step 10, {name}", "fixed", value=10, more=more, main=FADE in more)
            for name, more in (BEYOND | FEWER).items()
        ),
        *(Row(f"step 10, {name}", "fixed", value=10, more=more) for name, more in SMALLER.items()),
        *(
            Row(f"sketch steps {steps}, fade", "fixed", value=10, more=(FADE, ("sketch_steps", steps)), main=True)
            for steps in LISTED
        ),
        *(Row(f"fixed, step {k}", "fixed", value=k, main=k == 15) for k in FIXED if k != 10),
        Row("render 10 steps, then sketch", "reverse", value=10),
        *(Row(f"EasyCache {t} on the sketch", "easycache", value=t, peer=True) for t in EASYCACHE),
        *(
            Row(f"adaptive on {r}, delta {d}", "adaptive", value=d, reading=r)
            for r in KEPT_FROM_SKETCH
            if r != "x0"
            for d in DELTAS
        ),
        *(Row(f"TeaCache {t} on the sketch", "teacache", value=t, peer=True) for t in TEACACHE),
        *(Row(f"adaptive, delta 0.01, TeaCache {t}", "adaptive", value=0.01, cache=t) for t in TEACACHE),
    ]


def rows_of(steps: int) -> list[Row]:
    """The rows of a shorter run: the fixed steps are the same shares of it as some of those of 50."""
    fixed = sorted({max(round(steps * k / PAPER_STEPS), 1) for k in FIXED})
    return [
        Row("sketch only", "plain", SKETCH, steps=steps),
        Row("render only", "plain", RENDER, steps=steps),
        *(Row(f"adaptive, delta {d}", "adaptive", value=d, steps=steps) for d in DELTAS),
        *(Row(f"fixed, step {k}", "fixed", value=k, steps=steps) for k in fixed),
    ]


def available(row: Row) -> bool:
    """Whether this host and this pack have what the row needs."""
    return has_node("SRTeaCache") or not (row.kind == "teacache" or row.cache)


# --- from a row to a plan ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is sampled for one cell. Equal plans give equal videos."""

    kind: str  # plain, handover, chained, renoised, easycache, teacache
    steps: int
    sampler: str
    scheduler: str
    model: str = SKETCH  # the only or the first model
    switch_step: int = 0  # steps of the first model
    threshold: float = 0  # of a cache
    together: bool = True  # may share a batch with other prompts; caches that look at the latent may not
    more: More = ()  # handover: further inputs of SR Sampler

    def facts(self) -> dict[str, Any]:
        """What a result depends on; as it was before there were further inputs, where there are none."""
        return {name: value for name, value in asdict(self).items() if name != "more" or value}


def plan_of(row: Row, curves: dict[str, list[float | None]] | None, sigmas: Sequence[float]) -> tuple[Plan, str]:
    """(plan, reason of the hand-over) of a row on a prompt whose sketch-only run left these curves.

    Raises ValueError for an adaptive row without curves.
    """
    plan = Plan(row.kind, row.steps, row.sampler, row.scheduler)
    if row.kind == "plain":
        return replace(plan, model=row.model), ""
    if row.kind in ("easycache", "teacache"):
        return replace(plan, model=row.model, threshold=row.value, together=row.kind != "easycache"), ""
    if row.kind in ("fixed", "reverse"):
        model = SKETCH if row.kind == "fixed" else RENDER
        return replace(plan, kind="handover", model=model, switch_step=int(row.value), more=row.more), "step"
    if row.kind == "chained":
        return replace(plan, switch_step=int(row.value)), "step"
    if row.kind == "renoised":
        return replace(plan, switch_step=steps_above(sigmas, row.value)), "sigma"
    if curves is None:
        raise ValueError(f"{row.name}: needs what sketch only leaves.")
    step, reason = adaptive_step(curves[row.reading], row.steps, row.value, row.fix_step)
    if step == row.steps:
        return replace(plan, kind="plain", model=SKETCH), reason
    return replace(plan, kind="handover", switch_step=step, threshold=row.cache), reason


def steps_above(sigmas: Sequence[float], boundary: float) -> int:
    """How many steps start at or above that noise level."""
    return sum(sigma >= boundary for sigma in sigmas[:-1])


def adaptive_step(curve: Sequence[float | None], steps: int, delta: float, fix_step: int) -> tuple[int, str]:
    """(completed sketch steps at the hand-over, reason) by the pack's own rule, fed with D after each step.

    The family's own schedule is taken for the paper's: its steps are uniform, and ``delta`` is set for 50 of them.
    """
    route = module("srd_core.route")
    switch, places = (
        route.Switch(delta=delta, fix_step=fix_step, switch_sigma=0.0),
        [1 - i / steps for i in range(steps)],
    )
    way = route.Route(route.Pair(route.SKETCH, route.RENDER, switch), places, places)
    for step in range(steps):
        if turn := way.turn(step):
            return step, turn.reason
        d = curve[step] if step < len(curve) else None
        way.note(step, None if d is None else [d])
    return steps, "never"


# --- from a plan to a graph -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """The models of an evaluation by file names, and how they are used."""

    sketch: str
    render: str
    vae: str
    text: str = ""  # a text encoder's file; empty: the tiny family's own encoding
    text_type: str = "wan"
    shift: float | None = 2.0  # ModelSamplingSD3 on both; None: as the files say
    cfg: float = 3.0
    width: int = 128
    height: int = 128
    length: int = 9
    negative: str = ""


def graph_of(
    plan: Plan, family: Family, texts: Sequence[str], numbers: Sequence[int], seed: int, curves: bool = False
) -> Graph:
    """The host's graph that samples these prompts, each with the noise of its number, as one batch."""
    graph: Graph = {
        "positive": _node("SRBenchPrompts", texts=json.dumps(list(texts)), **_clip(family)),
        "negative": _node("SRBenchPrompts", texts=json.dumps([family.negative]), **_clip(family)),
        "empty": _node(
            "EmptyHunyuanLatentVideo",
            width=family.width,
            height=family.height,
            length=family.length,
            batch_size=len(texts),
        ),
        "noise": _node("SRBenchNoise", latent=["empty", 0], numbers=json.dumps(list(numbers)), run_number=0),
        "vae": _node("VAELoader", vae_name=family.vae),
        "decode": _node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
    }
    if family.text:
        graph["clip"] = _node("CLIPLoader", clip_name=family.text, type=family.text_type)
    models = {}
    for stage, loader in ((SKETCH, "SRLoadSketchDiT"), (RENDER, "SRLoadRenderDiT")):
        graph[stage] = _node(loader, model_name=getattr(family, stage), weight_dtype="default", attention="auto")
        models[stage] = [stage, 0]
        if family.shift is not None:
            graph[f"{stage}_shift"] = _node("ModelSamplingSD3", model=models[stage], shift=family.shift)
            models[stage] = [f"{stage}_shift", 0]
    kept = _sampling(graph, plan, family, models, seed, curves)
    held = {f"hold_{stage}": link for stage, link in models.items()}
    graph["keep"] = _node("SRBenchKeep", images=["decode", 0], **kept, **held)
    return graph


def _sampling(
    graph: Graph, plan: Plan, family: Family, models: dict[str, Any], seed: int, curves: bool
) -> dict[str, Any]:
    """Add the node "sample" and what it needs; what the Keep node should get."""
    common = {
        "cfg": family.cfg,
        "sampler_name": plan.sampler,
        "scheduler": plan.scheduler,
        "steps": plan.steps,
        "positive": ["positive", 0],
        "negative": ["negative", 0],
    }
    first, second = (SKETCH, RENDER) if plan.model == SKETCH else (RENDER, SKETCH)
    if plan.kind == "handover":
        links = {"sketch": models[first], "render": models[second], "latent": ["noise", 0]}
        graph["sample"] = _node("SRSampler", **{**_switching(plan), **links, "seed": seed, **common})
        return {"report": ["sample", 1]}
    model = models[first]
    if plan.kind == "easycache":
        graph["own_input"] = _node("SRBenchOwnInput", model=model)
        graph["cache"] = _node(
            "EasyCache",
            model=["own_input", 0],
            reuse_threshold=plan.threshold,
            start_percent=0.15,
            end_percent=0.95,
            verbose=False,
        )
        model = ["cache", 0]
    if plan.kind == "teacache":
        graph["cache"] = _node("SRTeaCache", **{**defaults("SRTeaCache"), "model": model, "threshold": plan.threshold})
        model = ["cache", 0]
    graph["watch_1"] = _node("SRBenchWatch", model=model, stage=first, curves=curves)
    if plan.kind in ("plain", "easycache", "teacache"):
        graph["sample"] = _node(
            "KSampler", model=["watch_1", 0], latent_image=["noise", 0], seed=seed, denoise=1.0, **common
        )
        return {"first": ["watch_1", 1]}
    graph["watch_2"] = _node("SRBenchWatch", model=models[second], stage=second, curves=False)
    leftover, anew = ("enable", "disable") if plan.kind == "chained" else ("disable", "enable")
    graph["sample_1"] = _node(
        "KSamplerAdvanced",
        model=["watch_1", 0],
        latent_image=["noise", 0],
        add_noise="enable",
        noise_seed=seed,
        start_at_step=0,
        end_at_step=plan.switch_step,
        return_with_leftover_noise=leftover,
        **common,
    )
    graph["sample"] = _node(
        "KSamplerAdvanced",
        model=["watch_2", 0],
        latent_image=["sample_1", 0],
        add_noise=anew,
        noise_seed=seed,
        start_at_step=plan.switch_step,
        end_at_step=10000,
        return_with_leftover_noise="disable",
        **common,
    )
    return {"first": ["watch_1", 1], "second": ["watch_2", 1]}


def _switching(plan: Plan) -> dict[str, Any]:
    """SR Sampler's own inputs."""
    mode = {"switch_mode": "step", "switch_step": plan.switch_step}
    return {**defaults("SRSampler"), **mode, "teacache": plan.threshold, **dict(plan.more)}


def _clip(family: Family) -> dict[str, Any]:
    return {"clip": ["clip", 0]} if family.text else {}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
