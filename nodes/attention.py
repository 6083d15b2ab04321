"""Set Attention, and the choice of an attention backend that the loaders have too."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..srd_core.attention import AUTO, backends, missing, with_attention
from ..srd_core.checks import check_plain
from .common import optional, schema, show_on_node


class _AnyOther(list[str]):
    """A list of choices of which the host takes any other too: a workflow may name a backend that is missing here."""

    def __contains__(self, value: object) -> bool:
        return True


def attention_input() -> io.Input:
    """The choice of a backend, for one MODEL."""
    return io.Combo.Input("attention", options=_AnyOther(backends()), default=AUTO)


def set_attention(node: type[io.ComfyNode], model: ModelPatcher, backend: str) -> ModelPatcher:
    """``model`` with this backend; a backend that is missing is told on the (executing) node."""
    if warning := missing(backend):
        show_on_node(node, warning)
    return with_attention(model, backend)


class SRAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SRAttention",
            [io.Model.Input("model"), *optional(attention_input())],
            {"model": io.Model},
            ["attention backend", "sage attention", "flash attention", "xformers", "GGUF attention"],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, attention: str = AUTO) -> io.NodeOutput:
        check_plain("model of Set Attention", model)
        return io.NodeOutput(set_attention(cls, model, attention))
