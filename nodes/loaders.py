"""Load Sketch DiT and Load Render DiT."""

from __future__ import annotations

from pathlib import Path

import nodes
from comfy_api.latest import io

from ..srd_core import cogvideox
from ..srd_core.attention import AUTO
from ..srd_core.checkpoint import called, check_video_dit, weight_files
from ..srd_core.latent import FILE_NAME
from .attention import attention_input, set_attention
from .before_run import fault_of
from .common import optional, schema
from .model_files import listed, names, path_of

WEIGHT_DTYPES = ["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]


def _check(path: Path) -> bool:
    """Whether the model is a CogVideoX, else a video DiT for the host. Raises ValueError when it is neither."""
    if cogvideox.is_cogvideox(path):
        cogvideox.identify(path)
        return True
    check_video_dit(path)
    return False


class _LoadDiT(io.ComfyNode):
    """What both loaders do; they differ in their words, see common.TEXTS."""

    NODE: str  # the node's id

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            cls.NODE,
            [
                io.Combo.Input("model_name", options=names()),
                *optional(io.Combo.Input("weight_dtype", options=WEIGHT_DTYPES, default="default"), attention_input()),
            ],
            {"MODEL": io.Model},
            ["Wan 14B 1.3B", "load video model", "attention", "sage attention"],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        """A file that can't be loaded is refused at once, by its header; so is one that does not fit its partner."""
        if model_name is None:  # from another node
            return True
        if (here := listed(str(model_name))) is None:
            return (
                f"{model_name!r:.200} is not in models/diffusion_models. Put it there and press R, or choose another."
            )
        try:
            _check(path_of(here))
        except (ValueError, OSError) as error:
            return str(error)
        return fault_of(cls) or True

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str = "default", attention: str = AUTO) -> io.NodeOutput:
        model_name = listed(model_name) or model_name
        path = path_of(model_name)
        if _check(path):
            model = cogvideox.load(path, weight_dtype)
        else:
            name = str(Path(model_name, weight_files(path)[0].name)) if path.is_dir() else model_name
            (model,) = nodes.UNETLoader().load_unet(name, weight_dtype)
        model.set_attachments(FILE_NAME, called(path))
        return io.NodeOutput(set_attention(cls, model, attention))


class SRLoadSketchDiT(_LoadDiT):
    NODE = "SRLoadSketchDiT"


class SRLoadRenderDiT(_LoadDiT):
    NODE = "SRLoadRenderDiT"
