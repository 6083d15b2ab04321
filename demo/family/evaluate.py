"""Measure the family's files in the real host: the VAE, both models' x0 errors, the cost of a step, the oracle's ends.

    python demo/family/evaluate.py --prompts 48        # in the host's Python: minutes

Prints means with 95 % bootstrap intervals over prompts. bench/quality.py samples videos and scores them. For the cost
of a step set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

# isort: split
import numpy as np
import torch

import dit
from data import held_out_scenes, video
from latent import from_vae
from oracle import ATTRIBUTES, score
from text import Scene, caption, encode

WEIGHTS = Path(__file__).resolve().parent / "weights"
ERROR_SIGMAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def load_dit(name: str) -> Any:
    """The host's MODEL of the sketch or the render."""
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(WEIGHTS / f"tiny_wan_{name}.safetensors"))


def load_vae() -> Any:
    """The host's VAE."""
    import comfy.sd
    import comfy.utils

    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(WEIGHTS / "tiny_wan_vae.safetensors")))


def interval(values: list[float]) -> list[float]:
    """Mean and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    return [float(x) for x in (np.mean(values), *np.quantile(draws, (0.025, 0.975)))]


def x0_errors(
    model: Any, z: torch.Tensor, scenes: list[Scene], sigmas: tuple[float, ...] = ERROR_SIGMAS
) -> dict[float, float]:
    """Mean squared error of the host model's x0 prediction at these sigmas, on true latents z in DiT space."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    device = comfy.model_management.get_torch_device()
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    text = torch.stack([encode(caption(s)) for s in scenes]).to(device)
    result = {}
    for sigma in sigmas:
        x = ((1 - sigma) * z + sigma * noise).to(device)
        x0 = model.model.apply_model(x, torch.full((len(z),), sigma, device=device), c_crossattn=text)
        result[sigma] = float((x0.float().cpu() - z).square().mean())
    return result


def step_costs(models: dict[str, Any], text: torch.Tensor, shape: tuple[int, ...], takes: int = 30) -> dict[str, float]:
    """Median milliseconds of a guided step (two rows of the host's model) of each, measured in turns."""
    import comfy.model_management

    comfy.model_management.load_models_gpu(list(models.values()))
    device = comfy.model_management.get_torch_device()
    x, sigma = torch.randn(2, *shape, device=device), torch.full((2,), 0.7, device=device)
    rows = text[None].expand(2, -1, -1).to(device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(takes):
        for name, model in models.items():
            start = time.perf_counter()
            model.model.apply_model(x, sigma, c_crossattn=rows).float().cpu()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * float(np.median(taken)) for name, taken in seconds.items()}


def print_errors(errors: dict[str, dict[float, float]]) -> None:
    """The x0 error of both models at each sigma, and the render's over the sketch's."""
    for sigma, e in errors["sketch"].items():
        r = errors["render"][sigma]
        print(f"sigma {sigma:.2f}: x0 error sketch {e:.5f} render {r:.5f} ratio {r / e:.2f}")


def measure(scenes: list[Scene]) -> None:
    """Print everything that is measured on true videos of these scenes."""
    vae, models = load_vae(), {name: load_dit(name) for name in ("sketch", "render")}
    true = [video(scene, 9000 + i) for i, scene in enumerate(scenes)]
    z = torch.cat([vae.encode(clip) for clip in true]).float()
    print_errors({name: x0_errors(model, from_vae(z), scenes) for name, model in models.items()})
    costs = step_costs(models, encode(caption(scenes[0])), z.shape[1:])
    each, ratio = ", ".join(f"{n} {ms:.1f} ms" for n, ms in costs.items()), costs["sketch"] / costs["render"]
    print(f"guided step, {torch.get_num_threads()} threads: {each}, ratio {ratio:.2f}", flush=True)
    back = [vae.decode(one[None])[0].float().cpu().numpy() for one in z]
    ends = {
        "ceiling: true videos through the VAE": [score(clip, scene) for clip, scene in zip(back, scenes)],
        "chance: true videos of another prompt": [
            score(clip.numpy(), scene) for clip, scene in zip(true, [*scenes[1:], scenes[0]])
        ],
    }
    for name, scores in ends.items():
        mean, low, high = interval([s["mean"] for s in scores])
        parts = (f"{a} {np.mean([s[a] for s in scores if a in s]):.3f}" for a in (*ATTRIBUTES, "off"))
        print(f"{name}: {mean:.3f} [{low:.3f}, {high:.3f}], {', '.join(parts)}")
    psnr = interval([-10 * np.log10(np.square(b - t.numpy()).mean()) for b, t in zip(back, true)])
    print("VAE: {:.1f} dB [{:.1f}, {:.1f}]".format(*psnr))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48)
    prompts = parser.parse_args().prompts
    dit.find_host()
    with torch.inference_mode():
        measure(held_out_scenes(prompts, seed=2026))


if __name__ == "__main__":
    main()
