"""Train the tiny Wan family from nothing: latent statistics, sketch, render, vae, export.

COMFYUI_PATH=/path/to/ComfyUI python demo/family/train.py            # everything, resumes where it stopped
python demo/family/train.py --stage sketch --sketch-steps 6000       # one stage
python demo/family/train.py --stage deep --deep-steps 750            # a sketch of ten blocks (does not ship)
python demo/family/train.py --quick                                  # smoke: every stage for a few steps
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

import dit
import latent as lat
import vae
from data import SIZE, SMALL, compose, draw, training_colours
from text import Scene, caption, encode

HERE = Path(__file__).resolve().parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS_PER_STEP = 32 * 192  # a token is 2x2 of the latent


# ---------------------------------------------------------------------------------------------- data


@dataclass
class Geometry:
    """Uncoloured scenes and their masks' coefficients [N, 2, P, T, H, W] (float16; an absent second group is zero)."""

    scenes: list[Scene]
    coefficients: torch.Tensor


def make_geometry(latent: lat.Latent, count: int, seed: int, size: int = SIZE) -> Geometry:
    """Draw and project `count` scenes of `size` pixels once; batches recolour them."""
    grid = (lat.GRID[0], size // 8, size // 8)
    scenes, coefficients = [], torch.zeros(count, 2, len(latent.pattern), *grid, dtype=torch.float16)
    for i, (scene, placed) in enumerate(islice(lat.geometries(seed), count)):
        scenes.append(scene)
        for k, p in enumerate(placed):
            coefficients[i, k] = latent.project(draw(p, size))
    return Geometry(scenes, coefficients)


def batch(geometry: Geometry, latent: lat.Latent, size: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """x0 [B, 16, T, H, W] and text [B, tokens, dim]: fresh colours, every other background unsaid, 10 % empty prompts."""
    picks = rng.sample(range(len(geometry.scenes)), size)
    paint, ground, text = torch.zeros(size, 2, 3), torch.zeros(size, 3), []
    for b, i in enumerate(picks):
        scene = training_colours(geometry.scenes[i], rng)
        colours, ground[b] = lat.palette_of(scene)
        paint[b, : len(colours)] = colours
        said = scene if rng.random() < 0.5 else Scene(scene.groups, scene.relation)
        text.append(encode("" if rng.random() < 0.1 else caption(said)))
    x0 = latent.colourise(geometry.coefficients[picks].float(), paint, ground)
    return x0.to(DEVICE), torch.stack(text).to(DEVICE)


# ---------------------------------------------------------------------------------------------- sigmas


def stratified(size: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform in 0..1, one draw in each of `size` equal parts."""
    return (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size


def sketch_sigmas(size: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform steps of a shift-2 schedule: half of the draws above 2/3."""
    u = stratified(size, generator)
    return 2 * u / (1 + u)


def render_sigmas(size: int, generator: torch.Generator) -> torch.Tensor:
    """72 % below 0.8, where a render works, and 28 % above, where composition is decided; uniform in each part."""
    u = stratified(size, generator)
    return torch.where(u < 0.72, u / 0.72 * 0.8, 0.8 + (u - 0.72) / 0.28 * 0.2)


# ---------------------------------------------------------------------------------------------- training


Geometries = dict[int, Geometry]  # by size


@dataclass(frozen=True)
class Plan:
    """How one DiT is trained. A step is 32 videos (56 of the small size in `small` of the steps), or 96 stills (their
    first latent frame) in `stills` of the steps up to `stills_until` of the run; the rate falls to zero over the last
    `decay` of the run.
    """

    name: str
    shape: dit.Shape
    steps: int
    sigmas: Callable[[int, torch.Generator], torch.Tensor]
    seed: int
    taught_until: int = 0  # steps that the sketch teaches, below sigma 0.8, on videos of the large size: see `Lessons`
    weighted: bool = False  # the loss weighs 4 sigma (1 - sigma), about one over a good network's error at that level
    grown: tuple[int, ...] = ()  # starts as the finished sketch with a block inserted behind each of these
    small: float = 0.0
    stills: float = 0.0
    stills_until: float = 0.0
    muon: float = 3e-3
    adam: float = 1.5e-3
    warmup: int = 200
    decay: float = 0.35
    ema: float = 0.998


def rate(plan: Plan, step: int) -> float:
    """Share of the peak learning rate at `step`: linear warm-up, flat, linear to zero."""
    return min(1.0, (step + 1) / plan.warmup, (plan.steps - step) / (plan.decay * plan.steps))


def optimisers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for everything else."""
    matrices = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=plan.muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=plan.adam, betas=(0.9, 0.97), weight_decay=0.0),
    ]


def save_atomically(state: dict, path: Path) -> None:
    """A kill during the write leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


class Training:
    """A DiT in training: weights, their average, optimisers and step; all of it in one checkpoint."""

    def __init__(self, plan: Plan, folder: Path, start: dict[str, torch.Tensor] | None = None) -> None:
        self.plan, self.path = plan, folder / f"{plan.name}.pt"
        self.model = dit.build(plan.shape, plan.seed).to(DEVICE)
        saved = torch.load(self.path, map_location=DEVICE, weights_only=True) if self.path.exists() else None
        if saved:
            self.model.load_state_dict(saved["model"])
        elif start:
            self.model.load_state_dict(start)
        self.optimisers = optimisers(self.model, plan)
        self.peaks = [group["lr"] for o in self.optimisers for group in o.param_groups]
        self.ema = saved["ema"] if saved else {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.step: int = saved["step"] if saved else 0
        self.log: list[dict[str, float]] = saved["log"] if saved else []
        for o, state in zip(self.optimisers, saved["optimisers"] if saved else ()):
            o.load_state_dict(state)

    def update(self) -> None:
        """One optimiser step on the gradients that backward left."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        groups = [group for o in self.optimisers for group in o.param_groups]
        for group, peak in zip(groups, self.peaks):
            group["lr"] = peak * rate(self.plan, self.step)
        for o in self.optimisers:
            o.step()
            o.zero_grad(set_to_none=True)
        self.step += 1
        _average(self.ema, self.model, min(self.plan.ema, (1 + self.step) / (10 + self.step)))

    def keep(self) -> None:
        """Write the checkpoint."""
        save_atomically(
            {
                "model": self.model.state_dict(),
                "ema": self.ema,
                "step": self.step,
                "log": self.log,
                "optimisers": [o.state_dict() for o in self.optimisers],
            },
            self.path,
        )


class Lessons:
    """Batches with the answers of a finished sketch. Below sigma 0.8 the target is a mix: the sketch's prediction has
    none of the truth's scatter, the truth none of the sketch's errors, which weigh most at low noise. Above 0.8 it is
    the truth alone. One round of `BATCHES` batches is drawn and answered at a time and then used `PASSES` times in
    different orders; a function of plan.seed and step alone.
    """

    BATCHES, PASSES, SHARE = 300, 3, 0.75

    def __init__(
        self, plan: Plan, teacher: nn.Module, geometry: Geometries, latent: lat.Latent, compiled: bool
    ) -> None:
        self.plan, self.teacher, self.geometry, self.latent = plan, teacher, geometry, latent
        self.predict = torch.compile(dit.velocity, dynamic=False) if compiled else dit.velocity
        self.round, self.kept, self.size = -1, list[torch.Tensor](), 0

    def batch(self, step: int) -> list[torch.Tensor]:
        """x, sigma, text and target of a step."""
        steps = min(self.BATCHES, max(1, self.plan.steps // self.PASSES))
        if self.round != step // (steps * self.PASSES):
            self.round = step // (steps * self.PASSES)
            self.kept = self._answered(self.round * steps, steps)
        turn, place = divmod(step % (steps * self.PASSES), steps)
        seed = (self.plan.seed * 1_000_003 + self.round) * self.PASSES + turn
        order = torch.randperm(len(self.kept[0]), generator=torch.Generator().manual_seed(seed))
        picks = order[place * self.size : (place + 1) * self.size]
        return [part[picks].float().to(DEVICE) for part in self.kept]

    @torch.no_grad()
    def _answered(self, first: int, steps: int) -> list[torch.Tensor]:
        geometry = self.geometry[SIZE]
        drawn = [_draw_batch(self.plan, first + i, geometry, self.latent) for i in range(steps)]
        self.size = len(drawn[0][0])
        x0, text, sigma, noise = (torch.cat(part) for part in zip(*drawn))
        s = sigma.view(-1, 1, 1, 1, 1)
        x, target = (1 - s) * x0 + s * noise, noise - x0
        low = torch.where(sigma < 0.8)[0]
        for i in range(len(low) // self.size):  # whole batches, so that one size is compiled
            at = low[i * self.size : (i + 1) * self.size]
            with torch.autocast(DEVICE.type, torch.bfloat16):
                answer = self.predict(self.teacher, x[at], sigma[at], text[at]).float()
            share = self.SHARE * (s[at] / 0.3).clamp(max=1)
            target[at] += share * (answer - target[at])
        return [x.half(), sigma, text.half(), target.half()]


def finished_sketch(folder: Path, weights: Path) -> dict[str, torch.Tensor]:
    """The finished sketch: its checkpoint's average, or without one the exported file."""
    from safetensors.torch import load_file

    path = folder / "sketch.pt"
    if path.exists():
        return torch.load(path, map_location="cpu", weights_only=True)["ema"]
    return {name: t.float() for name, t in load_file(weights / "tiny_wan_sketch.safetensors").items()}


def train_dit(
    plan: Plan,
    geometry: Geometries,
    latent: lat.Latent,
    folder: Path,
    compiled: bool,
    sketch: dict[str, torch.Tensor] | None = None,
) -> None:
    """Rectified flow: predict noise - x0 at x = (1 - sigma) x0 + sigma noise. Resumes from its checkpoint.

    A taught network's loss weighs 4 sigma (1 - sigma), about one over the sketch's own error at that level.
    """
    run = Training(plan, folder, dit.grown(sketch, plan.grown) if sketch and plan.grown else None)
    predict = torch.compile(dit.velocity, dynamic=False) if compiled else dit.velocity
    lessons = None
    if run.step < plan.taught_until and sketch:
        teacher = dit.build(dit.SKETCH, 0).requires_grad_(False)
        teacher.load_state_dict(sketch)
        lessons = Lessons(plan, teacher.to(DEVICE), geometry, latent, compiled)
    started, first, kept, smooth = time.time(), run.step, time.time(), dict[str, float]()
    with dit.trainable_host():
        while run.step < plan.steps:
            if lessons and run.step < plan.taught_until:
                x, sigma, text, target = lessons.batch(run.step)
            else:
                x0, text, sigma, noise = _draw_batch(plan, run.step, geometry[_size_of(plan, run.step)], latent)
                s = sigma.view(-1, 1, 1, 1, 1)
                x, target = (1 - s) * x0 + s * noise, noise - x0
            with torch.autocast(DEVICE.type, torch.bfloat16):
                v = predict(run.model, x, sigma, text)
            errors = (v.float() - target).square().flatten(1).mean(1)
            loss = (4 * sigma * (1 - sigma) * errors).mean() if plan.weighted else errors.mean()
            loss.backward()
            run.update()
            kind = "still" if x.shape[2] == 1 else "video"
            smooth[kind] = 0.98 * smooth.get(kind, loss.item()) + 0.02 * loss.item()
            done = run.step == plan.steps
            if run.step % 100 == 0 or done:
                speed = (run.step - first) / (time.time() - started)
                run.log.append({"step": run.step, **smooth})
                print(
                    f"{plan.name} {run.step}/{plan.steps}",
                    f"{speed:.2f} steps/s",
                    smooth,
                    time.strftime("%T"),
                    flush=True,
                )
            if time.time() - kept > 120 or done:
                run.keep()
                kept = time.time()


def _size_of(plan: Plan, step: int) -> int:
    """Pixels of a step's videos."""
    return SMALL if random.Random(plan.seed * 7919 + step).random() < plan.small else SIZE


def _draw_batch(plan: Plan, step: int, geometry: Geometry, latent: lat.Latent) -> tuple[torch.Tensor, ...]:
    """x0, text, sigma and noise of a step; a function of plan.seed and step alone."""
    rng = random.Random(plan.seed * 1_000_003 + step)
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    still = step < plan.stills_until * plan.steps and rng.random() < plan.stills
    frames = 1 if still else lat.GRID[0]
    area = geometry.coefficients.shape[-1] ** 2 // 4
    size = min(TOKENS_PER_STEP // (area * frames), len(geometry.scenes))
    x0, text = batch(geometry, latent, size, rng)
    x0 = x0[:, :, :frames]
    noise = torch.randn(x0.shape, generator=generator).to(DEVICE)
    return x0, text, plan.sigmas(size, generator).to(DEVICE), noise


@torch.no_grad()
def _average(ema: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    names, parameters = zip(*model.named_parameters())
    torch._foreach_lerp_([ema[n] for n in names], list(parameters), 1 - decay)


# ---------------------------------------------------------------------------------------------- vae


def vae_batch(latent: lat.Latent, size: int, rng: random.Random) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Crops of stills, then of blocks: z [B, 16, 6, 6] in DiT space and frames [B, T, 3, 48, 48] in 0..1."""
    crops: tuple[list, list] = ([], [])
    for scene, placed in islice(lat.geometries(rng.getrandbits(40)), size):
        scene = training_colours(scene, rng)
        masks = [draw(p) for p in placed]
        video = compose(masks, scene).permute(0, 3, 1, 2)
        paint, ground = lat.palette_of(scene)
        z = latent.colourise(torch.stack([latent.project(m) for m in masks])[None], paint[None], ground[None])[0]
        x, y = rng.choice(rng.choice(placed).centres)
        i, j = (min(max(int(c / 8) - rng.randrange(6), 0), lat.GRID[1] - 6) for c in (y, x))
        here = (..., slice(8 * i, 8 * i + 48), slice(8 * j, 8 * j + 48))
        b = rng.choice((1, 2))
        crops[0].append((z[:, 0, i : i + 6, j : j + 6], video[:1][here]))
        crops[1].append((z[:, b, i : i + 6, j : j + 6], video[4 * b - 3 : 4 * b + 1][here]))
    pairs = [[torch.stack(part).to(DEVICE) for part in zip(*kind)] for kind in crops]
    return [(z, frames) for z, frames in pairs]


def vae_loss(model: nn.Module, z: torch.Tensor, frames: torch.Tensor, blur: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Encoder: squared error to the linear latent. Decoder: pixels from a latent with noise of strength blur [B]."""
    still = frames.shape[1] == 1
    wan_std, wan_mean = lat.WAN_STD[:, 0].to(z), lat.WAN_MEAN[:, 0].to(z)
    encoded = vae.encode(model, frames * 2 - 1, still)
    noisy = z + blur.view(-1, 1, 1, 1) * torch.randn_like(z)
    difference = (vae.decode(model, noisy * wan_std + wan_mean, still) + 1) / 2 - frames
    return ((encoded - wan_mean) / wan_std - z).square().mean(), difference.abs().mean() + difference.square().mean()


def train_vae(steps: int, latent: lat.Latent, folder: Path, seed: int = 13, peak: float = 4e-3) -> None:
    """Regress the Wan-layout encoder and decoder onto the linear latent. Resumes from its checkpoint."""
    path = folder / "vae.pt"
    model = vae.build(vae.WIDTH, seed).to(DEVICE)
    error = vae.check(model)
    if error > 1e-3:
        raise RuntimeError(f"the folded VAE differs from the host's by {error:.2g}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=0.0)
    ema = {n: p.detach().clone() for n, p in model.named_parameters()}
    step, smooth, kept = 0, [0.0, 0.0], time.time()
    if path.exists():
        saved = torch.load(path, map_location=DEVICE, weights_only=True)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["optimiser"])
        ema, step, smooth = saved["ema"], saved["step"], saved["loss"]
    while step < steps:
        rng = random.Random(seed * 1_000_003 + step)
        torch.manual_seed(rng.getrandbits(40))
        losses = torch.zeros(2)
        for z, frames in vae_batch(latent, 8, rng):
            blur = 0.2 * torch.rand(len(z), device=DEVICE)
            weight = frames.shape[1] / 5
            pair = torch.stack(vae_loss(model, z, frames, blur)) * weight
            pair.sum().backward()
            losses += pair.detach().cpu()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        for group in opt.param_groups:
            group["lr"] = peak * min((step + 1) / 100, (steps - step) / (0.6 * steps), 1)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        _average(ema, model, min(0.99, step / (10 + step)))
        smooth = [0.98 * a + 0.02 * b if step > 1 else b for a, b in zip(smooth, losses.tolist())]
        if step % 50 == 0 or step == steps:
            encoder, decoder = smooth
            print(f"vae {step}/{steps} encoder {encoder:.5f} decoder {decoder:.5f}", time.strftime("%T"), flush=True)
        if time.time() - kept > 60 or step == steps:
            save_atomically(
                {"model": model.state_dict(), "ema": ema, "step": step, "loss": smooth, "optimiser": opt.state_dict()},
                path,
            )
            kept = time.time()


# ---------------------------------------------------------------------------------------------- command


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
    """Write the averaged weights of every checkpoint there is as the files that the host loads; once there is a deep
    sketch, it is the sketch.
    """
    shapes = {"sketch": dit.SKETCH, "render": dit.RENDER, "deep": dit.DEEP}
    for name in ("sketch", "render", "deep", "vae"):
        if not (folder / f"{name}.pt").exists():
            continue
        saved = torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
        path = weights / f"tiny_wan_{'sketch' if name == 'deep' else name}.safetensors"
        if name == "vae":
            vae.save(saved["ema"], path)
        else:
            dit.save(saved["ema"], shapes[name], path)
            check_export(saved["ema"], shapes[name], path)
        print(path.name, f"{path.stat().st_size / 1e6:.2f} MB, step {saved['step']}")


def training_folder() -> Path:
    """Where checkpoints live: outside the repository."""
    return Path(os.environ.get("SRD_TRAIN_DIR", Path.home() / ".cache/comfyui-srdiffusion/train"))


def load_latent(folder: Path) -> lat.Latent:
    """The fitted latent, fitting it on the first call."""
    path = folder / "latent.pt"
    if not path.exists():
        save_atomically(vars(lat.fit()), path)
    return lat.Latent(**torch.load(path, weights_only=True))


def plans(args: argparse.Namespace) -> dict[str, Plan]:
    """The recipes of the DiTs, in order."""
    return {
        "sketch": Plan("sketch", dit.SKETCH, args.sketch_steps, sketch_sigmas, seed=11, stills=0.5, stills_until=0.6),
        "render": Plan(
            "render",
            dit.RENDER,
            args.render_steps,
            render_sigmas,
            seed=12,
            taught_until=4009,
            weighted=True,
            small=0.1,
            decay=0.5,
        ),
        "deep": Plan(
            "deep",
            dit.DEEP,
            args.deep_steps,
            sketch_sigmas,
            seed=14,
            grown=dit.GROWN,
            small=0.25,
            muon=1e-3,
            adam=5e-4,
            warmup=50,
            decay=0.9,
            ema=0.99,
        ),
    }


def main() -> None:
    """Parse the command line and run the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", help="ComfyUI's folder (default: COMFYUI_PATH)")
    parser.add_argument("--stage", choices=("sketch", "render", "deep", "vae", "export", "all"), default="all")
    parser.add_argument("--sketch-steps", type=int, default=7000)
    parser.add_argument("--render-steps", type=int, default=8000)
    parser.add_argument("--deep-steps", type=int, default=0, help="0: no deep sketch")
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--weights", type=Path, default=HERE / "weights")
    parser.add_argument("--geometries", type=int, default=24000)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--quick", action="store_true", help="every stage for a few steps")
    args = parser.parse_args()
    dit.find_host(args.comfyui)
    if not args.quick:
        run(args, training_folder())
        return
    with tempfile.TemporaryDirectory(prefix="srd-quick-") as folder:
        args.geometries, args.no_compile = 200, True
        args.sketch_steps = args.render_steps = args.deep_steps = args.vae_steps = 4
        args.weights = args.weights if args.weights != HERE / "weights" else Path(folder)
        run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> None:
    """The chosen stages, with checkpoints in `folder`."""
    latent = load_latent(folder)
    geometry: Geometries = {}
    for name, plan in plans(args).items():
        if args.stage in (name, "all") and plan.steps:
            for size in (SIZE, SMALL) if plan.small else (SIZE,):
                if size not in geometry:
                    geometry[size] = make_geometry(latent, args.geometries, 1, size)
            sketch = finished_sketch(folder, args.weights) if plan.taught_until or plan.grown else None
            train_dit(plan, geometry, latent, folder, not args.no_compile, sketch)
    if args.stage in ("vae", "all"):
        train_vae(args.vae_steps, latent, folder)
    if args.stage in ("export", "all"):
        export(folder, args.weights)


if __name__ == "__main__":
    main()
