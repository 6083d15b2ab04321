"""What a run costs, by arithmetic: floating-point operations of a forward, and seconds from a few measured steps.

A video DiT works on n tokens, one for each patch of 2 x 2 latent pixels. Its self-attention grows with n squared, all
the rest with n; so the seconds of a step at any size follow from two rates, and the seconds of a run from its steps. A
multiplication with its addition counts as two operations, as torch's counter has it. Nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

WAN, COGVIDEOX = "wan", "cogvideox"
TEXT_DIM = 4096  # of the text encoders, UMT5-XXL and T5-XXL
CHANNELS = 16  # of the latent
PATCH = 4 * CHANNELS  # values of a patch: 1 x 2 x 2 latent pixels
VAE_SPACE, VAE_TIME = 8, 4  # pixels and frames that one latent pixel stands for
WAN_FREQUENCIES = 256  # width of Wan's sinusoidal time embedding
COG_TIME = 512  # width of CogVideoX's time embedding


@dataclass(frozen=True)
class Network:
    """The shape of one text-to-video DiT."""

    name: str
    family: str  # wan or cogvideox
    dim: int
    ffn: int
    layers: int
    heads: int

    @property
    def text_tokens(self) -> int:
        """To which the host pads every prompt."""
        return 512 if self.family == WAN else 226


WAN_14B = Network("Wan 2.1 14B", WAN, 5120, 13824, 40, 40)
WAN_1_3B = Network("Wan 2.1 1.3B", WAN, 1536, 8960, 30, 12)
COGVIDEOX_5B = Network("CogVideoX 5B", COGVIDEOX, 3072, 4 * 3072, 42, 48)
COGVIDEOX_2B = Network("CogVideoX 2B", COGVIDEOX, 1920, 4 * 1920, 30, 30)


@dataclass(frozen=True)
class Size:
    """A video: pixels and frames."""

    width: int
    height: int
    frames: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """From "832x480x81". Raises ValueError with a sentence for anything else, and for sizes that make no patches."""
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
            raise ValueError(f"{text!r} is not a size. Write WIDTHxHEIGHTxFRAMES, for example 832x480x81.")
        size = cls(*map(int, parts))
        step = 2 * VAE_SPACE
        if size.width % step or size.height % step or (size.frames - 1) % VAE_TIME:
            raise ValueError(
                f"{text} does not divide into patches: width and height must be multiples of {step}, frames 1 more than "
                f"a multiple of {VAE_TIME}."
            )
        return size

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"

    @property
    def latent(self) -> tuple[int, int, int]:
        """(frames, height, width) of the latent."""
        return (self.frames - 1) // VAE_TIME + 1, self.height // VAE_SPACE, self.width // VAE_SPACE

    @property
    def tokens(self) -> int:
        """Patches of the video."""
        frames, height, width = self.latent
        return frames * (height // 2) * (width // 2)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, by how they grow with the number of tokens."""

    linear: float = 0.0  # matrix products with weights, cross-attention: with n
    attention: float = 0.0  # self-attention: with n squared

    @property
    def total(self) -> float:
        return self.linear + self.attention

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention)

    def times(self, factor: float) -> Flops:
        """That many of them."""
        return Flops(self.linear * factor, self.attention * factor)


def forward_flops(network: Network, size: Size) -> Flops:
    """One forward of the network for one prompt. A guided step is two of them."""
    return _around_blocks(network, size.tokens) + _block(network, size.tokens).times(network.layers)


def reused_flops(network: Network, size: Size) -> Flops:
    """One forward that reuses TeaCache's residual: no transformer block runs."""
    return _around_blocks(network, size.tokens)


def _block(network: Network, n: int) -> Flops:
    d, text = network.dim, network.text_tokens
    if network.family == COGVIDEOX:  # text and video in one sequence; two modulations, each of both
        s = n + text
        return Flops(8 * s * d * d + 4 * s * d * network.ffn + 24 * COG_TIME * d, 4 * s * s * d)
    cross = 4 * n * d * d + 4 * text * d * d + 4 * n * text * d
    return Flops(8 * n * d * d + cross + 4 * n * d * network.ffn, 4 * n * n * d)


def _around_blocks(network: Network, n: int) -> Flops:
    """Embeddings of patches, text and time, and the head."""
    d, text = network.dim, network.text_tokens
    patches = 2 * n * PATCH * d * 2  # in and out
    if network.family == COGVIDEOX:
        return Flops(patches + 2 * text * TEXT_DIM * d + 2 * COG_TIME * (d + COG_TIME) + 4 * COG_TIME * d)
    return Flops(patches + 2 * text * d * (TEXT_DIM + d) + 2 * d * (WAN_FREQUENCIES + d) + 12 * d * d)


def weights(network: Network) -> int:
    """Values in the network's matrices, nearly all that it has."""
    d, layer = network.dim, 0
    if network.family == COGVIDEOX:
        layer = 4 * d * d + 2 * d * network.ffn + 12 * COG_TIME * d
        return network.layers * layer + d * (2 * PATCH + TEXT_DIM + 3 * COG_TIME) + COG_TIME * COG_TIME
    layer = 8 * d * d + 2 * d * network.ffn
    return network.layers * layer + d * (2 * PATCH + TEXT_DIM + WAN_FREQUENCIES + 8 * d)


def balance(network: Network) -> float:
    """The number of tokens at which self-attention costs as much as all the rest of a block."""
    low, high = 1.0, 1e9
    for _ in range(80):
        middle = (low + high) / 2
        block = _block(network, round(middle))
        low, high = (low, middle) if block.attention > block.linear else (middle, high)
    return high


# --- runs ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Which steps a run has. Means over many runs may be fractions."""

    steps: int
    sketch: float  # of them by the sketch; the rest by the render
    sketch_reused: float = 0.0  # of the sketch's, by a cache
    render_reused: float = 0.0  # of the render's

    def __post_init__(self) -> None:
        """Raises ValueError for a plan with more steps in a part than in the whole."""
        if not (0 <= self.sketch_reused <= self.sketch <= self.steps and 0 <= self.render_reused <= self.render):
            raise ValueError(f"{self} has more steps in a part than in the whole.")

    @property
    def render(self) -> float:
        return self.steps - self.sketch


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of one step of each model, and of the hand-over."""

    sketch: float
    render: float
    sketch_reused: float = 0.0  # a step that a cache reused
    render_reused: float = 0.0
    hand_over: float = 0.0


def run_seconds(plan: Plan, step: StepSeconds) -> float:
    """Of a whole run. ``plan.sketch`` between two whole numbers gives the mean of runs of both."""
    handed_over = 0 < plan.sketch < plan.steps
    return (
        (plan.sketch - plan.sketch_reused) * step.sketch
        + plan.sketch_reused * step.sketch_reused
        + (plan.render - plan.render_reused) * step.render
        + plan.render_reused * step.render_reused
        + step.hand_over * handed_over
    )


def speed_up(plan: Plan, step: StepSeconds) -> float:
    """Over the sketch alone with as many steps."""
    return plan.steps * step.sketch / run_seconds(plan, step)


def run_flops(
    plan: Plan, sketch: Network, render: Network, size: Size, forwards: tuple[int, int] = (2, 2), skips_all: bool = False
) -> Flops:
    """Of a whole run; ``forwards`` of the sketch and of the render in a step: 2 with guidance, 1 at cfg 1. ``skips_all``: a
    reused step runs nothing of the network (EasyCache), not even what lies around its blocks."""
    total = Flops()
    for network, steps, reused, each in (
        (sketch, plan.sketch, plan.sketch_reused, forwards[0]),
        (render, plan.render, plan.render_reused, forwards[1]),
    ):
        total += forward_flops(network, size).times(each * (steps - reused))
        total += Flops() if skips_all else reused_flops(network, size).times(each * reused)
    return total


# --- from measured steps to other sizes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Operations a second that a machine reaches with one network."""

    linear: float
    attention: float

    def seconds(self, flops: Flops) -> float:
        """How long these operations take."""
        return flops.linear / self.linear + flops.attention / self.attention

    def times(self, factor: float) -> Rates:
        """Of a machine so many times as fast."""
        return Rates(self.linear * factor, self.attention * factor)


def fit_rates(measured: Sequence[tuple[Flops, float]]) -> Rates:
    """The rates at which the measured (operations, seconds) come out best, in relative error.

    One measurement, or several that no two positive rates explain, give one rate for both kinds. Raises ValueError for
    none, and for seconds that are not positive.
    """
    if not measured or any(not seconds > 0 for _, seconds in measured):
        raise ValueError("Rates need at least one measured step, with more than 0 seconds.")
    # seconds = a linear + b attention, each equation divided by its seconds; normal equations of 2 x 2.
    rows = [(flops.linear / seconds, flops.attention / seconds) for flops, seconds in measured]
    xx, xy, yy = (sum(p * q for p, q in pairs) for pairs in ([(x, x) for x, _ in rows], rows, [(y, y) for _, y in rows]))
    x, y = sum(x for x, _ in rows), sum(y for _, y in rows)
    determinant = xx * yy - xy * xy
    if len(measured) > 1 and determinant > 1e-9 * xx * yy:
        a, b = (x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant
        if a > 0 and b > 0:
            return Rates(1 / a, 1 / b)
    squares, total = sum((x + y) ** 2 for x, y in rows), x + y
    return Rates(squares / total, squares / total)


def step_seconds(
    rates: tuple[Rates, Rates], sketch: Network, render: Network, size: Size, forwards: tuple[int, int] = (2, 2)
) -> StepSeconds:
    """Seconds of a step of both models at ``size``, from the rates of (sketch, render)."""
    sketch_forward, sketch_reused, render_forward, render_reused = (
        rate.seconds(count(network, size)) * each
        for network, rate, each in zip((sketch, render), rates, forwards)
        for count in (forward_flops, reused_flops)
    )
    return StepSeconds(sketch_forward, render_forward, sketch_reused, render_reused)


def longer(size: Size, factor: float) -> Size:
    """The same picture with about ``factor`` times the latent frames."""
    frames = max(round(size.latent[0] * factor), 1)
    return replace(size, frames=VAE_TIME * (frames - 1) + 1)
