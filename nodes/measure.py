"""Measure Pair: what a pair can do with the user's own prompt, before minutes are spent on runs."""

from __future__ import annotations

from typing import Any

import nodes
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..srd_core.measure.plot import draw
from ..srd_core.measure.run import Measured, measuring
from ..srd_core.measure.text import advise, describe
from ..srd_core.report.data import Report
from ..srd_core.stage import RenderSettings
from .common import CATEGORY, SEARCH_ALIASES, as_image, preview
from .handover import SAMPLING, as_in_sr_sampler
from .sampler import check_numbers


class SRMeasurePair(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SRMeasurePair",
            display_name="Measure Pair",
            category=CATEGORY,
            search_aliases=[*SEARCH_ALIASES, "measure", "calibrate", "fade"],
            description="Runs the sketch alone on your prompt and the render beside it at some steps, and says how far "
            "apart they are: which fade fits, where to switch for a wished speed-up, and what the render without "
            "guidance costs. Takes about as long as one run of the sketch; it makes no video.",
            is_output_node=True,
            inputs=[
                *as_in_sr_sampler("sketch", "render", *SAMPLING),
                io.Float.Input(
                    "speed_up",
                    default=2.5,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How many times as fast as the sketch alone the run should be: switch_step is reckoned for "
                    "it.",
                ),
                io.Int.Input(
                    "points",
                    default=12,
                    min=2,
                    max=100,
                    advanced=True,
                    tooltip="At so many steps the render is compared. Each costs one step of the render, and main "
                    "memory for a few latents.",
                ),
                *as_in_sr_sampler("render_positive", "render_negative"),
            ],
            outputs=[
                io.Float.Output(display_name="fade"),
                io.Int.Output(display_name="switch_step"),
                io.Image.Output(display_name="plot"),
                io.String.Output(display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        sketch: ModelPatcher,
        render: ModelPatcher,
        speed_up: float = 2.5,
        points: int = 12,
        render_positive: list[Any] | None = None,
        render_negative: list[Any] | None = None,
        **sampling: Any,
    ) -> io.NodeOutput:
        """``sampling``: by SAMPLING, named as the host's own sampling call names them."""
        check_numbers(cfg=sampling["cfg"], denoise=sampling["denoise"], speed_up=speed_up)
        if sampling["denoise"] <= 0:
            raise ValueError("denoise is 0: there is no step to measure. Set it above 0.")
        measured = Measured()
        settings = RenderSettings(positive=render_positive, negative=render_negative)
        model = measuring(sketch, render, settings, points, measured, Report())
        nodes.common_ksampler(model, **sampling)
        advice = advise(measured, speed_up)
        plot, summary = as_image(draw(measured, advice)), describe(measured, advice, speed_up)
        return io.NodeOutput(advice.fade, advice.switch_step, plot, summary, ui=preview(cls, plot, summary))
