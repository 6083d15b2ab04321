"""What is known of each model family, as data. Names are the ones artists see on the model cards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """A sketch and a render that share a latent."""

    latent_format: str  # class name of the host's latent format
    sketch: str
    render: str
    tried: str  # how far this project has tried it


TINY = "tiny weights in the real host; real weights not tried here"
LOADED = "shares the latent by the host's own tables; not tried here"
OWN_TEXT = f"{LOADED}; the render has a text encoder of its own: connect render_positive and render_negative"

PAIRS = (
    Pair("Wan21", "Wan2.1 T2V 14B", "Wan2.1 T2V 1.3B", TINY),
    Pair("Wan21", "Wan2.2 A14B high noise", "Wan2.1 T2V 1.3B", TINY),
    Pair("Wan21", "Wan2.1 VACE 14B", "Wan2.1 VACE 1.3B", LOADED),
    Pair("Wan21", "Wan2.1 Fun InP/Control 14B", "Wan2.1 Fun InP/Control 1.3B", TINY),
    Pair("Wan21", "Cosmos-Predict2 14B", "Cosmos-Predict2 2B", LOADED),
    Pair("LTXV", "LTX-Video 13B", "LTX-Video 2B", LOADED),
    Pair("HunyuanVideo", "Kandinsky 5 Pro", "Kandinsky 5 Lite", LOADED),
    Pair("SD3", "SD3.5 Large", "SD3.5 Medium", LOADED),
    Pair("Flux2", "Flux.2 dev", "Flux.2 Klein", OWN_TEXT),
)

# Latent formats that people try to pair and can't, with the reason.
ALONE = {
    "Wan22": "Wan 2.2 5B has a VAE of its own (48 channels) and no smaller relative",
}


def advice(latent_format: str) -> str:
    """What to use with a sketch of this latent format, as a sentence."""
    if latent_format in ALONE:
        return f"{ALONE[latent_format]}: use it alone."
    pairs = [f"{p.sketch} -> {p.render}" for p in PAIRS if p.latent_format == latent_format]
    return f"Pairs that fit this sketch: {'; '.join(pairs)}." if pairs else "Take both models from one family."
