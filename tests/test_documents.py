"""What the documents and the help pages say is there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hosting import REPOSITORY, module
from test_nodes import node_classes
from workflow_files import COG_KSAMPLER, TEMPLATES, WAN21_KSAMPLER, workflow

OWN = sorted(node.GET_SCHEMA().node_id for node in node_classes())
DOCUMENTS = [
    "README.md",
    "README.zh.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")),
    *(f"web/docs/{n}.md" for n in OWN),
]


def test_the_readme_s_table_of_pairs_is_the_data() -> None:
    readme = (REPOSITORY / "docs" / "pairs.md").read_text("utf-8")
    for pair in module("srd_core.families").PAIRS:
        assert f"| {pair.sketch} | {pair.render} | {pair.tried} |" in readme


@pytest.mark.parametrize("node_id", OWN)
def test_every_node_has_a_help_page_that_names_each_input_and_output(node_id: str, info: Mapping[str, Any]) -> None:
    page = (REPOSITORY / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
    names = [name for name, _, _ in workflow.specs(info[node_id])] + list(info[node_id]["output_name"])
    assert page.startswith(f"# {info[node_id]['display_name']}\n")
    assert not [name for name in names if not re.search(rf"\b{re.escape(name)}\b", page)]
    for translated in (REPOSITORY / "web" / "docs" / node_id).glob("*.md"):
        text = translated.read_text("utf-8")
        assert not [name for name, _, _ in workflow.specs(info[node_id]) if name not in text], translated.name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_links_to_or_names_is_there(document: str) -> None:
    path = REPOSITORY / document
    text = path.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link and "/actions/" not in link]
    assert not [link for link in links if not (path.parent / link.partition("#")[0]).exists()]
    assert not [name for name in re.findall(r"`(workflows/[^`]+)`", text) if not (REPOSITORY / name).is_file()]


@pytest.mark.parametrize("document", ["README.md", "README.zh.md"])
def test_both_readmes_name_every_workflow_but_those_of_other_samplers(document: str) -> None:
    named = set(re.findall(r"\]\(workflows/([^)]+)\.json\)", (REPOSITORY / document).read_text("utf-8")))
    assert named == set(TEMPLATES) - {WAN21_KSAMPLER, COG_KSAMPLER}
