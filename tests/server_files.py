"""The tiny files of the tests' server.

The demo's family, random models under every name that a shipped workflow asks for, and files that are no models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.ldm.flux.model
import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import helpers
import safetensors.torch
import serving
import torch
from hosting import host_module
from test_families import FAMILIES, FLUX2, weights

Files = dict[str, list[Path]]  # by the host's kind of folder
WAN = (
    "wan2.1_t2v_14B_fp8_scaled",
    "wan2.1_t2v_1.3B_fp16",
    "wan2.2_t2v_high_noise_14B_fp8_scaled",
    "wan2.2_t2v_low_noise_14B_fp8_scaled",
)
ENCODERS = ("umt5_xxl_fp8_e4m3fn_scaled", "t5xxl_fp16", "mistral_3_small_flux2_fp8", "qwen_3_4b")
LORAS = ("lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16", "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise")


def all_files(folder: Path) -> Files:
    """Made in that folder; the demo's family stays where it is."""
    made: Files = {}
    for files in (host_module.tiny_family(), serving.wan_files(folder), shipped(folder), misfits(folder)):
        for kind, paths in files.items():
            made[kind] = made.get(kind, []) + paths
    return made


def shipped(folder: Path) -> Files:
    """Under the names that the workflows ship with; of text encoders and CLIP vision only the name is looked at."""
    content = {name: helpers.wan_state_dict(seed, layers=1 + seed % 2) for seed, name in enumerate(WAN)}
    dits = [saved(folder, name, weights) for name, weights in (content | other_kinds()).items()]
    gguf = folder / "wan2.1-t2v-14b-Q4_K_M.gguf"
    safetensors.torch.save_file(helpers.wan_state_dict(0, layers=2), gguf)
    vaes = ("wan_2.1_vae", "cogvideox_vae", "flux2-vae")
    return {
        "diffusion_models": [*dits, gguf, *(cogvideox(folder, kind, seed) for seed, kind in enumerate(("5b", "2b")))],
        "vae": [saved(folder, name, tiny_vae()) for name in vaes],
        "loras": [saved(folder, name, lora()) for name in LORAS],
        "text_encoders": [saved(folder, name, {}) for name in ENCODERS],
        "clip_vision": [saved(folder, "clip_vision_h", {})],
    }


def saved(folder: Path, name: str, weights: dict[str, torch.Tensor]) -> Path:
    path = folder / f"{name}.safetensors"
    safetensors.torch.save_file(weights, path)
    return path


def other_kinds() -> dict[str, dict[str, torch.Tensor]]:
    """Image to video with what CLIP vision sees (Wan 2.1) and without (Wan 2.2), Fun Control, VACE and Flux.2."""
    wan, i2v = comfy.ldm.wan.model.WanModel, {"in_dim": 36, "model_type": "i2v"}
    vace, vace_in = comfy.ldm.wan.model.VaceWanModel, {"vace_layers": 1, "vace_in_dim": 96}
    one, two, plain = helpers.wan_layout(1), helpers.wan_layout(2), {"in_dim": 36, "model_type": "t2v"}
    flux = FLUX2 | {"hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 1}
    layouts: dict[str, tuple[type[torch.nn.Module], dict[str, Any]]] = {
        "wan2.2_i2v_high_noise_14B_fp8_scaled": (wan, one | plain),
        "wan2.2_i2v_low_noise_14B_fp8_scaled": (wan, one | plain),
        "wan2.1_i2v_480p_14B_fp16": (wan, two | i2v),
        "wan2.1_fun_inp_14B_bf16": (wan, two | i2v),
        "wan2.1_fun_inp_1.3B_bf16": (wan, one | i2v),
        "wan2.1_fun_control_14B_bf16": (wan, two | i2v | {"in_dim": 48}),
        "wan2.1_fun_control_1.3B_bf16": (wan, one | i2v | {"in_dim": 48}),
        "wan2.1_vace_14B_fp16": (vace, two | vace_in),
        "wan2.1_vace_1.3B_fp16": (vace, one | vace_in),
        "flux2_dev_fp8mixed": (comfy.ldm.flux.model.Flux, flux | {"context_in_dim": 15360, "guidance_embed": True}),
        "flux-2-klein-base-4b": (comfy.ldm.flux.model.Flux, flux | {"context_in_dim": 7680, "guidance_embed": False}),
    }
    return {name: helpers.random_model(kind, i, **how) for i, (name, (kind, how)) in enumerate(layouts.items())}


def lora() -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 for the first block of a tiny Wan, random, under the keys of the file that it stands for."""
    generator, shapes = torch.Generator().manual_seed(5), {"down": (2, helpers.DIM), "up": (helpers.DIM, 2)}
    return {
        f"diffusion_model.blocks.0.{layer}.lora_{part}.weight": torch.randn(shape, generator=generator) * 0.2
        for layer in ("self_attn.q", "self_attn.v", "cross_attn.o")
        for part, shape in shapes.items()
    }


def cogvideox(folder: Path, kind: str, seed: int) -> Path:
    """A repository's folder with the one in it that the workflows ask for, its transformer."""
    import cogvideox_oracle as oracle  # needs diffusers, which older hosts' other packages may not suit

    repository = folder / f"CogVideoX-{kind}"
    oracle.write(oracle.transformer(kind, seed, text_embed_dim=4096), repository / "transformer")
    return repository


def tiny_vae() -> dict[str, torch.Tensor]:
    """The Wan VAE at a base width of 4, random."""
    layout = {"z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
    return helpers.randomised(comfy.ldm.wan.vae.WanVAE(dim=4, temperal_downsample=[False, True, True], **layout), 3)


def misfits(folder: Path) -> Files:
    """Files in models/diffusion_models that are no video DiT, each in its own way, and one that fits no Wan."""
    whole = helpers.wan_file(folder).read_bytes()
    contents = {
        "cut.safetensors": whole[:-1000],
        "page.safetensors": b"<!doctype html><title>Access denied</title>",
        "part-00001-of-00002.safetensors": whole,
        "sub/deep.safetensors": whole[:-1000],
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    tops = sorted({folder / name.split("/")[0] for name in contents})
    vae = saved(folder, "vae", {"decoder.conv1.weight": torch.zeros(4, 4)})
    return {"diffusion_models": [*tops, vae, saved(folder, "ltxv", weights(FAMILIES["LTX-Video"], "render", 0))]}
