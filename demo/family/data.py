"""Synthetic captioned videos: flat, soft-edged, slow shapes on a plain background.

A video is linear in its masks, video = background + sum_k mask_k (colour_k - background), and so is a linear latent:
geometry is drawn and projected once, and recoloured for free.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from text import BACKGROUNDS, COLOURS, COUNTS, MOTIONS, RELATIONS, SHAPES, Group, Scene, said

SIZE = 128
SMALL = 96  # the same scenes in fewer pixels, edges as soft in pixels
FRAMES = 9
EDGE = 1.5  # pixels over which a mask falls from 1 to 0
MARGIN = 3.0
GAP = 5.0
_RADII: dict[int, dict[str, tuple[float, float]]] = {
    1: {"one": (20, 27), "two": (16, 19), "three": (13.5, 15)},
    2: {"one": (16, 20), "two": (13, 15)},
}
_DIRECTION = {"still": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Placed:
    """A group in the picture: first-frame centres [(x, y)], radius and travel over the clip, in pixels."""

    shape: str
    centres: tuple[tuple[float, float], ...]
    radius: float
    travel: tuple[float, float]


def held_out(scene: Scene) -> bool:
    """True for the attribute combinations (about 10 %) that no training video shows."""
    looks = sorted(f"{g.colour} {g.shape}" for g in scene.groups)
    if len(looks) == 1:
        looks += [str(scene.groups[0].count), scene.groups[0].motion]
    return hashlib.sha256("|".join(looks).encode()).digest()[0] < 26


def random_scene(rng: random.Random) -> Scene:
    """A scene from the training distribution (held-out combinations included): 3 of 4 have two groups."""
    if rng.random() < 0.25:
        return colour_scene(Scene((_random_group(rng, COUNTS),)), rng)
    groups = tuple(_random_group(rng, COUNTS[:2], (0.75, 0.25)) for _ in range(2))
    return colour_scene(Scene(groups, rng.choice(RELATIONS)), rng)


def _random_group(rng: random.Random, counts: tuple[str, ...], weights: tuple[float, ...] | None = None) -> Group:
    motion = rng.choices(MOTIONS, (4, 2, 2, 2, 2))[0]
    return Group(rng.choices(counts, weights)[0], None, rng.choice(SHAPES), motion)


def colour_scene(scene: Scene, rng: random.Random) -> Scene:
    """Give the groups different colours and the scene a background."""
    colours = rng.sample(tuple(COLOURS), len(scene.groups))
    groups = tuple(replace(g, colour=c) for g, c in zip(scene.groups, colours))
    return replace(scene, groups=groups, background=rng.choice(tuple(BACKGROUNDS)))


def training_colours(scene: Scene, rng: random.Random) -> Scene:
    """Recolour a scene, staying out of the held-out combinations."""
    while held_out(coloured := colour_scene(scene, rng)):
        pass
    return coloured


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """`count` different held-out scenes; nothing may be chosen on them."""
    rng = random.Random(seed)
    found: dict[Scene, None] = {}
    while len(found) < count:
        if held_out(scene := random_scene(rng)):
            found[scene] = None
    return list(found)


def place(scene: Scene, rng: random.Random) -> list[Placed]:
    """Choose sizes and paths so that all stays in the picture, nothing touches, and the relation always holds."""
    while True:
        placed = [_place_group(group, scene, rng) for group in scene.groups]
        boxes = [_box(p) for p in placed]
        inside = all(b > MARGIN and t < SIZE - MARGIN for box in boxes for b, t in (box[:2], box[2:]))
        if inside and (len(placed) == 1 or _relation_holds(scene.relation, placed, boxes)):
            return placed


def _place_group(group: Group, scene: Scene, rng: random.Random) -> Placed:
    radius = rng.uniform(*_RADII[len(scene.groups)][said(group.count)])
    dx, dy = _DIRECTION[group.motion]
    distance = rng.uniform(14, 20)
    travel = (dx * distance, dy * distance)
    x = rng.uniform(radius, SIZE - radius)
    y = rng.uniform(radius, SIZE - radius)
    # groups line up across the relation's axis, so that they need the least room along it
    column = scene.relation in ("left", "right")
    count = COUNTS.index(said(group.count)) + 1
    offsets = [(i - (count - 1) / 2) * 2.4 * radius for i in range(count)]
    centres = tuple((x + (0 if column else o), y + (o if column else 0)) for o in offsets)
    return Placed(said(group.shape), centres, radius, travel)


def _box(p: Placed) -> tuple[float, float, float, float]:
    """x_min, x_max, y_min, y_max over the whole clip."""
    xs = [x + d for x, _ in p.centres for d in (0, p.travel[0])]
    ys = [y + d for _, y in p.centres for d in (0, p.travel[1])]
    return min(xs) - p.radius, max(xs) + p.radius, min(ys) - p.radius, max(ys) + p.radius


def _relation_holds(relation: str | None, placed: list[Placed], boxes: Sequence[tuple[float, ...]]) -> bool:
    """Boxes swept over the clip are apart along the relation's axis and near each other across it."""
    (ax0, ax1, ay0, ay1), (bx0, bx1, by0, by1) = boxes
    apart = {"above": by0 - ay1, "below": ay0 - by1, "left": bx0 - ax1, "right": ax0 - bx1}[said(relation)]
    across = (ax0 + ax1 - bx0 - bx1) if relation in ("above", "below") else (ay0 + ay1 - by0 - by1)
    return apart > GAP and abs(across) / 2 < 24


def draw(p: Placed, size: int = SIZE) -> torch.Tensor:
    """Mask [FRAMES, size, size] in 0..1 of a placed group, in a picture of `size` pixels."""
    t, scale = torch.linspace(0, 1, FRAMES), size / SIZE
    mask, r, dx, dy = torch.zeros(FRAMES, size, size), scale * p.radius, scale * p.travel[0], scale * p.travel[1]
    for cx, cy in ((scale * x, scale * y) for x, y in p.centres):
        xs, ys = _span(cx, dx, r, size), _span(cy, dy, r, size)
        x = (torch.arange(xs.start, xs.stop) + 0.5 - cx - t[:, None] * dx)[:, None, :]
        y = (torch.arange(ys.start, ys.stop) + 0.5 - cy - t[:, None] * dy)[:, :, None]
        mask[:, ys, xs] += (0.5 - DISTANCE[p.shape](x, y, r) / EDGE).clamp(0, 1)
    return mask


def _span(centre: float, travel: float, radius: float, size: int) -> slice:
    """The pixels that a shape can touch along one axis during the clip."""
    low, high = sorted((centre, centre + travel))
    return slice(max(0, int(low - radius - EDGE)), min(size, int(high + radius + EDGE) + 1))


def _circle(x: torch.Tensor, y: torch.Tensor, r: float) -> torch.Tensor:
    return (x * x + y * y).sqrt() - r


def _square(x: torch.Tensor, y: torch.Tensor, r: float) -> torch.Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.88 * r


def _triangle(x: torch.Tensor, y: torch.Tensor, r: float) -> torch.Tensor:
    """Upright, point on top; circumradius r, moved down a little so that its box is centred."""
    y = y - 0.2 * r
    slope = 0.866 * x.abs() - 0.5 * y
    return torch.maximum(slope, y) - 0.5 * r


def _star(x: torch.Tensor, y: torch.Tensor, r: float) -> torch.Tensor:
    """Five points: fold the plane onto half a point, then the signed distance of its one edge."""
    angle = torch.atan2(x, -y).abs()
    sector = math.pi / 5
    folded = (angle - 2 * sector * (angle / (2 * sector)).round()).abs()
    rho = (x * x + y * y).sqrt()
    px, py = rho * torch.sin(folded), rho * torch.cos(folded)
    qx, qy = 0.45 * r * math.sin(sector), 0.45 * r * math.cos(sector)  # inner corner; the tip is (0, r)
    nx, ny = r - qy, qx
    return (nx * px + ny * (py - r)) / math.hypot(nx, ny)


DISTANCE = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}


def compose(masks: list[torch.Tensor], scene: Scene) -> torch.Tensor:
    """Masks [FRAMES, H, W] and a coloured scene -> video [FRAMES, H, W, 3] in 0..1."""
    ground = torch.tensor(BACKGROUNDS[said(scene.background)])
    video = ground.expand(*masks[0].shape, 3).clone()
    for mask, group in zip(masks, scene.groups):
        video += mask[..., None] * (torch.tensor(COLOURS[said(group.colour)]) - ground)
    return video


def video(scene: Scene, seed: int, size: int = SIZE) -> torch.Tensor:
    """A true video [FRAMES, size, size, 3] in 0..1 of a coloured scene."""
    return compose([draw(p, size) for p in place(scene, random.Random(seed))], scene)
