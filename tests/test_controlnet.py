"""One ControlNet on the prompts of both stages: the host sets it up for a model, so it has to follow the stage."""

from __future__ import annotations

from typing import Any

import comfy.cldm.dit_embedder
import comfy.controlnet
import comfy.ops
import comfy.sd
import helpers
import nodes
import pytest
import torch
from runs import sr_model
from test_families import FAMILIES, weights

SD35 = FAMILIES["SD3.5"]
DEPTH = SD35.sketch["depth"]


def controlled(double_y: bool, end: float = 1.0) -> dict[str, Any]:
    """Prompts with a ControlNet of SD3.5's kind: it takes an embedder of the model that it is set up for."""
    sizes: dict[str, Any] = {"num_layers": 2, "main_model_double": DEPTH, "num_attention_heads": DEPTH, "in_chans": 16}
    sizes |= {"img_size": None, "patch_size": 2, "attention_head_dim": 64, "adm_in_channels": 2048}
    how = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    network = comfy.cldm.dit_embedder.ControlNetEmbedder(**sizes, double_y_emb=double_y, **how)
    generator = torch.Generator().manual_seed(30)
    for parameter in network.parameters():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    control = comfy.controlnet.ControlNetSD35(network, compression_ratio=1, load_device=torch.device("cpu"))
    hint = torch.rand(1, 8, 8, 16, generator=generator)  # as a VAE has encoded it
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    positive, negative = apply(SD35.prompt(1), SD35.prompt(2), control, hint, 0.8, 0.0, end)
    return {"positive": positive, "negative": negative}


def load(role: str, seed: int) -> Any:
    return comfy.sd.load_diffusion_model_state_dict(weights(SD35, role, seed))


def run(model: Any, prompts: dict[str, Any]) -> torch.Tensor:
    return helpers.ksampler(model, 6, **SD35.start() | prompts)


@pytest.mark.parametrize("double_y", [True, False], ids=["y", "x"])
def test_a_controlnet_of_both_stages_is_the_present_stage_s(double_y: bool) -> None:
    sketch, render = load("sketch", 0), load("sketch", 5)
    own = sr_model(sketch, render, "1, 3-4", **controlled(double_y))
    shared = sr_model(sketch, render, "1, 3-4")
    assert torch.equal(run(shared, controlled(double_y)), run(own, controlled(double_y)))


@pytest.mark.parametrize("double_y", [True, False], ids=["y", "x"])
def test_a_controlnet_that_does_not_fit_the_render_is_refused_before_any_step(double_y: bool) -> None:
    """Also where its part of the run ends before the switch: the host sets it up for every model that has it."""
    sketch, render = load("sketch", 0), load("render", 1)
    sketch, calls = helpers.count_calls(sketch)
    with pytest.raises(ValueError, match=r"The ControlNet on the prompts .*Connect render_positive"):
        run(sr_model(sketch, render, 3), controlled(double_y, end=0.3))
    assert not calls
    own = {"positive": SD35.prompt(3), "negative": SD35.prompt(4)}
    assert torch.isfinite(run(sr_model(sketch, render, 3, **own), controlled(double_y))).all()
