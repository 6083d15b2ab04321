"""Set Attention, and the choice of an attention backend that the loaders have too."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..srd_core.attention import AUTO, backends, missing, with_attention
from ..srd_core.checks import check_plain
from .common import CATEGORY, SEARCH_ALIASES, optional, show_on_node


class _AnyOther(list[str]):
    """A list of choices of which the host takes any other too: a workflow may name a backend that is missing here."""

    def __contains__(self, value: object) -> bool:
        return True


def attention_input() -> io.Input:
    """The choice of a backend, for one MODEL."""
    return io.Combo.Input(
        "attention",
        options=_AnyOther(backends()),
        default=AUTO,
        tooltip="Attention backend of this model alone. auto: what ComfyUI chose at its start. sage and flash are "
        "faster and are listed once installed. A workflow may name one that is missing here: the model then runs "
        "with auto and says so.",
    )


def set_attention(node: type[io.ComfyNode], model: ModelPatcher, backend: str) -> ModelPatcher:
    """``model`` with this backend; a backend that is missing is told on the (executing) node."""
    if warning := missing(backend):
        show_on_node(node, warning)
    return with_attention(model, backend)


class SRAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SRAttention",
            display_name="Set Attention",
            category=CATEGORY,
            search_aliases=[
                *SEARCH_ALIASES,
                "attention backend",
                "sage attention",
                "flash attention",
                "xformers",
                "GGUF attention",
            ],
            description="Sets the attention backend of one MODEL, whatever loaded it (GGUF, Load Diffusion Model). "
            "Load Sketch DiT and Load Render DiT have the same choice.",
            inputs=[
                io.Model.Input("model", tooltip="Any MODEL, before it goes into SR Sampler or Sketch-Render Model."),
                *optional(attention_input()),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, attention: str = AUTO) -> io.NodeOutput:
        check_plain("model of Set Attention", model)
        return io.NodeOutput(set_attention(cls, model, attention))
