"""Sketch-Render runs for the tests: pairs, both halves, models that fail at a call, and a Wan that TeaCache reuses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import comfy.ldm.wan.model
import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.sd
import comfy_extras.nodes_custom_sampler as custom
import helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from hosting import module

pair, route = module("srd_core.pair"), module("srd_core.route")
handover, half_render = module("srd_core.handover.file"), module("srd_core.handover.render")
sampler_nodes, handover_nodes, loaders = module("nodes.sampler"), module("nodes.handover"), module("nodes.loaders")
reuse = module("srd_core.teacache.host")
RenderSettings, Switch = pair.RenderSettings, route.Switch
Report = module("srd_core.report.data").Report

STEPS = 6
OWN_LEVELS = ("dpm_fast", "dpm_adaptive")  # they take only the first and the last level of the schedule
RULE, SWITCHING = helpers.RULE, helpers.RULE | helpers.RENDERING
ADAPTIVE = Switch("adaptive", delta=1e9, fix_step=5, switch_sigma=0.0, max_step=9)  # settles where D falls


def sr_model(sketch: Any, render: Any, switch: Any = 3, report: Any = None, **settings: Any) -> Any:
    """A Sketch-Render MODEL. switch: so many steps, the list of the sketch's steps, or a Switch."""
    if isinstance(switch, int):
        switch = Switch("step", switch_step=switch)
    elif isinstance(switch, str):
        switch = Switch("listed", sketch_steps=switch)
    return pair.cooperate(sketch, render, switch, RenderSettings(**settings), report or Report())


def sr_outputs(sketch: Any, render: Any, **how: Any) -> Any:
    """SR Sampler's outputs: LATENT, report."""
    return sampler_nodes.SRSampler.execute(sketch, render, **helpers.sampling_inputs(**SWITCHING | how)).args


def sr_sampler(sketch: Any, render: Any, steps: int = STEPS, **how: Any) -> torch.Tensor:
    """What SR Sampler samples."""
    return sr_outputs(sketch, render, steps=steps, **how)[0]["samples"]


def sketched(sketch: Any, **how: Any) -> Any:
    """SR Sketch's outputs: hand-over, preview, report."""
    return handover_nodes.SRSketch.execute(sketch, **helpers.sampling_inputs(**RULE | how)).args


def rendered(record: Any, render: Any, **how: Any) -> Any:
    """SR Render's outputs: LATENT, report."""
    inputs = {"positive": helpers.prompt(1), "negative": helpers.prompt(2), "render_cfg": 0.0, "teacache": 0.0}
    return handover_nodes.SRRender.execute(record, render, **inputs | how).args


GUIDERS: dict[str, Callable[..., Any]] = {
    "CFGGuider": lambda model, cfg=3.0: custom.CFGGuider.execute(model, helpers.prompt(1), helpers.prompt(2), cfg),
    "BasicGuider": lambda model: custom.BasicGuider.execute(model, helpers.prompt(1)),
    "DualCFGGuider": lambda model: custom.DualCFGGuider.execute(
        model, helpers.prompt(1), helpers.prompt(3), helpers.prompt(2), 3.0, 2.0, "regular"
    ),
}


def levels_of(model: Any, steps: int = STEPS) -> torch.Tensor:
    """KSampler's simple schedule [steps + 1]."""
    return custom.BasicScheduler.execute(model, "simple", steps, 1.0).args[0]


def sampled(model: Any, sampler: Any = "euler", sigmas: Any = None, latent: Any = None, **how: Any) -> torch.Tensor:
    """SamplerCustomAdvanced. sampler: a name or the host's object. how: guider, its cfg, and noise=False."""
    noise = custom.RandomNoise.execute(7) if how.pop("noise", True) else custom.DisableNoise.execute()
    guider = GUIDERS[how.pop("guider", "CFGGuider")](model, **how).args[0]
    sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    sigmas = levels_of(model) if sigmas is None else sigmas
    sampling = (noise.args[0], guider, sampler, sigmas, latent or helpers.empty_latent())
    return custom.SamplerCustomAdvanced.execute(*sampling).args[0]["samples"]


def through_a_file(record: Any, folder: Path) -> Any:
    path = folder / f"a{handover.SUFFIX}"
    handover.write(record, path)
    return half_render.load(path)


def a_video(batch: int = 1, side: int = 8) -> torch.Tensor:
    """An encoded video [B, 16, 2, side, side]."""
    return torch.randn(batch, 16, 2, side, side, generator=torch.Generator().manual_seed(3))


def right_half(share: float = 1.0) -> torch.Tensor:
    """A noise mask that generates the right half."""
    return (torch.arange(8) >= 4).float().expand(1, 1, 2, 8, 8) * share


def softly_masked() -> dict[str, Any]:
    """A LATENT whose mask rises from 0 to 1."""
    return {"samples": a_video(), "noise_mask": torch.linspace(0, 1, 64).reshape(1, 8, 8)}


def soft(model: Any) -> Any:
    """The MODEL with Differential Diffusion, which frees the parts of a mask one after the other."""
    return DifferentialDiffusion.execute(model, strength=1.0).args[0]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The relative L2 distance."""
    return float((a - b).norm() / b.norm())


def load(name: str, node: Any = None, **settings: Any) -> Any:
    """A file of the host's models folder, by a loader of the pack."""
    node = node or loaders.SRLoadSketchDiT
    return node.execute(name, **{"weight_dtype": "default", "attention": "auto"} | settings).args[0]


# --- models that do something at a call ------------------------------------------------------------------------------


class Broken(RuntimeError):
    """What the tests' models raise."""


def wrapped(model: Any, wrapper: Callable[..., Any], kind: Any = WrappersMP.DIFFUSION_MODEL) -> Any:
    """A clone with wrapper(executor, *args, **kwargs) around its transformer, or what ``kind`` says."""
    model = model.clone()
    model.add_wrapper_with_key(kind, f"test {id(wrapper)}", wrapper)
    return model


def before(model: Any, act: Callable[[int], None], kind: Any = WrappersMP.DIFFUSION_MODEL) -> Any:
    """A clone that calls act(number) before its call of that number; the first is 1."""
    calls = [0]

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        act(calls[0])
        return executor(*args, **kwargs)

    return wrapped(model, wrapper, kind)


def failing(model: Any, at: int | Collection[int], error: Any = Broken, kind: Any = WrappersMP.DIFFUSION_MODEL) -> Any:
    """A clone that raises at these calls."""
    numbers = {at} if isinstance(at, int) else at

    def act(number: int) -> None:
        if number in numbers:
            raise error(f"call {number}")

    return before(model, act, kind)


def interrupting(model: Any, at: int) -> Any:
    """A clone during whose call of that number the artist presses Cancel."""
    interrupt = comfy.model_management.interrupt_current_processing
    return before(model, lambda number: interrupt() if number == at else None)


def out_of_memory(model: Any, at: int | Collection[int] = 1, kind: Any = WrappersMP.DIFFUSION_MODEL) -> Any:
    """A clone that raises what the host takes for an out-of-memory error."""
    return failing(model, at, lambda _: comfy.model_management.OOM_EXCEPTION("Allocation on device"), kind)


def shapes_of(model: Any, kind: Any = WrappersMP.APPLY_MODEL) -> tuple[Any, list[tuple[int, ...]]]:
    """(clone of model, list that gets the shape of x at every call)."""
    shapes: list[tuple[int, ...]] = []

    def wrapper(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(x.shape))
        return executor(x, *args, **kwargs)

    return wrapped(model, wrapper, kind), shapes


def predictions_of(model: Any) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    """(clone of model, list that gets x and the guided x0 prediction of every call)."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((x, executor(x, *args, **kwargs)))
        return seen[-1][1]

    return wrapped(model, look, WrappersMP.PREDICT_NOISE), seen


def broken_from(model: Any, call: int, bad: float) -> tuple[Any, list[int]]:
    """(clone whose transformer gives one bad value from its call number ``call`` on, list of the calls)."""
    calls: list[int] = []

    def spoil(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        calls.append(1)
        if len(calls) >= call:
            out[0, 3, 0, 2, 1] = bad
        return out

    return wrapped(model, spoil), calls


def state_of(model: Any) -> tuple[Any, ...]:
    """What a run could leave on a MODEL."""
    options = {k: repr(v) for k, v in model.model_options.items()}
    return options, repr(model.wrappers), repr(model.callbacks), model.hook_mode, model.model.current_patcher


FAULTS = pytest.mark.parametrize("fault", [failing, interrupting], ids=["failed", "interrupted"])


@contextmanager
def left_as_before(*models: Any, run: Callable[[Any], torch.Tensor] = helpers.ksampler) -> Iterator[None]:
    """A run that one of FAULTS ends here leaves these models and their plain runs as they were."""
    plain, states = [run(model) for model in models], [state_of(model) for model in models]
    with pytest.raises((Broken, comfy.model_management.InterruptProcessingException)):
        yield
    assert [state_of(model) for model in models] == states
    assert all(torch.equal(run(model), latent) for model, latent in zip(models, plain))


def growing(model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any) -> torch.Tensor:
    """Euler that doubles the video's sides before its third step."""
    for i in range(len(sigmas) - 1):
        if i == 2:
            x = torch.nn.functional.interpolate(x, scale_factor=(1, 2, 2))
        denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        callback({"i": i, "denoised": denoised, "x": x})
    return x


# --- TeaCache ---------------------------------------------------------------------------------------------------------

LAYERS, THRESHOLD = 3, 0.2


@cache
def _random(build: Callable[..., dict[str, torch.Tensor]], **how: int) -> dict[str, torch.Tensor]:
    """Made once: that takes longer than to load it."""
    return build(**how)


def slow_state_dict(seed: int = 0, build: Any = helpers.wan_state_dict, layers: int = LAYERS) -> Any:
    """A Wan whose time embedding changes as little from step to step as a trained one's, so that a plan reuses some."""
    state_dict = {key: value.clone() for key, value in _random(build, seed=seed, layers=layers).items()}
    state_dict["time_embedding.0.weight"] *= 0.02
    state_dict["time_embedding.0.bias"] = torch.ones_like(state_dict["time_embedding.0.bias"])
    return state_dict


def slow_wan(seed: int = 0, layers: int = LAYERS) -> Any:
    return comfy.sd.load_diffusion_model_state_dict(slow_state_dict(seed, layers=layers))


def cached(model: Any, threshold: float = THRESHOLD, **settings: Any) -> Any:
    return reuse.with_teacache(model, reuse.TeaCache(threshold, **settings))


def vace_state_dict(seed: int, layers: int = LAYERS) -> dict[str, torch.Tensor]:
    layout = helpers.wan_layout(layers) | {"vace_layers": 1, "vace_in_dim": 96}
    return helpers.random_model(comfy.ldm.wan.model.VaceWanModel, seed, **layout)


def asked_for(run: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The bytes that the host was asked to free for each model that it loaded for a run."""
    asked: list[float] = []
    load = comfy.model_management.load_models_gpu

    def listen(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["memory_required"])
        return load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "load_models_gpu", listen)
        run()
    return asked
