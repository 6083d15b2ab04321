"""Reads a video's pixels and scores it against a scene: colour, shape, count, place, motion, and cleanliness.

No model is involved: pixels are matched with the palette, objects are connected regions of one colour, a shape is the
template of equal area that overlaps its region best. Every score is in 0..1; `score` documents each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from data import DISTANCE
from text import BACKGROUNDS, COLOURS, COUNTS, SHAPES, Scene, said

ATTRIBUTES = ("colour", "shape", "count", "place", "motion")
NEAR = 0.22  # RGB distance up to which a pixel counts as a palette colour
STILL = 6.0  # pixels of travel over the clip up to which a group counts as still
SMALLEST = 60  # pixels of the smallest object
_AREA = {"circle": np.pi, "square": 1.76**2, "triangle": 1.299, "star": 1.3225}  # of circumradius 1
_CENTROID = {"triangle": 0.2}  # below the drawing's origin, in radii


@dataclass(frozen=True)
class Seen:
    """A colour's objects: how many, their shapes in the middle frame, mean centre (x, y) per frame (None: not seen)."""

    count: int
    shapes: tuple[str, ...]
    path: tuple[tuple[float, float] | None, ...]


def nearest(video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Video [T, H, W, 3] in 0..1 -> index of the nearest palette colour (objects, then grounds) and distance to it."""
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()])
    distance = np.linalg.norm(video[..., None, :] - palette, axis=-1)
    return distance.argmin(-1), distance.min(-1)


def read(video: np.ndarray) -> dict[str, Seen]:
    """Every object colour that the video [T, H, W, 3] shows in at least half of its frames."""
    index, distance = nearest(video)
    found = {}
    for i, colour in enumerate(COLOURS):
        masks = [_opened(m) for m in (index == i) & (distance < NEAR)]
        path = tuple(_centre(m) if m.sum() >= SMALLEST else None for m in masks)
        if sum(p is not None for p in path) * 2 < len(path):
            continue
        objects = _objects(masks[len(masks) // 2])
        found[colour] = Seen(len(objects), tuple(_shape(o) for o in objects), path)
    return found


def score(video: np.ndarray, scene: Scene) -> dict[str, float]:
    """Scores of a video [T, H, W, 3] in 0..1 for a scene.

    colour: F1 of the colours seen and asked for. shape: share of the asked objects with the right shape. count: share
    of groups with the right number. place: the relation holds (absent for one group). motion: share of groups that
    move as asked. mean: of those. off: share of pixels far from every palette colour (0 is clean).
    """
    seen = read(video)
    groups = scene.groups
    hits = [seen.get(said(g.colour)) for g in groups]
    counts = [COUNTS.index(said(g.count)) + 1 for g in groups]
    result = {
        "colour": 2 * sum(s is not None for s in hits) / (len(groups) + len(seen)),
        "shape": _mean(_right_shapes(s, said(g.shape), n) for s, g, n in zip(hits, groups, counts)),
        "count": _mean(float(s is not None and s.count == n) for s, n in zip(hits, counts)),
        "motion": _mean(float(s is not None and _motion(s.path) == g.motion) for s, g in zip(hits, groups)),
    }
    if scene.relation is not None:
        both = [s for s in hits if s is not None]
        result["place"] = float(len(both) == 2 and _relation(*both) == scene.relation)
    result["mean"] = _mean(result.values())
    result["off"] = float((nearest(video)[1] > NEAR).mean())
    return result


def _right_shapes(seen: Seen | None, shape: str, count: int) -> float:
    """Share of the objects, asked for or seen, that have the shape."""
    return seen.shapes.count(shape) / max(count, seen.count, 1) if seen else 0.0


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def _opened(mask: np.ndarray) -> np.ndarray:
    """Without edges and specks thinner than three pixels."""
    return ndimage.binary_opening(mask, np.ones((3, 3)))


def _objects(mask: np.ndarray) -> list[np.ndarray]:
    """Connected regions, without those far smaller than the largest."""
    labels, count = ndimage.label(mask)
    areas = ndimage.sum_labels(mask, labels, range(1, count + 1))
    floor = max(SMALLEST, 0.2 * max(areas, default=0))
    return [labels == i + 1 for i, area in enumerate(areas) if area >= floor]


def _centre(mask: np.ndarray) -> tuple[float, float]:
    y, x = ndimage.center_of_mass(mask)
    return x, y


def _shape(region: np.ndarray) -> str:
    """The template of equal area and centre with the largest overlap; "none" below 0.6 intersection over union."""
    cx, cy = _centre(region)
    h, w = region.shape
    x, y = torch.arange(w)[None, None] - cx, torch.arange(h)[None, :, None] - cy
    overlaps = {}
    for shape in SHAPES:
        radius = float(np.sqrt(region.sum() / _AREA[shape]))
        inside = (DISTANCE[shape](x, y + _CENTROID.get(shape, 0.0) * radius, radius) < 0)[0].numpy()
        overlaps[shape] = (inside & region).sum() / (inside | region).sum()
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= 0.6 else "none"


def _motion(path: tuple[tuple[float, float] | None, ...]) -> str:
    """Direction of the way between the first and the last sight."""
    (x0, y0), (x1, y1) = [p for p in path if p is not None][:: max(1, sum(p is not None for p in path) - 1)][:2]
    dx, dy = x1 - x0, y1 - y0
    if max(abs(dx), abs(dy)) < STILL:
        return "still"
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def _relation(a: Seen, b: Seen) -> str:
    """Where a stands as seen from b, by their mean centres over the clip."""
    ca, cb = (np.mean([p for p in s.path if p is not None], axis=0) for s in (a, b))
    dx, dy = ca - cb
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "below" if dy > 0 else "above"
