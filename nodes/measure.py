"""Measure Pair: what a pair can do with the user's own prompt, before minutes are spent on runs."""

from __future__ import annotations

from typing import Any

import nodes
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..srd_core.measure.plot import draw
from ..srd_core.measure.run import Measured, measuring
from ..srd_core.measure.text import advise, describe
from ..srd_core.stage import RenderSettings
from .common import HIDDEN, as_image, preview, schema
from .sampler import SAMPLING, as_in_sr_sampler, check_numbers


class SRMeasurePair(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SRMeasurePair",
            [
                *as_in_sr_sampler("sketch", "render", *SAMPLING),
                io.Float.Input("speed_up", default=2.5, min=1.0, max=100.0, step=0.1, round=0.01),
                io.Int.Input("points", default=12, min=2, max=100, advanced=True),
                *as_in_sr_sampler("render_positive", "render_negative"),
            ],
            {"fade": io.Float, "switch_step": io.Int, "plot": io.Image, "summary": io.String},
            ["measure", "calibrate", "fade"],
            is_output_node=True,
            hidden=[*HIDDEN],
        )

    @classmethod
    def execute(cls, sketch: ModelPatcher, render: ModelPatcher, **values: Any) -> io.NodeOutput:
        sampling, speed_up = {name: values[name] for name in SAMPLING}, values["speed_up"]
        check_numbers(cfg=sampling["cfg"], denoise=sampling["denoise"], speed_up=speed_up)
        if sampling["denoise"] <= 0:
            raise ValueError("denoise is 0: there is no step to measure. Set it above 0.")
        for name, least in (("speed_up", 1), ("points", 2)):  # the host does not look at what a link brings
            if values[name] < least:
                raise ValueError(f"{name} is {values[name]}; it must be {least} or more.")
        measured = Measured()
        settings = RenderSettings(positive=values.get("render_positive"), negative=values.get("render_negative"))
        model = measuring(sketch, render, settings, values["points"], measured)
        nodes.common_ksampler(model, **sampling)
        advice = advise(measured, speed_up)
        plot, summary = as_image(draw(measured, advice)), describe(measured, advice, speed_up)
        return io.NodeOutput(advice.fade, advice.switch_step, plot, summary, ui=preview(cls, plot, summary))
