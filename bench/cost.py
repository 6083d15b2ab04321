"""Shapes of the networks and of the videos that the benches name. Nothing here knows torch."""

from __future__ import annotations

from dataclasses import dataclass

WAN, COGVIDEOX = "wan", "cogvideox"
TEXT_DIM = 4096  # of the text encoders, UMT5-XXL and T5-XXL
CHANNELS = 16  # of the latent
VAE_SPACE, VAE_TIME = 8, 4  # pixels and frames that one latent pixel stands for


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
