"""The machine, a pair of models on it, and sampling with them by the host's own call: what gpu_rows.py stands on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hosting import module  # (first: the host in this process, on the device that the environment names)

# isort: split
import comfy.memory_management
import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import cost
import gpu_models
import torch
from comfy.ldm.modules.attention import get_attention_function
from gpu_models import DEFAULT, SHAPES

SKETCH, RENDER = "sketch", "render"
STEPS = 10  # of a whole run
PAPER_STEPS = 50
SKETCH_STEPS = {cost.WAN: 10, cost.COGVIDEOX: 15}  # of 50: the paper's mean at delta 0.01
CFG = {cost.WAN: 5.0, cost.COGVIDEOX: 6.0}
# The share of its steps that TeaCache reuses on the render with real weights, from the seconds of the paper's Tables 2
# and 3: those saved at threshold 0.14 and 0.1, over those of a step. Random weights change otherwise, so here the
# threshold is chosen to reuse as many.
REUSED = {cost.WAN: (296 - 215) / 158 * 50 / 40, cost.COGVIDEOX: (117 - 107) / 75 * 50 / 35}
SEED, SAMPLER, SCHEDULER = 0, "euler", "simple"
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


# --- the machine ------------------------------------------------------------------------------------------------------


def device() -> torch.device:
    """That the host computes on."""
    return comfy.model_management.get_torch_device()


def wait() -> None:
    """Until the device has done all that it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def gauge() -> Iterator[dict[str, Any]]:
    """What the block takes: seconds, and the peak of torch's memory in bytes, where no dynamic VRAM is beside it."""
    found: dict[str, Any] = {}
    counted = device().type == "cuda" and not comfy.memory_management.aimdo_enabled
    if counted:
        torch.cuda.reset_peak_memory_stats()
    wait()
    begin = time.perf_counter()
    try:
        yield found
    finally:
        wait()
        found["seconds"] = time.perf_counter() - begin
        if counted:
            found["peak"] = torch.cuda.max_memory_allocated()


class StepClock:
    """A step callback that takes down the seconds from each step's end to the next one's."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self, *_: Any) -> None:
        """At the end of a step."""
        wait()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Of every step but the first."""
        return [after - before for before, after in zip(self.ends, self.ends[1:])]


# --- models and sampling ----------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A pair at one size."""

    sketch: cost.Network
    render: cost.Network
    size: cost.Size
    _pairs: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, shapes: str, family: str, size: cost.Size | None = None) -> Bench:
        """``size``: of real shapes; None: the family's 480p."""
        sketch, render, usual = SHAPES[shapes][family]
        return cls(sketch, render, size if size and shapes == "real" else usual)

    @property
    def cfg(self) -> float:
        """The paper's guidance scale."""
        return CFG[self.sketch.family]

    @property
    def k(self) -> int:
        """Steps of the sketch in a whole run."""
        return max(round(STEPS * SKETCH_STEPS[self.sketch.family] / PAPER_STEPS), 1)

    def pair(self, variant: Variant) -> tuple[Any, Any]:
        """(sketch, render) MODELs, built at their first use. Raises Unavailable for what does not work here."""
        if why := unavailable(variant.attention, self.render):
            raise Unavailable(why)
        if variant.weights not in self._pairs:
            networks = self.sketch, self.render
            sketch, render = (gpu_models.build(network, variant.weights, device()) for network in networks)
            self._pairs[variant.weights] = sketch, render
        with_attention = module("srd_core.attention").with_attention
        sketch, render = (with_attention(model, variant.attention) for model in self._pairs[variant.weights])
        return (compiled(sketch), compiled(render)) if variant.compiled else (sketch, render)

    def put_on_device(self, *models: Any) -> None:
        """As a run finds the device after one of its kind: with these models alone, the first before the others."""
        memory = module("srd_core.memory")
        for model in [model for pair in self._pairs.values() for model in pair]:
            if not any(model.is_clone(mine) for mine in models):
                memory.release(model)
        both = map(comfy.sampler_helpers.convert_cond, gpu_models.conditioning(self.sketch))
        conds = dict(zip(("positive", "negative"), both))
        for model in reversed(models):
            comfy.sampler_helpers.prepare_sampling(model, self.latent().shape, conds, model.model_options)

    def latent(self) -> torch.Tensor:
        """An empty one, [1, 16, frames, height, width]."""
        return torch.zeros(1, cost.CHANNELS, *self.size.latent)

    def sample(self, model: Any, cfg: float, callback: Any = None, steps: int = STEPS, **how: Any) -> torch.Tensor:
        """The host's sampling call over the schedule, or over a part of it."""
        latent = how.pop("latent", self.latent())
        noise = torch.zeros_like(latent) if how.get("disable_noise") else comfy.sample.prepare_noise(latent, SEED)
        positive, negative = gpu_models.conditioning(self.sketch)
        how |= {"callback": callback, "disable_pbar": True, "seed": SEED}
        return comfy.sample.sample(model, noise, steps, cfg, SAMPLER, SCHEDULER, positive, negative, latent, **how)


def compiled(model: Any) -> Any:
    """Block by block, which leaves TeaCache its decision between the blocks; else as the host's own node does it."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    model = model.clone()
    blocks = [f"diffusion_model.blocks.{i}" for i in range(len(model.model.diffusion_model.blocks))]
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(model, backend="inductor", keys=blocks, options=options)
    return model


def unavailable(wanted: str, network: cost.Network) -> str:
    """Why an attention backend can't be measured on a network; empty: it can."""
    attention = module("srd_core.attention")
    if wanted not in attention.backends():
        return f"ComfyUI has not registered {wanted} attention: pip install {attention.PACKAGES.get(wanted, wanted)}."
    if wanted != "auto":  # the host turns to pytorch's where one fails
        shape, dtype = (1, 512, network.dim), gpu_models.compute_dtype(device())
        q, k, v = (torch.randn(shape, device=device(), dtype=dtype) for _ in range(3))
        if torch.equal(*(get_attention_function(name)(q, k, v, network.heads) for name in (wanted, "pytorch"))):
            return f"{wanted} attention does not work here: ComfyUI takes pytorch's instead."
    return ""


def unload() -> None:
    """Everything back to main memory, as after other models."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def cooperating(sketch: Any, render: Any, k: int, **settings: Any) -> tuple[Any, Any]:
    """(the pair as one MODEL that switches after ``k`` steps, its report)."""
    pair, route, report = module("srd_core.pair"), module("srd_core.route"), module("srd_core.report.data").Report()
    switch = route.Switch(mode="step", switch_step=k)
    return pair.cooperate(sketch, render, switch, pair.RenderSettings(**settings), report), report


def moved(report: Any) -> dict[str, float]:
    """Seconds of a run's switch, and bytes of the render's weights that came."""
    (hand_over,) = report.hand_overs
    came = hand_over.memory["after"][RENDER] - hand_over.memory["before"][RENDER]
    on_gpu = device().type != "cpu"  # on the CPU the host counts them too, and nothing moves
    return {"seconds": hand_over.seconds, "in": max(came, 0) * on_gpu}


def threshold_for(render: Any, sketch: Any, bench: Bench) -> float:
    """The TeaCache threshold at which a whole run reuses about REUSED of the render's steps with these weights."""
    plan, wan, cogvideox = (module(f"srd_core.teacache.{name}") for name in ("plan", "wan", "cogvideox"))
    sigmas = comfy.samplers.calculate_sigmas(sketch.get_model_object("model_sampling"), SCHEDULER, STEPS)[bench.k : -1]
    sigmas = module("srd_core.latent").check_pair(sketch, render).sigmas(sigmas)
    if bench.render.family == cost.WAN:
        kind, table = wan, plan.wan_table(bench.render.dim, False, 0)[0]
    else:
        kind, table = cogvideox, plan.cogvideox_table(bench.render.dim, 1)[0]
    times = render.get_model_object("model_sampling").timestep(sigmas).float()
    distances = plan.distances(kind.modulation(render.model.diffusion_model, times, "e"))
    growth = plan.growth(distances, table.coefficients("e"))
    wanted = round(REUSED[bench.render.family] * len(sigmas))
    low, high = 1e-6, 100.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        enough = sum(plan.reuse_plan(growth, middle)) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high * 1.001  # off the edge: the run computes the same distances on another device
