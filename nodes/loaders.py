"""Load Sketch DiT and Load Render DiT."""

from __future__ import annotations

from pathlib import Path

import comfy.ldm.modules.attention
import folder_paths
import nodes
from comfy_api.latest import io

from ..srd_core.checkpoint import check_video_dit
from ..srd_core.latent_space import FILE_NAME
from .common import CATEGORY, SEARCH_ALIASES, not_yet

WEIGHT_DTYPES = ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]


def _attention_backends() -> list[str]:
    return ["auto", *sorted(getattr(comfy.ldm.modules.attention, "REGISTERED_ATTENTION_FUNCTIONS", {}))]


def _schema(node_id: str, role: str, which: str, hint: str) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=f"Load {role} DiT",
        category=CATEGORY,
        search_aliases=SEARCH_ALIASES,
        description=f"Loads the {which} video DiT of a family, the one that {hint}. Any other loader's MODEL works too.",
        inputs=[
            io.Combo.Input(
                "model_name",
                options=folder_paths.get_filename_list("diffusion_models"),
                tooltip=f"The {which} DiT, from models/diffusion_models. Sketch and render must share a VAE.",
            ),
            io.Combo.Input(
                "weight_dtype",
                options=WEIGHT_DTYPES,
                default="default",
                tooltip="Precision of the weights in memory. default: as in the file. fp8 halves the memory of fp16.",
            ),
            io.Combo.Input(
                "attention",
                options=_attention_backends(),
                default="auto",
                tooltip="Attention backend of this model. auto: what ComfyUI chose at its start. "
                "Others are not yet supported by this version.",
            ),
        ],
        outputs=[io.Model.Output(display_name="MODEL")],
    )


def _load(model_name: str, weight_dtype: str, attention: str) -> io.NodeOutput:
    if attention != "auto":
        raise not_yet("attention", attention, "auto")
    check_video_dit(Path(folder_paths.get_full_path_or_raise("diffusion_models", model_name)))
    (model,) = nodes.UNETLoader().load_unet(model_name, weight_dtype)
    model.set_attachments(FILE_NAME, Path(model_name).name)
    return io.NodeOutput(model)


class SRLoadSketchDiT(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("SRLoadSketchDiT", "Sketch", "large", "sketches: it runs the high-noise steps")

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str, attention: str) -> io.NodeOutput:
        return _load(model_name, weight_dtype, attention)


class SRLoadRenderDiT(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("SRLoadRenderDiT", "Render", "small", "renders: it runs the low-noise steps")

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str, attention: str) -> io.NodeOutput:
        return _load(model_name, weight_dtype, attention)
