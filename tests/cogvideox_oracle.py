"""The oracle: CogVideoX by diffusers, tiny and random, in float32; and runs of the host to compare with it.

Files are written as the official repositories have them: diffusion_pytorch_model.safetensors, config.json beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sample
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import save_file

TEXT_DIM, TOKENS = 32, 226
# The official sizes and scales, in tiny: three heads for 30 and 48.
TINY = {
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "num_layers": 2,
    "time_embed_dim": 32,
    "text_embed_dim": TEXT_DIM,
    "sample_height": 60,
    "sample_width": 90,
    "sample_frames": 49,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "2b": TINY,
    "5b": {**TINY, "use_rotary_positional_embeddings": True},
    "1.5": {
        **TINY,
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "sample_height": 300,
        "sample_width": 300,
        "sample_frames": 81,
        "patch_bias": False,
    },
}
SNR_SHIFT = {"2b": 3.0, "5b": 1.0, "1.5": 1.0}
SCALE = {"2b": 1.15258426, "5b": 0.7, "1.5": 0.7}
HOST_LAST_ALPHA = 4.8973451890853435e-08  # what the host has in place of a terminal alpha of 0


def transformer(kind: str, seed: int = 0, **changes: Any) -> CogVideoXTransformer3DModel:
    """A random transformer. The gain of the attention's norms makes it attend sharply, so that wrong positions show."""
    torch.manual_seed(seed)
    model = CogVideoXTransformer3DModel(**{**CONFIGS[kind], **changes}).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm_q.weight", "norm_k.weight")):
            parameter.fill_(3.0)
    return model


def write(model: CogVideoXTransformer3DModel, folder: Path, shards: int = 1) -> Path:
    """The folder with the model as the official repositories have it; more than one shard come with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(model, folder)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    stem = "diffusion_pytorch_model"
    if shards == 1:
        save_file(tensors, str(folder / f"{stem}.safetensors"))
        return folder
    names = [f"{stem}-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    where = {key: names[i * shards // len(tensors)] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key in tensors if where[key] == name}, str(folder / name))
    index = {"metadata": {}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder


def config_of(model: CogVideoXTransformer3DModel) -> dict[str, Any]:
    """What its config.json says."""
    return json.loads(model.to_json_string())


def write_config(model: CogVideoXTransformer3DModel, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(model)), "utf-8")


def scheduler(kind: str, clamp: bool = True) -> CogVideoXDDIMScheduler:
    """The official scheduler; ``clamp``: with the host's terminal alpha in place of 0."""
    made = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        snr_shift_scale=SNR_SHIFT[kind],
    )
    if clamp:
        made.alphas_cumprod[-1] = HOST_LAST_ALPHA
    return made


def pipeline(model: CogVideoXTransformer3DModel, kind: str, clamp: bool = True) -> CogVideoXPipeline:
    """The official pipeline without VAE and text encoder: latents and embeddings go in, latents come out."""
    made = CogVideoXPipeline(None, None, None, model, scheduler(kind, clamp))
    made.set_progress_bar_config(disable=True)
    return made


def forward(
    model: CogVideoXTransformer3DModel, kind: str, x: torch.Tensor, text: torch.Tensor, timestep: int
) -> torch.Tensor:
    """The transformer's output for x [B, C, T, H, W] and text [B, tokens, width], like x."""
    pipe = pipeline(model, kind)
    frames, height, width = x.shape[2:]
    rotary = None
    if model.config.use_rotary_positional_embeddings:
        rotary = pipe._prepare_rotary_positional_embeddings(height * 8, width * 8, frames, torch.device("cpu"))
    out = model(x.permute(0, 2, 1, 3, 4), text, torch.tensor([timestep] * len(x)), image_rotary_emb=rotary)
    return out.sample.permute(0, 2, 1, 3, 4)


def sample(
    pipe: CogVideoXPipeline, noise: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, **how: Any
) -> torch.Tensor:
    """What the pipeline makes of noise [B, C, T, H, W]: the latent in the transformer's scale, like noise.

    how: num_inference_steps, guidance_scale, use_dynamic_cfg.
    """
    frames, height, width = noise.shape[2:]
    out = pipe(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        latents=noise.permute(0, 2, 1, 3, 4),
        height=height * 8,
        width=width * 8,
        num_frames=(frames - 1) * 4 + 1,
        output_type="latent",
        **how,
    ).frames
    return out.permute(0, 2, 1, 3, 4)


def sample_pair(
    sketch: CogVideoXTransformer3DModel,
    render: CogVideoXTransformer3DModel,
    noise: torch.Tensor,
    text: torch.Tensor,
    steps: int,
    switch: int,
) -> torch.Tensor:
    """DDIM without guidance by a 5B for ``switch`` steps and a 2B for the rest; latents stay in the 5B's scale.

    A render step undoes the 5B's scaling (x / root alpha is clean latent + sigma noise), takes both to the 2B's scale,
    and asks the 2B at the timestep whose noise level is nearest.
    """
    ratio = SCALE["2b"] / SCALE["5b"]
    schedule, own = scheduler("5b"), scheduler("2b")
    schedule.set_timesteps(steps)
    levels = ((1 - own.alphas_cumprod) / own.alphas_cumprod).sqrt()
    x = noise
    for i, t in enumerate(schedule.timesteps):
        alpha = schedule.alphas_cumprod[t]
        if i < switch:
            v = forward(sketch, "5b", x, text, int(t))
        else:
            sigma = ratio * ((1 - alpha) / alpha).sqrt()
            a = 1 / (1 + sigma**2)
            nearest = int((levels.log() - sigma.log()).abs().argmin())
            theirs = (ratio * x / alpha.sqrt() * a.sqrt()).float()
            clean = a.sqrt() * theirs - (1 - a).sqrt() * forward(render, "2b", theirs, text, nearest)
            v = (alpha.sqrt() * x - clean / ratio) / (1 - alpha).sqrt()
        x = schedule.step(v.float(), int(t), x, return_dict=False)[0].float()
    return x


# --- the host -------------------------------------------------------------------------------------------------------


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(seed: int, tokens: int = TOKENS) -> torch.Tensor:
    return random(1, tokens, TEXT_DIM, seed=seed)


def prompts() -> dict[str, Any]:
    """Conditioning in the host's form."""
    return {"positive": [[text(1), {}]], "negative": [[text(2), {}]]}


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference, by the largest value."""
    return float((ours - reference).abs().max() / reference.abs().max())


def host_sample(
    model: Any, noise: torch.Tensor, steps: int = 10, cfg: float = 6.0, sampler: str = "euler", **how: Any
) -> torch.Tensor:
    """The host's KSampler with our noise; the latent in the VAE's scale. how: conditioning, inputs of comfy.sample."""
    conds = prompts() | {key: how.pop(key) for key in ("positive", "negative") if key in how}
    latent = how.pop("latent", torch.zeros_like(noise))
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "simple", *conds.values(), latent, seed=0, disable_pbar=True, **how
    )


def slow(model: Any) -> tuple[Any, list[int]]:
    """(the MODEL, list that gets every attention call: one a block).

    Its time embedding changes as little from step to step as a trained one's, so that TeaCache reuses some.
    """
    network, calls = model.model.diffusion_model, []
    network.time_embedding_linear_1.weight.data.mul_(0.05)
    network.time_embedding_linear_1.bias.data.fill_(1.0)

    def count(function: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = count
    return model, calls
