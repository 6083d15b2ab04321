"""The words of everything that people read: plain English, and one word for the change of model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hosting import REPOSITORY

PROSE = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "web/docs/*.md",
    "web/*.js",
    "locales/en/*.json",
    "workflows/*.json",
]
CODE = ["srd_core/**/*.py", "nodes/*.py", "demo/*.py", "bench/*.py"]
LITERARY = {
    "is no X (is not a X)": r"(?<![Tt]here )(?<!is there )\b(?:is|are|was|were) no [a-z]",
    "goes on (continues)": r"\b(?:goes|went) on\b",
    "at hand": r"\bat hand\b",
    "of its own (its own)": r"\bof (?:its|their) own\b",
    "put right (corrected)": r"\bput right\b",
    "lets go (frees)": r"\blets? go\b",
}
# To users the change of model is the switch. A hand-over lies between SR Sketch and SR Render: these speak of it.
HALVES = (
    "SRSketch",
    "SRRender",
    "SRSaveHandOver",
    "SRLoadHandOver",
    "several_machines",
    "sketch_once",
    "CHANGELOG",
    "CONTRIBUTING",
)
HAND_OVER = r"\bhand(?:s|ed)? over\b|\b[Hh]and-overs?\b(?! file)"
NAMES = re.compile(r"(?:Save|Load) Hand-over|SR hand-over|[\w/.]*hand_?over[\w/.]*", re.IGNORECASE)


def files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in REPOSITORY.glob(pattern))


def found(pattern: str, path: Path) -> list[str]:
    """Where a pattern stands in a file, names of nodes, ids and files left out, each with what is around it."""
    text = NAMES.sub("_", path.read_text("utf-8"))
    return [text[max(m.start() - 30, 0) : m.end() + 30] for m in re.finditer(pattern, text)]


@pytest.mark.parametrize("banned", LITERARY.values(), ids=LITERARY)
def test_no_text_has_a_literary_phrase(banned: str) -> None:
    assert {path.name: places for path in files(*PROSE, *CODE) if (places := found(banned, path))} == {}


def test_texts_for_users_call_the_change_of_model_a_switch() -> None:
    prose = [
        path for path in files(*PROSE) if not any(half in path.name for half in HALVES) and path.name != "nodeDefs.json"
    ]
    assert {path.name: places for path in prose if (places := found(HAND_OVER, path))} == {}


@pytest.mark.parametrize("text", ["2 5B is no partner", "the run goes on", "a VAE of its own"])
def test_the_phrases_are_seen_where_they_are(text: str) -> None:
    assert any(re.search(banned, text) for banned in LITERARY.values())
