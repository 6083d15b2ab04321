"""The texts of the nodes in the page's languages: English says what the schemas say, Chinese says all of it in Chinese.

Where one of these fails, its message is the key in locales/<language>/nodeDefs.json and what belongs there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hosting import REPOSITORY
from test_nodes import node_classes

# Combos whose options are the host's or the user's files, not ours to translate.
NOT_OURS = ("model_name", "attention", "sampler_name", "scheduler", "hand_over")
CHART = "srdiffusion"  # in main.json: the texts of the live chart, by their English (web/words.js)
HAN = re.compile("[\u4e00-\u9fff]")


def read(language: str, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((REPOSITORY / "locales" / language / f"{name}.json").read_text("utf-8"))
    return data


def texts(data: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """("SRModel.inputs.delta.tooltip", text) of every text in a file."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from texts(value, f"{path}.{key}" if path else key)
    else:
        yield path, data


def bare(key: str, text: str) -> str:
    """An English label without what it adds in brackets: "delta" of "delta (sensitivity)"."""
    return text.partition(" (")[0] if key.endswith(".name") and ".inputs." in key else text


def said(schema: Any) -> dict[str, Any]:
    """What a schema says, in the form of nodeDefs.json."""
    inputs: dict[str, Any] = {}
    for i in schema.inputs:
        inputs[i.id] = {"name": i.display_name or i.id, "tooltip": i.tooltip}
        if getattr(i, "options", None) and i.id not in NOT_OURS:
            inputs[i.id]["options"] = {str(option): str(option) for option in i.options}
    outputs = {
        str(n): {"name": o.display_name or o.id} | ({"tooltip": o.tooltip} if o.tooltip else {})
        for n, o in enumerate(schema.outputs)
    }
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": inputs,
        "outputs": outputs,
    }


SCHEMAS = {node.GET_SCHEMA().node_id: said(node.GET_SCHEMA()) for node in node_classes()}


def test_english_is_what_the_schemas_say_nothing_missing_and_nothing_stale() -> None:
    expected, found = dict(texts(SCHEMAS)), dict(texts(read("en", "nodeDefs")))
    assert {key: text for key, text in expected.items() if bare(key, found.get(key, "")) != text} == {}, (
        "add or correct these"
    )
    assert sorted(set(found) - set(expected)) == [], "take these out"


@pytest.mark.parametrize("name", ["nodeDefs", "main"])
def test_both_languages_have_the_same_keys(name: str) -> None:
    english, chinese = dict(texts(read("en", name))), dict(texts(read("zh", name)))
    assert {key: text for key, text in english.items() if key not in chinese} == {}, "translate these"
    assert sorted(set(chinese) - set(english)) == [], "take these out"


def test_descriptions_and_tooltips_are_in_chinese_where_the_page_speaks_chinese() -> None:
    prose = {
        key: text
        for key, text in texts(read("zh", "nodeDefs"))
        if key.endswith(("description", "tooltip", "display_name"))
    }
    assert prose and [key for key, text in prose.items() if not HAN.search(text)] == []


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["nodeDefs", "main"])
def test_no_text_has_a_character_that_the_page_reads_as_a_placeholder(language: str, name: str) -> None:
    said_by_the_page = {key: text for key, text in texts(read(language, name)) if not key.startswith(f"{CHART}.")}
    assert [key for key, text in said_by_the_page.items() if re.search("[{}@|]", text) or not text.strip()] == []


def test_every_text_of_the_chart_is_in_both_languages_and_none_is_stale() -> None:
    sources = "".join(path.read_text("utf-8") for path in sorted((REPOSITORY / "web").glob("*.js")))
    shown = [text.replace("\\'", "'") for text in re.findall(r"say\('((?:[^'\\]|\\.)+)'", sources)]
    english, sources = read("en", "main")[CHART], sources.replace("\\'", "'")
    assert shown and [text for text in shown if text not in english] == [], "add these to srdiffusion in main.json"
    assert [text for text in english if f"'{text}'" not in sources] == [], "take these out"
    assert all(key == text for key, text in english.items()), "the English text is the key"


def test_the_places_in_the_charts_texts_are_the_same_in_chinese() -> None:
    places = re.compile(r"\{\w+\}")
    chinese = read("zh", "main")[CHART]
    assert [text for text in chinese if sorted(places.findall(text)) != sorted(places.findall(chinese[text]))] == []
