"""The rows of the speed bench as data, and how each is sampled: by the host's own sampling call on the pack's MODELs."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import cost
import psutil
import torch
from quality_host import module
from speed_measure import clock, falls_back, wait
from speed_models import WEIGHTS, build, bytes_of, conditioning

SKETCH, RENDER = "sketch", "render"
SKETCH_ONLY, RENDER_ONLY = "sketch only", "render only"  # the rows of one model, which others are compared with
STEPS = 50  # of the paper's runs, which the steps of every row belong to
SHORT = 8  # steps of a run that only warms up
FASTEST = "fastest"  # of the attention backends that are here
SEED, SAMPLER, SCHEDULER = 0, "euler", "simple"
ROOM = 1.2  # main memory that must be free for a byte of weights


@dataclass(frozen=True)
class Variant:
    """How the networks are computed."""

    weights: str = "default"
    attention: str = "auto"
    compiled: bool = False

    def __str__(self) -> str:
        words = [f"{self.weights} weights" if self.weights != "default" else "",
                 f"{self.attention} attention" if self.attention != "auto" else "", "compiled" if self.compiled else ""]  # fmt: skip
        return ", ".join(word for word in words if word) or "default"


PLAIN = Variant()


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    kind: str  # plain, easycache, chained, cooperation
    sketch: float  # steps of the sketch, of STEPS
    reuse: tuple[float, float] = (0, 0)  # steps of sketch and render that TeaCache shall reuse, of STEPS
    variant: Variant = PLAIN
    cfg_1: bool = False  # the render without guidance

    @property
    def skips_all(self) -> bool:
        """Whether a step that its cache reuses runs nothing of the network; TeaCache leaves out the blocks."""
        return self.kind == "easycache"

    def steps(self, steps: int) -> int:
        """Those of the sketch in a run of ``steps``."""
        return steps if self.sketch == STEPS else max(round(self.sketch * steps / STEPS), 1) if self.sketch else 0


# Steps that TeaCache reuses with real weights at a threshold, from the seconds of the paper's Tables 2 and 3 (A800): those
# saved, over those of a step of the model. With random weights no threshold means the same, so the threshold is chosen here
# to reuse as many.
PAPER_REUSE = {
    cost.WAN: {"sketch 0.14": (841 - 579) / (841 / STEPS), "sketch 0.2": (841 - 427) / (841 / STEPS),
               "render 0.14": (296 - 215) / (158 / STEPS)},
    cost.COGVIDEOX: {"sketch 0.1": (213 - 139) / (213 / STEPS), "sketch 0.15": (213 - 106) / (213 / STEPS),
                     "render 0.1": (117 - 107) / (75 / STEPS)},
}  # fmt: skip
SKETCH_STEPS = {cost.WAN: 10, cost.COGVIDEOX: 15}  # mean of the paper at delta 0.01
CFG = {cost.WAN: 5.0, cost.COGVIDEOX: 6.0}


def rows(family: str) -> list[Row]:
    """Every row, what matters most first."""
    k, reuse = SKETCH_STEPS[family], PAPER_REUSE[family]
    render_tea = next(name for name in reuse if name.startswith(RENDER))
    tea, cached = f"TeaCache {render_tea.split()[1]}", (0.0, reuse[render_tea])
    base = f"SR, {k} steps"
    return [
        Row(SKETCH_ONLY, "plain", STEPS),
        Row(base, "cooperation", k),
        Row(f"{base}, {tea}", "cooperation", k, cached),
        Row(RENDER_ONLY, "plain", 0),
        *(Row(f"SR, {other} steps", "cooperation", other) for other in ((7, 8, 16) if family == cost.WAN else (10, 20))),
        Row(f"two chained samplers, {k} steps", "chained", k),
        Row("EasyCache 0.2 on the sketch", "easycache", STEPS),
        *(Row(f"TeaCache {name.split()[1]} on the sketch", "plain", STEPS, (count, 0)) for name, count in reuse.items()
          if name.startswith(SKETCH)),
        Row(f"{base}, render_cfg 1", "cooperation", k, cfg_1=True),
        Row(f"{base}, sage attention", "cooperation", k, variant=Variant(attention="sage")),
        Row(f"{base}, fastest attention", "cooperation", k, variant=Variant(attention=FASTEST)),
        Row(f"{base}, compiled", "cooperation", k, variant=Variant(compiled=True)),
        *(Row(f"{base}, {weights}", "cooperation", k, variant=Variant(weights)) for weights in WEIGHTS[1:]),
        Row(f"{base}, {tea}, sage attention", "cooperation", k, cached, Variant(attention="sage")),
        Row(f"{base}, {tea}, compiled", "cooperation", k, cached, Variant(compiled=True)),
        Row(f"{base}, {tea}, fp8", "cooperation", k, cached, Variant("fp8")),
        Row(f"{base}, {tea}, fp8, sage attention, render_cfg 1", "cooperation", k, cached, Variant("fp8", "sage"), True),
    ]  # fmt: skip


# --- models -------------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """The pair of a session at one size, as every variant asks for it."""

    sketch: Any  # cost.Network
    render: Any
    size: Any  # cost.Size
    device: torch.device
    steps: int
    fastest: str = ""  # attention backend, once it is known
    warm: set[str] = field(default_factory=set)  # rows whose networks torch has compiled
    _pairs: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _variants: dict[Variant, tuple[Any, Any]] = field(default_factory=dict)

    def pair(self, variant: Variant) -> tuple[Any, Any]:
        """(sketch, render) MODELs; weights are built at their first use and shared by all variants of them."""
        if variant not in self._variants:
            if variant.weights not in self._pairs:
                self._make_room(variant.weights)
                networks = (self.sketch, self.render)
                self._pairs[variant.weights] = tuple(build(n, variant.weights, self.device) for n in networks)  # type: ignore[assignment]
            backend = self.fastest if variant.attention == FASTEST else variant.attention
            with_attention = module("srd_core.attention").with_attention
            models = [with_attention(model, backend) for model in self._pairs[variant.weights]]
            self._variants[variant] = tuple(map(compiled, models)) if variant.compiled else tuple(models)  # type: ignore[assignment]
        return self._variants[variant]

    def _make_room(self, weights: str) -> None:
        """Let other weights go where main memory is too small for all. Raises RuntimeError where it is too small even so."""
        needed = bytes_of((self.sketch, self.render), weights, self.device)
        if psutil.virtual_memory().available < ROOM * needed:
            for forgotten in (self._pairs, self._variants, self.warm):
                forgotten.clear()
            unload()
            gc.collect()
        if (free := psutil.virtual_memory().available) < ROOM * needed:
            raise RuntimeError(f"{needed / 1e9:.0f} GB of weights don't fit into main memory: {free / 1e9:.0f} GB are free.")

    def put_on_device(self, row: Row) -> None:
        """As a run finds the device after one of the same row: the row's models are there as far as both fit with room for a
        step, the first one before the second; no others."""
        sketch, render = self.pair(row.variant)
        used = (sketch, render) if row.kind in ("cooperation", "chained") else (sketch if row.sketch else render,)
        memory = module("srd_core.memory")
        for model in [model for pair in self._pairs.values() for model in pair]:
            if not any(model.is_clone(mine) for mine in used):
                memory.release(model)
        conds = {role: comfy.sampler_helpers.convert_cond(cond)
                 for role, cond in zip(("positive", "negative"), conditioning(self.sketch))}  # fmt: skip
        for model in reversed(used):
            comfy.sampler_helpers.prepare_sampling(model, self.latent().shape, conds, model.model_options)

    def latent(self) -> torch.Tensor:
        """An empty one, [1, 16, frames, height, width]."""
        return torch.zeros(1, cost.CHANNELS, *self.size.latent)


def compiled(model: Any) -> Any:
    """By the host's own node, as it comes."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    return _result(TorchCompileModel.execute(model, "inductor"))


def easycached(model: Any) -> Any:
    """By the host's own node at its defaults."""
    from comfy_extras.nodes_easycache import EasyCacheNode

    return _result(EasyCacheNode.execute(model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False))


def _result(output: Any) -> Any:
    """The first output of a V3 node."""
    return output.result[0] if hasattr(output, "result") else output[0]


def unavailable(row: Row, bench: Bench) -> str:
    """Why this row can't be measured here; empty: it can."""
    attention = module("srd_core.attention")
    if row.variant.attention == FASTEST:
        default = attention.backend_of({})
        if bench.fastest == default:
            return f"The fastest backend here is {default}, which ComfyUI takes anyhow: the row is the one without it."
    elif (wanted := row.variant.attention) not in attention.backends():
        return f"ComfyUI has not registered {wanted} attention: pip install {attention.PACKAGES.get(wanted, wanted)}."
    elif falls_back(wanted, bench.sketch, bench.device):
        return f"{wanted} attention does not work here: ComfyUI takes pytorch's instead."
    return compiler_missing(bench.device) if row.variant.compiled else ""


def compiler_missing(device: torch.device) -> str:
    """Why torch.compile does not work here; empty: it does."""
    try:
        torch.compile(lambda x: x * 2 + 1, backend="inductor")(torch.ones(8, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        return f"torch.compile does not work here: {str(error).strip().splitlines()[0]}"
    return ""


# --- TeaCache: as many steps reused as with real weights -----------------------------------------------------------------


def threshold_for(model: Any, network: Any, bench: Bench, first: int, reused: float, sketch: Any = None) -> float:
    """The TeaCache threshold at which steps ``first`` ... of a run reuse about ``reused`` of them with these weights.
    ``sketch``: the model whose schedule the run follows, if not the cached one's."""
    teacache, wan, cogvideox = (module(f"srd_core.teacache.{name}") for name in ("plan", "wan", "cogvideox"))
    sampling = model.get_model_object("model_sampling")
    of_run = (sketch or model).get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(of_run, SCHEDULER, bench.steps)[first:-1]
    if sketch is not None:
        sigmas = module("srd_core.latent").check_pair(sketch, model).sigmas(sigmas)
    if len(sigmas) < teacache.MIN_STEPS:
        return 1.0
    modulation, table = (
        (wan.modulation, teacache.wan_table(network.dim, False, 0)[0])
        if network.family == cost.WAN
        else (cogvideox.modulation, teacache.cogvideox_table(network.dim, 1)[0])
    )
    d = teacache.distances(modulation(model.model.diffusion_model, sampling.timestep(sigmas).float(), "e"))
    low, high = 1e-6, 100.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        enough = sum(teacache.skip_plan(d, table.coefficients("e"), middle)) >= reused
        low, high = (low, middle) if enough else (middle, high)
    return high * 1.001  # off the edge: the run computes the same distances on another device


# --- sampling -----------------------------------------------------------------------------------------------------------


@dataclass
class Ran:
    """What a run left besides its seconds."""

    steps: list[float] = field(default_factory=list)  # seconds from each step to the next
    reused: dict[str, float] = field(default_factory=lambda: {SKETCH: 0.0, RENDER: 0.0})
    hand_over: dict[str, float] | None = None


def sample(model: Any, bench: Bench, cfg: float, callback: Any = None, **how: Any) -> torch.Tensor:
    """The host's sampling call over the bench's schedule, or over steps start_step to last_step of it."""
    positive, negative = conditioning(bench.sketch)
    latent = how.pop("latent", bench.latent())
    noise = torch.zeros_like(latent) if how.get("disable_noise") else comfy.sample.prepare_noise(latent, SEED)
    return comfy.sample.sample(model, noise, bench.steps, cfg, SAMPLER, SCHEDULER, positive, negative, latent,
                               callback=callback, disable_pbar=True, seed=SEED, **how)  # fmt: skip


def probe(model: Any, bench: Bench, cfg: float, steps: int) -> list[float]:
    """Seconds of single steps of a model: the first ``steps`` of a run but for its very first, which also loads."""
    steps_clock = StepClock(bench.device)
    sample(model, bench, cfg, steps_clock, last_step=steps + 1, force_full_denoise=True)
    return steps_clock.seconds


class StepClock:
    """A step callback that takes down the seconds between steps."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._last = device, 0.0
        self.seconds: list[float] = []

    def __call__(self, step: int, *_: Any) -> None:
        wait(self.device)
        now = clock(self.device)
        if step:
            self.seconds.append(now - self._last)
        self._last = now


def warm_up(row: Row, bench: Bench) -> None:
    """Lets torch compile what the row's runs need, once for each row."""
    if row.variant.compiled and row.name not in bench.warm:
        prepared(row, dataclasses.replace(bench, steps=SHORT))()
        bench.warm.add(row.name)


def prepared(row: Row, bench: Bench) -> Callable[[], Ran]:
    """The row as a call that samples one whole run."""
    sketch, render = bench.pair(row.variant)
    k, cfg = row.steps(bench.steps), CFG[bench.sketch.family]
    share = bench.steps / STEPS
    teacache = module("srd_core.teacache.host")
    if row.kind == "cooperation":
        wanted = row.reuse[1] * share
        threshold = threshold_for(render, bench.render, bench, k, wanted, sketch) if wanted else 0.0
        return lambda: _cooperation(sketch, render, k, threshold, row, bench)
    if row.kind == "chained":
        return lambda: _chained(sketch, render, k, bench, cfg)
    model, stage = (sketch, SKETCH) if row.sketch else (render, RENDER)
    if row.kind == "easycache":
        model = easycached(model)
    elif wanted := row.reuse[0] * share:
        threshold = threshold_for(model, bench.sketch, bench, 0, wanted)
        model = teacache.with_teacache(model, teacache.TeaCache(threshold))
    return lambda: _alone(model, stage, bench, cfg, cached=row.kind == "easycache" or bool(row.reuse[0]))


def _alone(model: Any, stage: str, bench: Bench, cfg: float, cached: bool) -> Ran:
    ran = Ran()
    if not cached:
        sample(model, bench, cfg)
        return ran
    forwards = []  # rows of every forward that ran its blocks

    def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> None:
        forwards.append((args[0] if args else kwargs["hidden_states"]).shape[0])

    hook = model.model.diffusion_model.blocks[0].register_forward_hook(count, with_kwargs=True)
    try:
        sample(model, bench, cfg)
    finally:
        hook.remove()
    ran.reused[stage] = bench.steps - sum(forwards) / 2
    return ran


def _chained(sketch: Any, render: Any, k: int, bench: Bench, cfg: float) -> Ran:
    """As two KSampler (Advanced) do it: the second continues with the noise that the first leaves."""
    latent = sample(sketch, bench, cfg, last_step=k)
    sample(render, bench, cfg, latent=latent, start_step=k, disable_noise=True)
    return Ran()


def _cooperation(sketch: Any, render: Any, k: int, threshold: float, row: Row, bench: Bench) -> Ran:
    model, report = cooperating(sketch, render, k, cfg=1.0 if row.cfg_1 else 0.0, teacache=threshold)
    sample(model, bench, CFG[bench.sketch.family])
    ran = Ran(reused={stage: report.reused(stage) for stage in (SKETCH, RENDER)})
    if report.hand_overs:
        ran.hand_over = _moved(report.hand_overs[0], bench)
    return ran


def cooperating(sketch: Any, render: Any, k: int, **settings: Any) -> tuple[Any, Any]:
    """(the pair as one MODEL that switches after ``k`` steps, its report)."""
    cooperation, criterion = module("srd_core.pair"), module("srd_core.route")
    switch, report = criterion.Switch(mode="step", switch_step=k), module("srd_core.report.data").Report()
    return cooperation.cooperate(sketch, render, switch, cooperation.RenderSettings(**settings), report), report


def _moved(hand_over: Any, bench: Bench) -> dict[str, float]:
    """Seconds of a hand-over, and bytes of weights that came (the render's) and left (the sketch's); on the CPU none."""
    before, after = hand_over.memory["before"], hand_over.memory["after"]
    moves = bench.device.type != "cpu"
    return {
        "seconds": hand_over.seconds,
        "in": float(max(after[RENDER] - before[RENDER], 0) * moves),
        "out": float(max(before[SKETCH] - after[SKETCH], 0) * moves),
    }


def unload() -> None:
    """Everything back to main memory, as after other models."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def plan_of(row: Row, steps: int, reused: dict[str, float]) -> Any:
    """The cost model's plan of a row as it was sampled."""
    k = row.steps(steps)
    return cost.Plan(steps, k, min(reused.get(SKETCH, 0), k), min(reused.get(RENDER, 0), steps - k))


def forwards_of(row: Row) -> tuple[int, int]:
    """Forwards of sketch and render in a step."""
    return 2, 1 if row.cfg_1 else 2


def named(family: str) -> dict[str, Row]:
    """The rows by name."""
    return {row.name: row for row in rows(family)}


def chosen(family: str, pattern: str) -> list[Row]:
    """Rows named by words that | separates, whole names or parts of several. Raises ValueError where none fits."""
    every = rows(family)
    names = {row.name.lower() for row in every}
    words = [word.strip().lower() for word in pattern.split("|") if word.strip()]

    def wanted(name: str) -> bool:
        return not words or any(word == name if word in names else word in name for word in words)

    found = [row for row in every if wanted(row.name.lower())]
    if not found:
        raise ValueError(f"No row has {pattern!r} in its name. There are: {'; '.join(row.name for row in every)}.")
    return found


def as_dict(variant: Variant) -> dict[str, Any]:
    """For JSON."""
    return dataclasses.asdict(variant)


def cold_hand_over(bench: Bench) -> dict[str, float]:
    """Seconds and bytes (in, out) of a hand-over in a run that starts with nothing on the device."""
    model, report = cooperating(*bench.pair(PLAIN), 1)
    unload()
    sample(model, bench, CFG[bench.sketch.family], last_step=2, force_full_denoise=True)
    return _moved(report.hand_overs[0], bench)
