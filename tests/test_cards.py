"""What the README says in figures: of cards, made by its command; of the toy models, as the evidence has it."""

from __future__ import annotations

import re
import sys
from typing import Any

import comfy.model_management
import comfy.sd
import helpers
import pytest
import torch
from hosting import REPOSITORY

sys.path.append(str(REPOSITORY / "bench"))
import cards
import common
import cost

pytestmark = pytest.mark.one_host


def test_the_readme_has_the_table_that_the_command_makes() -> None:
    start, end = cards.MARKS
    told = (REPOSITORY / "README.md").read_text("utf-8").partition(f"{start}\n")[2].partition(f"\n{end}")[0]
    assert told == "\n".join(cards.section())


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_readme_s_figures_of_toy_models_are_in_the_evidence(readme: str) -> None:
    (told,) = re.findall(r"<!-- toy: .*?-->(.*?)<!-- /toy -->", (REPOSITORY / readme).read_text("utf-8"), re.DOTALL)
    rows = [line for line in common.EVIDENCE.read_text("utf-8").splitlines() if line.startswith("|")]
    figures = {f"{int(share) / 100:.2f}" for share in re.findall(r"(\d+) %", told)}
    figures |= set(re.findall(r"([\d.]+)(?:x| 倍)", told))
    assert len(figures) == 10 and figures <= set(re.findall(r"\d\.\d\d", "\n".join(rows)))


def test_a_call_takes_what_the_host_s_own_estimate_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: True)  # as on a GPU
    model: Any = comfy.sd.load_diffusion_model_state_dict(helpers.wan_state_dict(0)).model
    model.manual_cast_dtype = torch.float16
    network = cost.Network("tiny", cost.WAN, helpers.DIM, 2 * helpers.DIM, 1, 1)
    for size in cards.SIZES.values():
        assert cards.call(network, size) == pytest.approx(model.memory_required([1, 16, *size.latent]))


@pytest.mark.parametrize(("card", "precision", "told"), [(12, "fp8", "37 %"), (24, "fp8", "all"), (24, "fp16", "64 %")])
def test_what_a_card_holds_is_what_is_left_beside_one_call(card: int, precision: str, told: str) -> None:
    size = cards.SIZES["480p"]
    free = (card - 1) * 2**30 - cards.call(cost.WAN_14B, size)
    assert cards.told(cards.share(card, cost.WAN_14B, precision, size)) == told
    assert cards.share(card, cost.WAN_14B, precision, size) == pytest.approx(
        min(free / cards.weights(cost.WAN_14B, precision), 1), abs=0.01
    )


def test_a_size_knows_its_latent() -> None:
    size = cost.Size(832, 480, 81)
    assert size.latent == (21, 60, 104) and str(size) == "832x480x81"
