"""Train one of the family's DiTs: rectified flow on scenes that are drawn once and coloured anew for every batch."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from cache import aside
from torch import nn

import dit
import latent as lat
from data import SIZE, SMALL, draw, training_colours
from text import Scene, caption, encode

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS_PER_STEP = 32 * 192  # a token is 2x2 of the latent
MUON, ADAM, WARMUP, AVERAGED = 3e-3, 1.5e-3, 200, 0.998  # peak rates, steps to reach them, decay of the average


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
    """x0 [B, 16, T, H, W], text [B, tokens, dim]: fresh colours, every other background unsaid, 10 % empty prompts."""
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


Geometries = dict[int, Geometry]  # by size
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """How one DiT is trained.

    A step is 32 videos (56 of the small size in `small` of the steps), or 96 stills (their first latent frame) in
    `stills` of the steps up to `stills_until` of the run; the rate falls to zero over the last `decay` of the run.
    """

    name: str
    shape: dit.Shape
    steps: int
    sigmas: Callable[[int, torch.Generator], torch.Tensor]
    seed: int
    taught_until: int = 0  # steps that the sketch teaches, below sigma 0.8, on videos of the large size: see `Lessons`
    weighted: bool = False  # the loss weighs 4 sigma (1 - sigma), about one over a good network's error at that level
    small: float = 0.0
    stills: float = 0.0
    stills_until: float = 0.0
    decay: float = 0.35


def rate(plan: Plan, step: int) -> float:
    """Share of the peak learning rate at `step`: linear warm-up, flat, linear to zero."""
    return min(1.0, (step + 1) / WARMUP, (plan.steps - step) / (plan.decay * plan.steps))


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for everything else."""
    matrices = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MUON, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAM, betas=(0.9, 0.97), weight_decay=0.0),
    ]


def keep(state: dict, path: Path) -> None:
    """Write a checkpoint; a kill meanwhile leaves the old one."""
    with aside(path) as partial:
        torch.save(state, partial)


class Training:
    """A DiT in training: weights, their average, optimisers and step; all of it in one checkpoint."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.path = plan, folder / f"{plan.name}.pt"
        self.model = dit.build(plan.shape, plan.seed).to(DEVICE)
        saved = torch.load(self.path, map_location=DEVICE, weights_only=True) if self.path.exists() else None
        if saved:
            self.model.load_state_dict(saved["model"])
        self.optimisers = optimisers(self.model)
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
        average(self.ema, self.model, min(AVERAGED, (1 + self.step) / (10 + self.step)))

    def keep(self) -> None:
        """Write the checkpoint."""
        state = {"model": self.model.state_dict(), "ema": self.ema, "step": self.step, "log": self.log}
        keep(state | {"optimisers": [o.state_dict() for o in self.optimisers]}, self.path)


class Lessons:
    """Batches with the answers of a finished sketch.

    Below sigma 0.8 the target is a mix: the sketch's prediction has none of the truth's scatter, the truth none of the
    sketch's errors, which weigh most at low noise. Above 0.8 it is the truth alone. One round of `BATCHES` batches is
    drawn and answered at a time, then used `PASSES` times in different orders: a function of plan.seed and step alone.
    """

    BATCHES, PASSES, SHARE = 300, 3, 0.75

    def __init__(self, plan: Plan, sketch: State, geometry: Geometry, latent: lat.Latent, predict: Any) -> None:
        self.plan, self.geometry, self.latent, self.predict = plan, geometry, latent, predict
        self.teacher = dit.build(dit.SKETCH, 0).requires_grad_(False)
        self.teacher.load_state_dict(sketch)
        self.teacher.to(DEVICE)
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
        drawn = [_draw_batch(self.plan, first + i, self.geometry, self.latent) for i in range(steps)]
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


def finished_sketch(folder: Path, weights: Path) -> State:
    """The finished sketch: its checkpoint's average, or without one the exported file."""
    from safetensors.torch import load_file

    path = folder / "sketch.pt"
    if path.exists():
        return torch.load(path, map_location="cpu", weights_only=True)["ema"]
    return {name: t.float() for name, t in load_file(weights / "tiny_wan_sketch.safetensors").items()}


def train_dit(
    plan: Plan, geometry: Geometries, latent: lat.Latent, folder: Path, compiled: bool, sketch: State | None = None
) -> None:
    """Rectified flow: predict noise - x0 at x = (1 - sigma) x0 + sigma noise. Resumes from its checkpoint.

    A taught network's loss weighs 4 sigma (1 - sigma), about one over the sketch's own error at that level.
    """
    run = Training(plan, folder)
    predict = torch.compile(dit.velocity, dynamic=False) if compiled else dit.velocity
    lessons = Lessons(plan, sketch, geometry[SIZE], latent, predict) if plan.taught_until and sketch else None
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
                at = f"{plan.name} {run.step}/{plan.steps} {speed:.2f} steps/s"
                print(at, smooth, time.strftime("%T"), flush=True)
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
def average(ema: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's."""
    names, parameters = zip(*model.named_parameters())
    torch._foreach_lerp_([ema[n] for n in names], list(parameters), 1 - decay)
