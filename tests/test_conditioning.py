"""The pairs that take pictures or videos, with the nodes that artists connect, in a real server.

Fun InP with its image branch, Fun Control with 48 input channels, VACE with frames and a reference image.
"""

from __future__ import annotations

from typing import Any

import pytest
import serving

STEPS = 4
PICTURE, FRAMES, VISION = (
    {"start_image": ["picture", 0]},
    {"control_video": ["frames", 0]},
    {"clip_vision_output": ["vision", 0]},
)
# (sketch, render, the host's node, what is connected to it)
PAIRS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "Fun InP": (
        "wan2.1_fun_inp_14B_bf16",
        "wan2.1_fun_inp_1.3B_bf16",
        "WanFunInpaintToVideo",
        {**PICTURE, **VISION, "end_image": ["picture", 0]},
    ),
    "Fun Control": (
        "wan2.1_fun_control_14B_bf16",
        "wan2.1_fun_control_1.3B_bf16",
        "WanFunControlToVideo",
        {**PICTURE, **FRAMES, **VISION},
    ),
    "VACE": (
        "wan2.1_vace_14B_fp16",
        "wan2.1_vace_1.3B_fp16",
        "WanVaceToVideo",
        {**FRAMES, "reference_image": ["picture", 0], "strength": 1.0},
    ),
}


def graph_of(name: str) -> dict[str, Any]:
    """Models, prompts, pictures and the conditioning of a pair."""
    sketch, render, node, connected = PAIRS[name]
    size = {"width": 64, "height": 32, "length": 5, "batch_size": 1}
    given = {"positive": ["yes", 0], "negative": ["no", 0], "vae": ["vae", 0], **size, **connected}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "vae": ("VAELoader", {"vae_name": "wan_2.1_vae.safetensors"}),
        "picture": ("LoadImage", {"image": "example.png"}),
        "frames": ("RepeatImageBatch", {"image": ["picture", 0], "amount": 5}),
        "vision": ("SRTestVision", {"image": ["picture", 0]}),
        "given": (node, given),
    }
    graph = serving.common() | {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    for stage, file in (("sketch", sketch), ("render", render)):
        graph[stage]["inputs"]["model_name"] = f"{file}.safetensors"
    return graph


@pytest.mark.parametrize("name", PAIRS)
def test_both_models_of_a_pair_see_what_a_plain_run_of_each_sees(name: str, server: Any) -> None:
    graph = graph_of(name)
    conds = {"positive": ["given", 0], "negative": ["given", 1]} | serving.SAMPLING | {"steps": STEPS}

    def digest(kind: str, **inputs: Any) -> str:
        sampler = {"sampler": {"class_type": kind, "inputs": conds | inputs}}
        return serving.digest_of(server.run(graph | sampler | serving.digest("sampler", 0), timeout=120))

    def together(switch: int) -> str:
        switching = serving.SWITCHING | serving.RENDERING | {"switch_step": switch}
        return digest("SRSampler", sketch=["sketch", 0], render=["render", 0], latent=["given", 2], **switching)

    sketch, render = (digest("KSampler", model=[stage, 0], latent_image=["given", 2]) for stage in ("sketch", "render"))
    assert (together(STEPS), together(0)) == (sketch, render)
    assert together(2) not in (sketch, render)
