"""SR Sampler and Sketch-Render Model: the second is the mechanism, the first is it under the host's KSampler."""

from __future__ import annotations

import math
from typing import Any

import comfy.samplers
import nodes
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..srd_core.memory import AUTO, POLICIES
from ..srd_core.pair import cooperate
from ..srd_core.report.data import Report
from ..srd_core.route import FULL_SIZE, LISTED, MODES, SMALLEST, Switch, read_steps
from ..srd_core.stage import RenderSettings
from . import live
from .common import HIDDEN, SRReport, defaults, optional, schema
from .presets import CUSTOM, NAMES, PRESETS, PRESETS_KEY, chosen

SAMPLING = ("positive", "negative", "latent", "seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")
RULE = ("switch_mode", "delta", "fix_step", "max_step", "switch_step", "switch_sigma")
SEARCHES = ["moe", "high noise low noise", "dual model", "refiner", "two-stage", "two models", "Wan 14B 1.3B"]


def _inputs() -> list[io.Input]:
    """All of SR Sampler's; other nodes have some of them."""
    kinds = comfy.samplers.KSampler
    return [
        io.Model.Input("sketch"),
        io.Model.Input("render"),
        io.Conditioning.Input("positive"),
        io.Conditioning.Input("negative"),
        io.Latent.Input("latent"),
        io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
        io.Int.Input("steps", default=50, min=1, max=10000),
        io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01),
        io.Combo.Input("sampler_name", options=kinds.SAMPLERS, default="uni_pc"),
        io.Combo.Input("scheduler", options=kinds.SCHEDULERS, default="simple"),
        io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01),
        *optional(
            io.Combo.Input("switch_mode", options=list(MODES), default="adaptive"),
            io.Float.Input("delta", default=0.01, min=0.0001, max=1.0, step=0.001, round=0.0001),
            io.Int.Input("fix_step", default=5, min=0, max=10000),
            io.Int.Input("max_step", default=0, min=0, max=10000, advanced=True),
            io.Int.Input("switch_step", default=10, min=0, max=10000, advanced=True),
            io.Float.Input("switch_sigma", default=0.875, min=0.0, max=1000.0, step=0.005, round=0.0001, advanced=True),
            io.Float.Input("render_cfg", default=0.0, min=0.0, max=100.0, step=0.1, round=0.01, advanced=True),
            io.Float.Input("teacache", default=0.0, min=0.0, max=1.0, step=0.01, round=0.001, advanced=True),
            io.Combo.Input("offload_sketch", options=list(POLICIES), default=AUTO, advanced=True),
            io.Conditioning.Input("render_positive"),
            io.Conditioning.Input("render_negative"),
            io.Float.Input("fade", default=0.0, min=0.0, max=10.0, step=0.1, round=0.01, advanced=True),
            io.String.Input("sketch_steps", default="", advanced=True),
            io.Int.Input("render_steps", default=0, min=0, max=10000, advanced=True),
            io.Float.Input(
                "sketch_scale", default=FULL_SIZE, min=SMALLEST, max=FULL_SIZE, step=0.05, round=0.001, advanced=True
            ),
            io.Combo.Input("preset", options=NAMES, default=CUSTOM, extra_dict={PRESETS_KEY: PRESETS}),
        ),
    ]


def as_in_sr_sampler(*names: str) -> list[io.Input]:
    """These inputs, as SR Sampler has them."""
    known = {i.id: i for i in _inputs()}
    return [known[name] for name in names]


def _of_a_model() -> list[io.Input]:
    """What Sketch-Render Model has of them."""
    return [i for i in _inputs() if i.id not in SAMPLING]


def mode_of(rule: dict[str, Any]) -> str:
    """What decides by these widget values: a list of steps stands in for the mode."""
    return LISTED if str(rule.get("sketch_steps") or "").strip() else rule["switch_mode"]


def switch_of(rule: dict[str, Any]) -> Switch:
    """The rule that these widget values make. Raises ValueError for one that no run could follow."""
    own = {name: rule[name] for name in RULE if name != "switch_mode"}
    return Switch(mode_of(rule), **own, sketch_steps=str(rule.get("sketch_steps") or "").strip())


def check_numbers(**values: float) -> None:
    """Raises ValueError for a value that is not finite: the host compares with min and max only."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; it must be a number.")


def check_sampling(steps: int, cfg: float, denoise: float, rule: dict[str, Any]) -> None:
    """First thing in a run. Raises ValueError for settings that can't all be meant, or are not numbers."""
    check_numbers(cfg=cfg, denoise=denoise)
    if mode_of(rule) == "step" and rule["switch_step"] > steps:
        raise ValueError(
            f"switch_step is {rule['switch_step']}, but the run has {steps} steps: the render would run none. "
            f"Set switch_step below {steps} ({steps}: the sketch alone)."
        )


def _cooperate(node: type[io.ComfyNode], values: dict[str, Any]) -> tuple[ModelPatcher, Report]:
    """The MODEL of these inputs' values and its report, which the page follows as that of the (executing) node."""
    report = Report()
    own = {name: values[name] for name in ("teacache", "offload_sketch", "fade", "render_steps", "sketch_scale")}
    prompts = values.get("render_positive"), values.get("render_negative")
    settings = RenderSettings(values["render_cfg"], *prompts, **own)
    model = cooperate(values["sketch"], values["render"], switch_of(values), settings, report)
    live.follow(node, report)
    return model, report


class _Switching(io.ComfyNode):
    @classmethod
    def validate_inputs(cls, sketch_steps: str | None = None) -> bool | str:
        """Whether ``sketch_steps`` is a list of steps; one that comes from another node (None) is read in the run."""
        try:
            read_steps(sketch_steps or "")
        except ValueError as fault:
            return str(fault)
        return True


class SRModel(_Switching):
    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = {"model": io.Model, "report": SRReport}
        return schema("SRModel", _of_a_model(), outputs, SEARCHES, hidden=[*HIDDEN])

    @classmethod
    def execute(cls, sketch: ModelPatcher, render: ModelPatcher, **switching: Any) -> io.NodeOutput:
        values = chosen(defaults(_of_a_model()) | switching, live.linked(cls))
        return io.NodeOutput(*_cooperate(cls, values | {"sketch": sketch, "render": render}))


class SRSampler(_Switching):
    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = {"latent": io.Latent, "report": SRReport}
        searches = [
            "Wan 2.2 MoE sampler",
            "two ksampler",
            "video sampler",
            "faster video",
            "speed up video",
            "accelerate",
        ]
        return schema("SRSampler", _inputs(), outputs, [*SEARCHES, *searches], hidden=[*HIDDEN])

    @classmethod
    def execute(cls, sketch: ModelPatcher, render: ModelPatcher, **values: Any) -> io.NodeOutput:
        values = chosen(defaults(_inputs()) | values, live.linked(cls))
        sampling = {name: values.pop(name) for name in SAMPLING}
        check_sampling(sampling["steps"], sampling["cfg"], sampling["denoise"], values)
        model, report = _cooperate(cls, values | {"sketch": sketch, "render": render})
        (samples,) = nodes.common_ksampler(model, **sampling)
        return io.NodeOutput(samples, report)
