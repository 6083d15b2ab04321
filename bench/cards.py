"""Which precision of Wan 14B fits which card: reckoned, not measured. Writes the table of the README.

    python3 bench/cards.py

A stage needs its weights and what one call takes beside them. The first is counted on the host's own network, the
second is the estimate by which the host decides how much of a model it loads (comfy/model_base.py,
BaseModel.memory_required). What does not fit is streamed from main memory in every step: it works, but slower.
"""

from __future__ import annotations

import math

import common

if __name__ == "__main__":
    common.run_in_host()
import gpu_models  # (first: the host in this process)

# isort: split
import comfy.supported_models
import cost
import torch

MARKS = ("<!-- cards: made by python3 bench/cards.py -->", "<!-- /cards -->")
CARDS = (12, 16, 24, 32)  # GiB
SIZES = {
    "480p": cost.Size(832, 480, 81),
    "720p": cost.Size(1280, 720, 81),
    "720p sketched at 480p": cost.Size(848, 480, 81),
}
BESIDE = 1.0  # GiB that the desktop, CUDA and the host keep
GIB = 1 << 30
GGUF = "GGUF Q4"
GGUF_BYTES = 10.1e9  # of wan2.1-t2v-14b-Q4_K_M.gguf, as its page lists it
TEXT_BYTES = 6.7e9  # of umt5_xxl_fp8_e4m3fn_scaled.safetensors, as its page lists it


def weights(network: cost.Network, precision: str) -> float:
    """Bytes of a DiT. fp8: as fp8_scaled files have it, the blocks' matrices in one byte, the rest in two."""
    if precision == GGUF:
        return GGUF_BYTES
    small = precision == "fp8"
    return sum(
        value.numel() * (1 if small and key.startswith("blocks.") and value.ndim == 2 else 2)
        for key, value in gpu_models.empty(network, torch.float16).named_parameters()
    )


def call(network: cost.Network, size: cost.Size) -> float:
    """Bytes that the host keeps free for one call of one prompt, in 16 bit on a GPU with flash attention."""
    config = comfy.supported_models.WAN21_T2V({"dim": network.dim, "image_model": "wan2.1", "model_type": "t2v"})
    return math.prod(size.latent) * 2 * 0.01 * config.memory_usage_factor * (1 << 20)


def share(card: float, network: cost.Network, precision: str, size: cost.Size) -> float:
    """How much of the weights stays on a card of so many GiB, 0..1."""
    free = (card - BESIDE) * GIB - call(network, size)
    return min(max(math.floor(100 * free / weights(network, precision)) / 100, 0.0), 1.0)


def told(of: float) -> str:
    """A share as the table has it."""
    return "all" if of == 1 else f"{100 * of:.0f} %"


def section() -> list[str]:
    """The table, and what the render and main memory need."""
    kinds = ("fp8", GGUF)
    heads = [f"{size} {kind}" for size in SIZES for kind in kinds]
    out = [f"| card | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for card in CARDS:
        cells = [told(share(card, cost.WAN_14B, kind, size)) for size in SIZES.values() for kind in kinds]
        out.append(f"| {card} GB | {' | '.join(cells)} |")
    render = max(weights(cost.WAN_1_3B, "fp16") + call(cost.WAN_1_3B, size) for size in SIZES.values())
    ram = {kind: (weights(cost.WAN_14B, kind) + weights(cost.WAN_1_3B, "fp16") + TEXT_BYTES) / 1e9 for kind in kinds}
    main = ", ".join(f"{size:.0f} GB with {kind}" for kind, size in ram.items())
    return [
        "How much of the 14B model stays on the card, **reckoned** by ComfyUI's own estimate for 81 frames. The rest "
        "is streamed from main memory in every step, which is slower.",
        "",
        *out,
        "",
        f"The 1.3B model needs {render / GIB:.1f} GB at most. Main memory for all files: {main}.",
    ]


def main() -> None:
    """Write the table."""
    table = section()
    print("\n".join(table))
    if not common.update_readme(common.REPOSITORY / "README.md", MARKS, table):
        raise SystemExit(f"README.md has no place for the table. Put these lines into it: {MARKS[0]} and {MARKS[1]}")


if __name__ == "__main__":
    main()
