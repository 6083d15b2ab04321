"""Shapes of the networks that the benches name, and what follows from them: operations of a forward, weights, tokens.

A video DiT works on n tokens, one for each patch of 2 x 2 latent pixels. Its self-attention grows with n squared, all
the rest with n. A multiplication with its addition counts as two operations, as torch's counter has it. Nothing here
knows torch.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def forward_flops(network: Network, size: Size) -> float:
    """Floating-point operations of one forward of the network for one prompt. A guided step is two of them."""
    return _around_blocks(network, size.tokens) + network.layers * _block(network, size.tokens)


def _block(network: Network, n: int) -> float:
    d, text = network.dim, network.text_tokens
    if network.family == COGVIDEOX:  # text and video in one sequence; two modulations, each of both
        s = n + text
        return 8 * s * d * d + 4 * s * d * network.ffn + 24 * COG_TIME * d + 4 * s * s * d
    cross = 4 * n * d * d + 4 * text * d * d + 4 * n * text * d
    return 8 * n * d * d + cross + 4 * n * d * network.ffn + 4 * n * n * d


def _around_blocks(network: Network, n: int) -> float:
    """Embeddings of patches, text and time, and the head."""
    d, text = network.dim, network.text_tokens
    patches = 2 * n * PATCH * d * 2  # in and out
    if network.family == COGVIDEOX:
        return patches + 2 * text * TEXT_DIM * d + 2 * COG_TIME * (d + COG_TIME) + 4 * COG_TIME * d
    return patches + 2 * text * d * (TEXT_DIM + d) + 2 * d * (WAN_FREQUENCIES + d) + 12 * d * d


def weights(network: Network) -> int:
    """Values in the network's matrices, nearly all that it has."""
    d, layer = network.dim, 0
    if network.family == COGVIDEOX:
        layer = 4 * d * d + 2 * d * network.ffn + 12 * COG_TIME * d
        return network.layers * layer + d * (2 * PATCH + TEXT_DIM + 3 * COG_TIME) + COG_TIME * COG_TIME
    layer = 8 * d * d + 2 * d * network.ffn
    return network.layers * layer + d * (2 * PATCH + TEXT_DIM + WAN_FREQUENCIES + 8 * d)
