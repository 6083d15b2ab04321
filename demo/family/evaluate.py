"""Measure the family in the real host: sketch, render, and sketch-first-k-then-render, scored by the oracle.

    python demo/family/evaluate.py --prompts 48 --seeds 2        # in the host's Python
    python demo/family/evaluate.py --no-samples    # x0 errors and the cost of a step only: a minute

Prints a table with 95 % bootstrap intervals over prompts, and writes a contact sheet (rows: prompts; columns: runs).
For the cost of a step set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

# isort: split
import numpy as np
import torch

import dit
from data import SIZE, held_out_scenes, video
from latent import from_vae
from oracle import ATTRIBUTES, score
from text import Scene, caption, encode

HERE = Path(__file__).resolve().parent
SHIFT, CFG, STEPS, SAMPLER, SCHEDULER = 2.0, 3.0, 50, "euler", "simple"
LATENT_SHAPE = (16, 3, 16, 16)
ERROR_SIGMAS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SHOWN_FRAMES = (0, 4, 8)


def load_dit(path: Path) -> Any:
    """The host's MODEL with ModelSamplingSD3 at SHIFT, as the demo's workflow sets it."""
    import comfy.sd
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(comfy.sd.load_diffusion_model(str(path)), SHIFT)[0]


def load_vae(path: Path) -> Any:
    """The host's VAE."""
    import comfy.sd
    import comfy.utils

    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))


def cooperate(sketch: Any, render: Any, k: int) -> Any:
    """A clone of the sketch whose first k steps are its own and whose other steps the render predicts."""
    import comfy.model_management
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(sketch.get_model_object("model_sampling"), SCHEDULER, STEPS)
    hand_over = float(sigmas[k - 1] + sigmas[k]) / 2
    comfy.model_management.load_models_gpu([render])

    def predict(apply_model: Any, args: dict) -> torch.Tensor:
        stage = apply_model if float(args["timestep"][0]) > hand_over else render.model.apply_model
        return stage(args["input"], args["timestep"], **args["c"])

    both = sketch.clone()
    both.set_model_unet_function_wrapper(predict)
    return both


def sample(model: Any, scenes: list[Scene], seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """VAE-space latents [N, *shape] from the host's sampler, 16 prompts at a time."""
    import comfy.sample

    noise, parts = comfy.sample.prepare_noise(torch.zeros(len(scenes), *shape), seed), []
    settings, negative = (STEPS, CFG, SAMPLER, SCHEDULER), [[encode("")[None], {}]]
    for some in (slice(start, start + 16) for start in range(0, len(scenes), 16)):
        positive = [[torch.stack([encode(caption(s)) for s in scenes[some]]), {}]]
        inputs = (noise[some], *settings, positive, negative, torch.zeros_like(noise[some]))
        parts.append(comfy.sample.sample(model, *inputs, seed=seed, disable_pbar=True))
    return torch.cat(parts).float()


def decode(vae: Any, latents: torch.Tensor) -> list[np.ndarray]:
    """VAE-space latents -> videos [FRAMES, H, W, 3] in 0..1."""
    return [vae.decode(z[None])[0].float().cpu().numpy() for z in latents]


def interval(values: list[float]) -> list[float]:
    """Mean and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    return [float(x) for x in (np.mean(values), *np.quantile(draws, (0.025, 0.975)))]


def summary(scores: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean and interval of every score over videos."""
    return {name: interval([s[name] for s in scores if name in s]) for name in ("mean", *ATTRIBUTES, "off")}


def references(vae: Any, scenes: list[Scene], size: int = SIZE) -> dict[str, dict]:
    """Ceiling (true videos through encode and decode), chance (true videos of the next prompt), and the VAE's PSNR."""
    ceiling, chance, psnr = [], [], []
    for i, scene in enumerate(scenes):
        true = video(scene, 9000 + i, size)
        back = vae.decode(vae.encode(true))[0].float().cpu().numpy()
        psnr.append(-10 * np.log10(np.square(back - true.numpy()).mean()))
        ceiling.append(score(back, scene))
        chance.append(score(true.numpy(), scenes[(i + 1) % len(scenes)]))
    return {"ceiling": summary(ceiling), "chance": summary(chance), "vae psnr (dB)": {"mean": interval(psnr)}}


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


def contact_sheet(runs: dict[str, list[np.ndarray]], scenes: list[Scene], path: Path, rows: int = 8) -> None:
    """One row per prompt, one column of frames per run, captions below each row."""
    from PIL import Image, ImageDraw

    strips = {name: [np.concatenate([v[f] for f in SHOWN_FRAMES], 1) for v in videos] for name, videos in runs.items()}
    h, w = next(iter(strips.values()))[0].shape[:2]
    rows, gap, head = min(rows, len(scenes)), 8, 16
    sheet = Image.new("RGB", (len(runs) * (w + gap) - gap, head + rows * (h + head)), "white")
    pen = ImageDraw.Draw(sheet)
    for x, (name, videos) in enumerate(strips.items()):
        pen.text((x * (w + gap) + 4, 2), name, fill="black")
        for y in range(rows):
            image = Image.fromarray((videos[y].clip(0, 1) * 255).astype(np.uint8))
            sheet.paste(image, (x * (w + gap), head + y * (h + head)))
            if x == 0:
                pen.text((4, head + y * (h + head) + h + 1), caption(scenes[y]), fill="black")
    sheet.quantize(128).save(path, optimize=True)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Sample and score every run on every seed."""
    scenes = held_out_scenes(args.prompts, seed=2026)
    sketch, render = (load_dit(args.weights / f"tiny_wan_{n}.safetensors") for n in ("sketch", "render"))
    vae = load_vae(args.weights / "tiny_wan_vae.safetensors")
    models = {"sketch": sketch, "render": render}
    true = torch.cat([vae.encode(video(s, 9000 + i, args.size)) for i, s in enumerate(scenes)]).float()
    shape = (*LATENT_SHAPE[:2], args.size // 8, args.size // 8)
    errors = {n: x0_errors(m, from_vae(true), scenes) for n, m in models.items()}
    print_errors(errors)
    costs = step_costs(models, encode(caption(scenes[0])), shape)
    each, ratio = ", ".join(f"{n} {ms:.1f} ms" for n, ms in costs.items()), costs["sketch"] / costs["render"]
    print(f"guided step, {torch.get_num_threads()} threads: {each}, ratio {ratio:.2f}", flush=True)
    if args.no_samples:
        return {"scores": {}, "x0 errors": errors, "step ms": costs}
    models |= {f"sketch {k}, then render": cooperate(sketch, render, k) for k in args.hand_over}
    result: dict[str, Any] = references(vae, scenes, args.size)
    for name, model in models.items():
        scores: list[list[dict[str, float]]] = []
        shown: list[np.ndarray] = []
        for seed in range(args.seeds):
            videos = decode(vae, sample(model, scenes, seed, shape))
            scores.append([score(v, s) for v, s in zip(videos, scenes)])
            shown = shown or videos
        # prompts are the unit of the bootstrap: average a prompt's seeds first
        result[name] = summary([{k: float(np.mean([s[k] for s in per])) for k in per[0]} for per in zip(*scores)])
        result[name]["per seed"] = [float(np.mean([s["mean"] for s in row])) for row in scores]
        result[name]["videos"] = scores
        models[name] = shown
        print(time.strftime("%T"), line(name, result[name]), flush=True)
    contact_sheet(models, scenes, args.sheet)
    return {"scores": result, "x0 errors": errors, "step ms": costs}


def print_errors(errors: dict[str, dict[float, float]]) -> None:
    """The x0 error of both models at each sigma, and the render's over the sketch's."""
    for sigma, e in errors["sketch"].items():
        r = errors["render"][sigma]
        print(f"sigma {sigma:.2f}: x0 error sketch {e:.5f} render {r:.5f} ratio {r / e:.2f}")


def line(name: str, r: dict[str, list[float]]) -> str:
    """One row of the table."""
    mean, low, high = r["mean"]
    rest = [f"{r[a][0]:.3f}" for a in (*ATTRIBUTES, "off") if a in r]
    return f"{name:24s} {mean:.3f} [{low:.3f}, {high:.3f}]  " + "  ".join(rest)


def main() -> None:
    """Parse the command line, measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=HERE / "weights")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--hand-over", type=int, nargs="*", default=[10, 15])
    parser.add_argument("--sheet", type=Path, default=Path("contact_sheet.png"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels a side, a multiple of 16")
    parser.add_argument("--no-samples", action="store_true", help="x0 errors and step costs only")
    args = parser.parse_args()
    dit.find_host()
    with torch.inference_mode():
        result = run(args)
    print(f"{'':24s} mean, {', '.join(ATTRIBUTES)}, off")
    for name, r in result["scores"].items():
        print(line(name, r))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
