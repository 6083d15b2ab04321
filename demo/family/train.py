"""Train the tiny Wan family from nothing: latent statistics, sketch, render, vae, export.

make family                                                          # everything, resumes where it stopped
python demo/family/train.py --stage sketch --sketch-steps 6000       # one stage, in the host's Python
python demo/family/train.py --quick                                  # smoke: every stage for a few steps
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

# isort: split
import torch
import train_vae
from cache import cache_folder
from train_dit import Geometries, Plan, finished_sketch, keep, make_geometry, render_sigmas, sketch_sigmas, train_dit

import dit
import latent as lat
from data import SIZE, SMALL
from text import encode

HERE = Path(__file__).resolve().parent


@torch.no_grad()
def check_export(state: dict[str, torch.Tensor], shape: dit.Shape, path: Path, tolerance: float = 0.03) -> None:
    """The file, loaded and run by the host, must predict what the trained weights predict here (fp16 apart)."""
    import comfy.model_management
    import comfy.sd

    generator = torch.Generator().manual_seed(0)
    x, sigma = torch.randn(2, 16, *lat.GRID, generator=generator), torch.tensor([0.3, 0.9])
    text = torch.stack([encode("a red circle moves left above a blue square"), encode("")])
    model = dit.build(shape, 0)
    model.load_state_dict(state)
    with dit.trainable_host():
        ours = dit.velocity(model, x, sigma, text)
    host = comfy.sd.load_diffusion_model(str(path))
    comfy.model_management.load_models_gpu([host])
    x, sigma, text = (t.to(comfy.model_management.get_torch_device()) for t in (x, sigma, text))
    denoised = host.model.apply_model(x, sigma, c_crossattn=text).cpu()
    theirs = (x.cpu() - denoised) / sigma.cpu().view(-1, 1, 1, 1, 1)
    error = ((theirs - ours).square().mean() / ours.square().mean()).sqrt().item()
    if error > tolerance:
        raise RuntimeError(f"{path.name}: the host's prediction is {error:.3f} away from the trained model's")


def export(folder: Path, weights: Path) -> None:
    """Write the averaged weights of every checkpoint as the files that the host loads."""
    shapes = {"sketch": dit.SKETCH, "render": dit.RENDER, "vae": None}
    for name, shape in shapes.items():
        if not (folder / f"{name}.pt").exists():
            continue
        saved = torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
        path = weights / f"tiny_wan_{name}.safetensors"
        dit.save(saved["ema"], shape, path)
        if shape:
            check_export(saved["ema"], shape, path)
        print(path.name, f"{path.stat().st_size / 1e6:.2f} MB, step {saved['step']}")


def load_latent(folder: Path) -> lat.Latent:
    """The fitted latent, fitting it on the first call."""
    path = folder / "latent.pt"
    if not path.exists():
        keep(vars(lat.fit()), path)
    return lat.Latent(**torch.load(path, weights_only=True))


def plans(args: argparse.Namespace) -> list[Plan]:
    """The recipes of the DiTs, in order."""
    taught: dict[str, Any] = {"taught_until": 4009, "weighted": True, "small": 0.1, "decay": 0.5}
    return [
        Plan("sketch", dit.SKETCH, args.sketch_steps, sketch_sigmas, seed=11, stills=0.5, stills_until=0.6),
        Plan("render", dit.RENDER, args.render_steps, render_sigmas, seed=12, **taught),
    ]


def main() -> None:
    """Parse the command line and run the stages in order; checkpoints lie outside the repository."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("sketch", "render", "vae", "export", "all"), default="all")
    for name, steps in (("sketch", 7000), ("render", 8000), ("vae", 1500)):
        parser.add_argument(f"--{name}-steps", type=int, default=steps)
    parser.add_argument("--weights", type=Path, default=HERE / "weights")
    parser.add_argument("--geometries", type=int, default=24000)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="every stage for a few steps, without weights to keep")
    args = parser.parse_args()
    dit.find_host()
    if not args.quick:
        run(args, Path(os.environ.get("SRD_TRAIN_DIR") or cache_folder() / "train"))
        return
    with tempfile.TemporaryDirectory(prefix="srd-quick-") as folder:
        args.geometries, args.no_compile = 4, True  # so a batch is four videos
        args.sketch_steps = args.render_steps = args.vae_steps = 4
        args.weights = args.weights if args.weights != HERE / "weights" else Path(folder)
        run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> None:
    """The chosen stages, with checkpoints in `folder`."""
    latent = load_latent(folder)
    geometry: Geometries = {}
    for plan in plans(args):
        if args.stage in (plan.name, "all"):
            for size in (SIZE, SMALL) if plan.small else (SIZE,):
                if size not in geometry:
                    geometry[size] = make_geometry(latent, args.geometries, 1, size)
            sketch = finished_sketch(folder, args.weights) if plan.taught_until else None
            train_dit(plan, geometry, latent, folder, not args.no_compile, sketch)
    if args.stage in ("vae", "all"):
        train_vae.train(args.vae_steps, latent, folder)
    if args.stage in ("export", "all"):
        export(folder, args.weights)


if __name__ == "__main__":
    main()
