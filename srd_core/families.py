"""What is known of each model family, as data. Names are the ones artists see on the model cards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """A sketch and a render that share a latent."""

    latent_format: str  # class name of the host's latent format
    model: str  # how the names of the host's model classes begin
    sketch: str
    render: str
    tried: str  # how far this project has tried it


TINY = "tiny weights in the real host; real weights not tried here"
OWN_TEXT = f"{TINY}; the render has its own text encoder: connect render_positive and render_negative"

PAIRS = (
    Pair("Wan21", "WAN", "Wan2.1 T2V 14B", "Wan2.1 T2V 1.3B", TINY),
    Pair("Wan21", "WAN", "Wan2.2 A14B high noise", "Wan2.1 T2V 1.3B", TINY),
    Pair("Wan21", "WAN", "Wan2.1 VACE 14B", "Wan2.1 VACE 1.3B", TINY),
    Pair("Wan21", "WAN", "Wan2.1 Fun InP 14B", "Wan2.1 Fun InP 1.3B", TINY),
    Pair("Wan21", "WAN", "Wan2.1 Fun Control 14B", "Wan2.1 Fun Control 1.3B", TINY),
    Pair("Wan21", "CosmosPredict2", "Cosmos-Predict2 14B", "Cosmos-Predict2 2B", TINY),
    Pair("LTXV", "LTXV", "LTX-Video 13B", "LTX-Video 2B", TINY),
    Pair("HunyuanVideo", "Kandinsky5", "Kandinsky 5 Pro", "Kandinsky 5 Lite", TINY),
    Pair("SD3", "SD3", "SD3.5 Large", "SD3.5 Medium", TINY),
    Pair("Flux2", "Flux2", "Flux.2 dev", "Flux.2 Klein", OWN_TEXT),
    Pair("CogVideoX1_5", "CogVideoX", "CogVideoX 5B", "CogVideoX 2B", TINY),
)

# How a CogVideoX knows where in the video a patch lies.
SINCOS = "sincos"  # sines added to the patch embeddings
ROTARY = "rotary"  # rotations on a grid that is resized to the training size and cropped
SLICE = "slice"  # rotations by whole numbers


@dataclass(frozen=True)
class CogVideoX:
    """A text-to-video model of this family. Numbers: the repositories' transformer, scheduler and VAE config.json."""

    name: str
    heads: int  # of 64 channels
    positions: str
    latent_scale: float  # the latents that the transformer sees are the VAE's times this
    snr_shift: float  # snr_shift_scale of its scheduler: alpha / (shift + (1 - shift) alpha)
    frame_patch: int = 1  # latent frames in one patch


COGVIDEOX = (
    CogVideoX("CogVideoX 2B", 30, SINCOS, latent_scale=1.15258426, snr_shift=3.0),
    CogVideoX("CogVideoX 5B", 48, ROTARY, latent_scale=0.7, snr_shift=1.0),
    CogVideoX("CogVideoX 1.5 5B", 48, SLICE, latent_scale=0.7, snr_shift=1.0, frame_patch=2),
)

# Latent formats that people try to pair and can't: no other model shares the VAE.
ALONE = {"Wan22": "Wan 2.2 5B"}

SHOWN = 3  # pairs in a message

# What else to do with a model of these latent formats before it can be paired.
FIRST = dict.fromkeys(
    ("CogVideoX", "CogVideoX1_5"), " Other loaders' MODELs go through CogVideoX Sampling Fix first, both of them."
)


def advice(latent_format: str, model: str, render_format: str) -> str:
    """What to use instead of a render of that format, in one or two sentences. Names are the host's classes."""
    unpaired = [ALONE[name] for name in (latent_format, render_format) if name in ALONE]
    alone = f"{unpaired[0]} cannot be paired with any model. " if unpaired else ""
    if latent_format in ALONE:
        return f"{alone}Use it alone."
    fit = [p for p in PAIRS if p.latent_format == latent_format and model.startswith(p.model)]
    shown = "; ".join(f"{p.sketch} -> {p.render}" for p in fit[:SHOWN])
    fitting = f"Pairs that fit this sketch: {shown}." if fit else "Take both models from one family."
    return alone + fitting + FIRST.get(latent_format, "")
