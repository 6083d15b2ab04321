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
from .common import CATEGORY, SEARCH_ALIASES, SRReport, defaults, optional
from .presets import CUSTOM, NAMES, PRESETS, PRESETS_KEY, chosen


def _models() -> list[io.Input]:
    return [
        io.Model.Input("sketch", tooltip="The large model: it runs the first, high-noise steps."),
        io.Model.Input("render", tooltip="The small model of the same family: it runs the remaining steps."),
    ]


def _switching() -> list[io.Input]:
    return optional(
        io.Combo.Input(
            "switch_mode",
            options=list(MODES),
            default="adaptive",
            tooltip="adaptive: switch when the composition has settled (delta, fix_step; at the latest below "
            "switch_sigma). step: after switch_step steps. sigma: below switch_sigma.",
        ),
        io.Float.Input(
            "delta",
            default=0.01,
            min=0.0001,
            max=1.0,
            step=0.001,
            round=0.0001,
            tooltip="adaptive: how sensitive the switch is (the paper's delta, 0.002 to 0.03). Smaller switches later "
            "(closer to the sketch alone), larger earlier (faster). It means the same noise level at any step count, "
            "shift and scheduler.",
        ),
        io.Int.Input(
            "fix_step",
            default=5,
            min=0,
            max=10000,
            tooltip="adaptive: the sketch runs more than this many of 50 steps (the paper's FIX_STEP). At other step "
            "counts the earliest switch is at the same noise level: 5 is a tenth of the way.",
        ),
        io.Int.Input(
            "max_step",
            default=0,
            min=0,
            max=10000,
            advanced=True,
            tooltip="adaptive: switch after this step at the latest. 0: below switch_sigma at the latest.",
        ),
        io.Int.Input(
            "switch_step",
            default=10,
            min=0,
            max=10000,
            advanced=True,
            tooltip="step: the number of steps that the sketch runs. 0: the render runs all.",
        ),
        io.Float.Input(
            "switch_sigma",
            default=0.875,
            min=0.0,
            max=1000.0,
            step=0.005,
            round=0.0001,
            advanced=True,
            tooltip="sigma: the render runs the steps that start below this noise level (1 is pure noise for Wan). "
            "adaptive, with max_step 0: the switch comes below it at the latest. Wan 2.2's boundary is 0.875, for "
            "image to video 0.9.",
        ),
        io.Float.Input(
            "render_cfg",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            advanced=True,
            tooltip="Guidance scale of the render. 0: the same as the sketch. 1: no guidance, twice as fast. For a "
            "real 0 (the negative prompt alone), set 1 and connect the negative prompt to render_positive.",
        ),
        io.Float.Input(
            "teacache",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            advanced=True,
            tooltip="TeaCache on the render stage: steps whose change stays below this threshold reuse the last "
            "computed one. 0: off. The paper uses 0.14 for Wan (about 1.4x on top) and 0.1 for CogVideoX; TeaCache's "
            "authors advise 0.05 to 0.08 for Wan 1.3B. The report shows which steps were reused.",
        ),
        io.Combo.Input(
            "offload_sketch",
            options=list(POLICIES),
            default=AUTO,
            advanced=True,
            tooltip="What happens to the sketch's memory when the render comes. auto: ComfyUI frees as much of it as "
            "the render needs. always: all of it leaves the GPU. never: it stays, and what does not fit is loaded in "
            "part.",
        ),
        io.Conditioning.Input("render_positive", tooltip="Conditioning for the render; not connected: the sketch's."),
        io.Conditioning.Input(
            "render_negative", tooltip="Negative conditioning for the render; not connected: the sketch's."
        ),
        io.Float.Input(
            "fade",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.1,
            round=0.01,
            advanced=True,
            tooltip="The sketch's last change fades into the render, so that the switch is not a cut: nearer to the "
            "sketch at the same cost. 0: a cut, as in the paper. 1.1 is the measured value; larger holds it longer.",
        ),
        io.String.Input(
            "sketch_steps",
            default="",
            advanced=True,
            tooltip="The steps that the sketch runs, counted from 1: 1-10, 46-50. The render runs the others, and "
            "switch_mode and its settings do nothing. Empty: off.",
        ),
        io.Int.Input(
            "render_steps",
            default=0,
            min=0,
            max=10000,
            advanced=True,
            tooltip="The number of steps for the render. 0: the remaining steps. With 50 steps and a switch after 10, "
            "20 halves the render's work; 4 is for a few-step model or LoRA (with render_cfg 1).",
        ),
        io.Float.Input(
            "sketch_scale",
            default=FULL_SIZE,
            min=SMALLEST,
            max=FULL_SIZE,
            step=0.05,
            round=0.001,
            advanced=True,
            tooltip="The sketch runs at this share of width and height, and the video is enlarged at the switch: much "
            "faster, with less memory for the sketch. 1: off. 0.667 sketches 720p at 480p. A smaller picture may be "
            "framed differently.",
        ),
        io.Combo.Input(
            "preset",
            options=NAMES,
            default=CUSTOM,
            extra_dict={PRESETS_KEY: PRESETS},
            tooltip="Sets the widgets that decide quality and speed (steps, switch, fade, render_cfg, render_steps). "
            "paper: as published, 50 steps. quality: paper with fade. balanced: 20 steps with fade. fast: balanced "
            "with a render without guidance. few-step render: 10 of 50 steps, then 4 by a few-step model or LoRA. For "
            "pairs such as Wan 14B with 1.3B, not for Wan 2.2 high and low noise. custom: the widgets as they are; "
            "changing one of them sets it. An input that is connected keeps what its link gives.",
        ),
    )


def _unreadable(sketch_steps: str | None) -> str | None:
    """What is wrong with a list of steps; None: nothing, or it comes from another node."""
    try:
        read_steps(sketch_steps or "")
    except ValueError as fault:
        return str(fault)
    return None


def mode_of(rule: dict[str, Any]) -> str:
    """What decides by these widget values: a list of steps stands in for the mode."""
    return LISTED if str(rule.get("sketch_steps") or "").strip() else rule["switch_mode"]


def switch_of(rule: dict[str, Any]) -> Switch:
    """The rule that these widget values make. Raises ValueError for one that no run could follow."""
    own = {name: rule[name] for name in ("delta", "fix_step", "max_step", "switch_step", "switch_sigma")}
    return Switch(mode_of(rule), **own, sketch_steps=str(rule.get("sketch_steps") or "").strip())


def check_numbers(**values: float) -> None:
    """Raises ValueError for a value that is not finite: the host compares with min and max only."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; it must be a number.")


def check_sampling(steps: int, cfg: float, denoise: float, rule: dict[str, Any]) -> None:
    """First thing in a run.

    Raises ValueError for settings that can't all be meant, and for what the host takes for a number.
    """
    check_numbers(cfg=cfg, denoise=denoise)
    if mode_of(rule) == "step" and rule["switch_step"] > steps:
        raise ValueError(
            f"switch_step is {rule['switch_step']}, but the run has {steps} steps: the render would run none. "
            f"Set switch_step below {steps} ({steps}: the sketch alone)."
        )


def _cooperate(
    sketch: ModelPatcher,
    render: ModelPatcher,
    render_cfg: float,
    teacache: float,
    offload_sketch: str,
    fade: float,
    render_steps: int,
    sketch_scale: float,
    render_positive: list[Any] | None = None,
    render_negative: list[Any] | None = None,
    **rule: Any,
) -> tuple[ModelPatcher, Report]:
    report = Report()
    settings = RenderSettings(
        render_cfg,
        render_positive,
        render_negative,
        teacache,
        offload_sketch,
        fade,
        render_steps,
        sketch_scale=sketch_scale,
    )
    return cooperate(sketch, render, switch_of(rule), settings, report), report


class SRModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SRModel",
            display_name="Sketch-Render Model",
            category=CATEGORY,
            search_aliases=[
                *SEARCH_ALIASES,
                "moe",
                "high noise low noise",
                "dual model",
                "refiner",
                "two-stage",
                "Wan 14B 1.3B",
            ],
            description="A MODEL that samples as the sketch first and as the render after the switch, under any "
            "sampler node: KSampler, KSampler (Advanced), SamplerCustom, SamplerCustomAdvanced with any guider.",
            inputs=[*_models(), *_switching()],
            outputs=[io.Model.Output(display_name="model"), SRReport.Output(display_name="report")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, sketch_steps: str | None = None) -> bool | str:
        return _unreadable(sketch_steps) or True

    @classmethod
    def execute(cls, sketch: ModelPatcher, render: ModelPatcher, **switching: Any) -> io.NodeOutput:
        model, report = _cooperate(sketch, render, **chosen(defaults(_switching()) | switching, live.linked(cls)))
        live.follow(cls, report)
        return io.NodeOutput(model, report)


class SRSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SRSampler",
            display_name="SR Sampler",
            category=CATEGORY,
            search_aliases=[
                *SEARCH_ALIASES,
                "Wan 2.2 MoE sampler",
                "high noise low noise",
                "dual model",
                "two ksampler",
                "refiner",
                "two-stage",
                "Wan 14B 1.3B",
                "video sampler",
                "faster video",
                "speed up",
                "accelerate",
            ],
            description="Samples a video with two models: the large one sketches the high-noise steps, the small one "
            "renders the rest. The same as Sketch-Render Model with KSampler.",
            inputs=[
                *_models(),
                io.Conditioning.Input("positive", tooltip="What the video should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Latent.Input("latent", tooltip="An empty latent of this family, or an encoded video."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The random seed of the noise.",
                ),
                io.Int.Input("steps", default=50, min=1, max=10000, tooltip="Steps of sketch and render together."),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale. 1: no guidance, twice as fast.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="uni_pc",
                    tooltip="The sampler; it runs once over all steps, so multistep samplers keep their history across "
                    "the switch.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="simple",
                    tooltip="The noise schedule, from the sketch model's shift.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 an encoded video keeps part of its structure.",
                ),
                *_switching(),
            ],
            outputs=[io.Latent.Output(display_name="latent"), SRReport.Output(display_name="report")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, sketch_steps: str | None = None) -> bool | str:
        return _unreadable(sketch_steps) or True

    @classmethod
    def execute(
        cls,
        sketch: ModelPatcher,
        render: ModelPatcher,
        positive: list[Any],
        negative: list[Any],
        latent: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        **switching: Any,
    ) -> io.NodeOutput:
        switching = chosen({"steps": steps} | defaults(_switching()) | switching, live.linked(cls))
        steps = switching.pop("steps")
        check_sampling(steps, cfg, denoise, switching)
        model, report = _cooperate(sketch, render, **switching)
        live.follow(cls, report)
        (samples,) = nodes.common_ksampler(
            model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise=denoise
        )
        return io.NodeOutput(samples, report)
