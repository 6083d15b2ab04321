"""SR Sketch and SR Render, the two halves of SR Sampler, and the file between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths
import nodes
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..srd_core.handover import file
from ..srd_core.handover.record import Settings, SketchRecord
from ..srd_core.handover.render import load, render_from
from ..srd_core.handover.sketch import preview_of, sketch_alone
from ..srd_core.report.data import Report
from ..srd_core.stage import RenderSettings, check_scale
from . import live
from .common import SRReport, defaults, place_of, schema, unsavable
from .sampler import RULE, SAMPLING, as_in_sr_sampler, check_sampling, switch_of

SRHandOver = io.Custom("SR_HAND_OVER")
SEARCHES = ["hand-over", "sketch once render many", "draft once", "save sketch", "two machines"]
FOLDER = "srdiffusion"  # of hand-over files, in the host's output folder and in its input folder
PREFIX = f"{FOLDER}/sketch"
SKETCHED = {"hand_over": SRHandOver, "preview": io.Latent, "report": SRReport}  # outputs of nodes that have a sketch
RENDERING = ("render_cfg", "teacache", "fade", "render_steps")


class SRSketch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SRSketch",
            as_in_sr_sampler("sketch", *SAMPLING, *RULE, "sketch_scale"),
            SKETCHED,
            SEARCHES,
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, sketch: ModelPatcher, **values: Any) -> io.NodeOutput:
        rule = defaults(as_in_sr_sampler(*RULE, "sketch_scale")) | values
        sampling = {name: values[name] for name in SAMPLING}
        latent, denoise = sampling["latent"], sampling["denoise"]
        check_sampling(sampling["steps"], sampling["cfg"], denoise, rule)
        if denoise <= 0:
            raise ValueError("denoise is 0: there is no step to sketch. Set it above 0.")
        check_scale(rule["sketch_scale"])
        indices = latent.get("batch_index")
        own = {name: sampling[name] for name in ("seed", "sampler_name", "scheduler", "steps", "cfg", "denoise")}
        settings = Settings(**own, batch_index=indices and list(map(int, indices)), sketch_scale=rule["sketch_scale"])
        record = SketchRecord(settings, noise_mask=latent.get("noise_mask"))
        live.follow(cls, record.report)
        (preview,) = nodes.common_ksampler(sketch_alone(sketch, switch_of(rule), record), **sampling)
        record.extra = {k: v for k, v in preview.items() if k not in ("samples", "noise_mask", "batch_index")}
        return io.NodeOutput(record, preview, record.report)


class SRRender(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SRRender",
            [SRHandOver.Input("hand_over"), *as_in_sr_sampler("render", "positive", "negative", *RENDERING)],
            {"latent": io.Latent, "report": SRReport},
            SEARCHES,
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls, hand_over: SketchRecord, render: ModelPatcher, positive: list[Any], negative: list[Any], **rendering: Any
    ) -> io.NodeOutput:
        report = Report()
        live.follow(cls, report)
        own = defaults(as_in_sr_sampler(*RENDERING)) | rendering
        settings = RenderSettings(own.pop("render_cfg"), positive, negative, **own)
        return io.NodeOutput(render_from(hand_over, render, settings, report), report)


class SRSaveHandOver(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SRSaveHandOver",
            [SRHandOver.Input("hand_over"), io.String.Input("filename_prefix", default=PREFIX)],
            {"hand_over": SRHandOver},
            SEARCHES,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        # None: it comes from another node, and is known when it runs
        return filename_prefix is None or unsavable("filename_prefix", filename_prefix, PREFIX) or True

    @classmethod
    def execute(cls, hand_over: SketchRecord, filename_prefix: str) -> io.NodeOutput:
        path, saved = place_of(filename_prefix, file.SUFFIX)
        file.write(hand_over, path)
        return io.NodeOutput(hand_over, ui={"hand_overs": [saved]})


class SRLoadHandOver(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema("SRLoadHandOver", [io.Combo.Input("hand_over", options=_files())], SKETCHED, SEARCHES)

    @classmethod
    def validate_inputs(cls, hand_over: str | None = None) -> bool | str:
        try:
            if hand_over is not None:  # else it comes from another node, and is known when it runs
                file.check(_path(hand_over))
        except (ValueError, OSError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, hand_over: str | None = None) -> str:
        if hand_over is None:
            return ""
        path = _path(hand_over)
        is_now = path.stat()
        return f"{path} {is_now.st_size} {is_now.st_mtime_ns}"  # asked at every queue: 400 MB are not read for it

    @classmethod
    def execute(cls, hand_over: str) -> io.NodeOutput:
        record = load(_path(hand_over))
        return io.NodeOutput(record, {"samples": preview_of(record)}, record.report)


def _files() -> list[str]:
    """The names of all hand-over files, as Load Hand-over lists them."""
    inputs, outputs = Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())
    named = f"*{file.SUFFIX}"
    found = [(path, inputs, "") for path in [*inputs.glob(named), *(inputs / FOLDER).rglob(named)]]
    found += [(path, outputs, " [output]") for path in (outputs / FOLDER).rglob(named)]
    return sorted(path.relative_to(base).as_posix() + mark for path, base, mark in found)


def _path(name: str) -> Path:
    """Where a name of the list lies. Raises ValueError for a file that is not there, or in no folder of the host."""
    # a list's value comes as whatever the request's JSON holds
    plain, base = folder_paths.annotated_filepath(str(name))
    base = os.path.abspath(base or folder_paths.get_input_directory())
    path = Path(os.path.abspath(os.path.join(base, plain.strip())))
    if not path.is_relative_to(base) or not os.path.isfile(path):
        raise ValueError(
            f"There is no hand-over file {str(name)[:200]!r}. Put it into ComfyUI's input folder and press R."
        )
    return path
