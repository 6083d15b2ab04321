"""Prompts of the tiny family: words, grammar, and the vectors that the DiTs read.

A scene is one or two groups of equal objects, how they stand to each other, how they move, and a background:

    a red circle moves left above a blue square
    two yellow stars on a black background

Every word becomes one vector that carries the attributes of the group it belongs to, so a word binds to its object
without any attention over the text. The empty prompt is all padding: the unconditional.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import torch

TEXT_DIM = 64
TEXT_TOKENS = 24

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.25),
    "blue": (0.15, 0.30, 0.90),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.65, 0.20, 0.80),
    "cyan": (0.20, 0.80, 0.85),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "black": (0.05, 0.05, 0.05),
    "white": (0.95, 0.95, 0.95),
    "gray": (0.50, 0.50, 0.50),
}
SHAPES = ("circle", "square", "triangle", "star")
COUNTS = ("one", "two", "three")
MOTIONS = ("still", "left", "right", "up", "down")
RELATIONS = ("above", "below", "left", "right")
INVERSE = {"above": "below", "below": "above", "left": "right", "right": "left"}

_COUNT_WORDS = {"a": "one", "an": "one", "one": "one", "two": "two", "three": "three"}
_SHAPE_WORDS = {form: shape for shape in SHAPES for form in (shape, shape + "s")}
_BACKGROUND_WORDS = {"black": "black", "white": "white", "gray": "gray", "grey": "gray"}
_MOVE_WORDS = ("moves", "move", "moving")
_GLUE_WORDS = ("that", "of", "the", "on", "and", "is", "are", "background", "to")
_KINDS = ("count", "colour", "shape", "motion", "relation", "background", "glue", "padding")


@dataclass(frozen=True)
class Group:
    """One to three equal objects. None: the prompt does not say."""

    count: str | None = "one"
    colour: str | None = None
    shape: str | None = None
    motion: str = "still"


@dataclass(frozen=True)
class Scene:
    """`relation` says where groups[0] stands as seen from groups[1]; `background` None: free."""

    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None


@dataclass(frozen=True)
class Word:
    """A known word of a prompt, its kind, and the group it belongs to (None: the background)."""

    text: str
    kind: str
    group: int | None


def said(word: str | None) -> str:
    """An attribute that the scene must have. Raises ValueError for one that its prompt leaves open."""
    if word is None:
        raise ValueError("the scene is not complete: its prompt leaves an attribute open")
    return word


def vocabulary() -> tuple[str, ...]:
    """All words that the family was trained on, sorted."""
    words = {
        *_COUNT_WORDS,
        *COLOURS,
        *_SHAPE_WORDS,
        *_BACKGROUND_WORDS,
        *_MOVE_WORDS,
        *_GLUE_WORDS,
        *RELATIONS,
        *MOTIONS,
    }
    return tuple(sorted(words))


def known_and_unknown(prompt: str) -> tuple[list[str], list[str]]:
    """Split the prompt's words into those that the family knows and those that it will ignore."""
    words = re.findall(r"[^\W_]+", prompt.lower())
    known = set(vocabulary())
    return [w for w in words if w in known], [w for w in words if w not in known]


def parse(prompt: str) -> tuple[Scene, list[Word]]:
    """Read a prompt tolerantly: unknown words are skipped, missing attributes stay open, a third group is ignored."""
    words, _ = known_and_unknown(prompt)
    groups: list[dict[str, str]] = [{}]
    tagged: list[Word] = []
    relation = background = None
    in_background = False
    for i, word in enumerate(words):
        group = len(groups) - 1
        here = groups[group]
        if word in _BACKGROUND_WORDS or word == "background":
            background = _BACKGROUND_WORDS.get(word, background)
            tagged.append(Word(_BACKGROUND_WORDS.get(word, word), "background", None))
            in_background = False
        elif word == "on":
            in_background = True
            tagged.append(Word(word, "glue", None))
        elif in_background:
            tagged.append(Word(word, "glue", None))
        elif word in _MOVE_WORDS or (word in MOTIONS and i and words[i - 1] in (*_MOVE_WORDS, "is", "are")):
            if word in MOTIONS:
                here["motion"] = word
            tagged.append(Word(word if word in MOTIONS else "moves", "motion", group))
        elif word in RELATIONS:
            if len(groups) == 2:
                continue
            relation = word
            tagged.append(Word(word, "relation", group))
            groups.append({})
        elif word == "and" and len(groups) == 1 and "shape" in here:
            groups.append({})
        elif word in _COUNT_WORDS:
            here.setdefault("count", _COUNT_WORDS[word])
            tagged.append(Word(_COUNT_WORDS[word], "count", group))
        elif word in COLOURS:
            here.setdefault("colour", word)
            tagged.append(Word(word, "colour", group))
        elif word in _SHAPE_WORDS:
            here.setdefault("shape", _SHAPE_WORDS[word])
            tagged.append(Word(_SHAPE_WORDS[word], "shape", group))
        else:
            tagged.append(Word(word, "glue", group))
    return Scene(tuple(Group(**g) for g in groups if g), relation, background), tagged


def caption(scene: Scene) -> str:
    """The sentence of a scene, in the grammar of the training captions."""
    sentence = _phrase(scene.groups[0], first=True)
    if len(scene.groups) == 2:
        side = scene.relation if scene.relation in ("above", "below") else f"{scene.relation} of"
        sentence += f" {side} {_phrase(scene.groups[1], first=False)}"
    if scene.background is not None:
        sentence += f" on a {scene.background} background"
    return sentence


def _phrase(group: Group, first: bool) -> str:
    many = group.count != "one"
    phrase = f"{group.count if many else 'a'} {group.colour} {group.shape}{'s' if many else ''}"
    if group.motion != "still":
        verb = "move" if many else "moves"
        phrase += f" {'' if first else 'that '}{verb} {group.motion}"
    return phrase


@lru_cache(maxsize=65536)
def encode(prompt: str) -> torch.Tensor:
    """Prompt -> float32 [TEXT_TOKENS, TEXT_DIM]; the empty prompt is all padding. The result is shared: don't write."""
    scene, words = parse(prompt)
    vectors = [_vector(scene, word) for word in words[:TEXT_TOKENS]]
    vectors += [_vector(scene, Word("", "padding", None))] * (TEXT_TOKENS - len(vectors))
    return torch.stack(vectors)


def _vector(scene: Scene, word: Word) -> torch.Tensor:
    """One-hot attributes of the word's group, of the background and of the word's kind, then a fixed random code."""
    hot = list[float]()
    group = scene.groups[word.group] if word.group is not None and word.group < len(scene.groups) else None
    relation = scene.relation
    if word.group == 1 and relation is not None:
        relation = INVERSE[relation]
    hot += _one_hot(tuple(COLOURS), group and group.colour)
    hot += _one_hot(SHAPES, group and group.shape)
    hot += _one_hot(COUNTS, group and group.count)
    hot += _one_hot(MOTIONS, group and group.motion)
    hot += _one_hot(RELATIONS, relation if group else None)
    hot += _one_hot(tuple(BACKGROUNDS), scene.background if word.kind == "background" else None)
    hot += _one_hot((0, 1), word.group)
    hot += _one_hot(_KINDS, word.kind)
    return torch.cat([torch.tensor(hot), _code(word.text, TEXT_DIM - len(hot))])


def _one_hot(names: tuple, name: object) -> list[float]:
    return [float(n == name) for n in names]


@lru_cache(maxsize=256)
def _code(word: str, size: int) -> torch.Tensor:
    if not word:
        return torch.zeros(size)
    seed = int.from_bytes(word.encode()[:7], "little")
    return 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
