"""Load Sketch DiT and Load Render DiT."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import nodes
from comfy_api.latest import io

from ..srd_core.attention import AUTO, backends, missing, with_attention
from ..srd_core.checkpoint import check_video_dit
from ..srd_core.latent_space import FILE_NAME
from .common import CATEGORY, SEARCH_ALIASES, show_on_node

WEIGHT_DTYPES = ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]


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
                options=backends(),
                default=AUTO,
                tooltip="Attention backend of this model alone. auto: what ComfyUI chose at its start. sage and flash are "
                "faster and are listed once installed. A workflow may name one that is missing here: the model then runs "
                "with auto and says so.",
            ),
        ],
        hidden=[io.Hidden.unique_id],
        outputs=[io.Model.Output(display_name="MODEL")],
    )


def _load(node: type[io.ComfyNode], model_name: str, weight_dtype: str, attention: str) -> io.NodeOutput:
    check_video_dit(Path(folder_paths.get_full_path_or_raise("diffusion_models", model_name)))
    (model,) = nodes.UNETLoader().load_unet(model_name, weight_dtype)
    model.set_attachments(FILE_NAME, Path(model_name).name)
    if warning := missing(attention):
        show_on_node(node, warning)
    return io.NodeOutput(with_attention(model, attention))


class SRLoadSketchDiT(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("SRLoadSketchDiT", "Sketch", "large", "sketches: it runs the high-noise steps")

    @classmethod
    def validate_inputs(cls, attention: str | None = None) -> bool:
        """The host would refuse a workflow with a backend that is not in the list; see srd_core/attention.py."""
        return True

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str, attention: str) -> io.NodeOutput:
        return _load(cls, model_name, weight_dtype, attention)


class SRLoadRenderDiT(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("SRLoadRenderDiT", "Render", "small", "renders: it runs the low-noise steps")

    @classmethod
    def validate_inputs(cls, attention: str | None = None) -> bool:
        """The host would refuse a workflow with a backend that is not in the list; see srd_core/attention.py."""
        return True

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str, attention: str) -> io.NodeOutput:
        return _load(cls, model_name, weight_dtype, attention)
