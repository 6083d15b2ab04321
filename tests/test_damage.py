"""Damaged reports and hand-overs: whatever is in them, they are refused by a sentence or can still be used."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import safetensors
import safetensors.torch
import torch
from drawn import LONG, cases, finite, wild
from hosting import module
from hypothesis import given
from runs import Report, handover, route

record_module, data_module = module("srd_core.handover.record"), module("srd_core.report.data")
figures, plot = module("srd_core.report.figures"), module("srd_core.report.plot")
summarize = module("srd_core.report.text").summarize
Step, HandOver, StageReport = data_module.Step, data_module.HandOver, data_module.StageReport
SKETCH, RENDER = route.SKETCH, route.RENDER
VERSION_1 = (Path(__file__).parent / "data" / "report_version_1.json").read_text("utf-8")

pytestmark = LONG


# --- the report -------------------------------------------------------------------------------------------------------

NAMES = [SKETCH, RENDER, "third"]
named, words, maybe = st.sampled_from(NAMES), st.text(max_size=12), st.one_of(st.none(), finite())
count, size, seconds = st.integers(0, 99), st.integers(0, 1 << 40), finite(0, 1e3)
shape, shares = st.lists(st.integers(1, 99), max_size=5), st.lists(finite(0, 1), max_size=4)
optional = {
    "growth": st.lists(finite(0, 9), max_size=14),
    "reuse": st.lists(st.booleans(), max_size=12),
    "first_step": st.integers(0, 9),
    "form": st.sampled_from(["e", "e0"]),
}
plans: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}), st.fixed_dictionaries({"threshold": finite(0, 1), "table": words}, optional=optional)
)
stages = [st.builds(StageReport, st.just(name), words, count, seconds, seconds, plans, size, size) for name in NAMES]
steps = st.builds(Step, count, seconds, named, maybe, maybe, maybe, maybe, reused=st.booleans())
hand_overs = st.builds(HandOver, count, named, words, finite(), finite(0, 100), maybe, maybe, seconds, fade=shares)
reports = st.builds(
    Report,
    status=st.sampled_from(["not run", "running", "done", "interrupted", "failed"]),
    stages=st.tuples(*stages).map(list),
    switch=st.fixed_dictionaries({"mode": st.sampled_from(route.MODES), "delta": finite(0, 1)}),
    **dict.fromkeys(("earliest", "latest", "given_steps", "render_steps"), count),
    **dict.fromkeys(("sampler", "sampler_node", "error"), words),
    **dict.fromkeys(("shape", "small_shape"), shape),
    notes=st.lists(words, max_size=2),
    sigmas=st.lists(seconds, max_size=12),
    steps=st.lists(steps, max_size=8),
    hand_overs=st.lists(hand_overs, max_size=3),
    total_seconds=seconds,
    device_bytes=size,
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), wild, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def usable(report: Any, picture: bool = False) -> None:
    """Whatever is taken for a report can be shown and written again."""
    assert isinstance(summarize(report), str)
    shown = figures.figures(report)
    assert shown["speed_up"] is None or shown["speed_up"] >= 0
    json.dumps(shown, allow_nan=False)
    assert Report.from_json(report.to_json()) == report
    if picture:
        plot.draw(report)


@cases(1000)
@given(reports)
def test_every_report_survives_json_and_can_be_summed_up(report: Any) -> None:
    assert Report.from_json(report.to_json()) == report
    usable(report)


@cases(40, slow=True)
@given(reports)
def test_every_report_can_be_drawn(report: Any) -> None:
    plot.draw(report)


def changed(at: int, char: str) -> str:
    return VERSION_1[:at] + char + VERSION_1[at + 1 :]


at = st.integers(0, len(VERSION_1) - 1)
texts = st.one_of(
    st.text(max_size=60),
    json_values.map(json.dumps),
    st.sampled_from(["[" * 10**6, "9" * 10**6, '{"version": 1, "sigmas": [' + "1," * 10**6 + "1]"]),
    at.map(lambda end: VERSION_1[:end]),
    st.builds(changed, at, st.characters()),
    st.builds(
        lambda version, value: json.dumps({"version": version, "steps": value}), st.sampled_from([1, 2]), json_values
    ),
)


@cases(1500, slow=True)
@given(texts)
def test_text_that_is_no_report_is_refused_with_a_sentence(text: str) -> None:
    try:
        usable(Report.from_json(text))
    except ValueError as error:
        assert "report" in str(error) and len(str(error)) < 1000


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in JSON data, outermost first."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path] * bool(path) + [p for key, value in inner for p in places(value, (*path, key))]


def damage(facts: Any, data: st.DataObject) -> None:
    """Put one value of any kind anywhere into JSON data, or take one out."""
    *path, last = data.draw(st.sampled_from(places(facts)))
    for key in path:
        facts = facts[key]
    if data.draw(st.booleans()):
        facts[last] = data.draw(json_values)
    else:
        del facts[last]


@cases(1000, slow=True)
@given(st.data())
def test_a_damaged_report_of_version_1_is_refused_with_a_sentence_or_still_usable(data: st.DataObject) -> None:
    damaged = json.loads(VERSION_1)
    damage(damaged, data)
    try:
        usable(Report.from_json(json.dumps(damaged)))
    except ValueError as error:
        assert "report" in str(error)


@cases(1500, slow=True)
@given(reports, st.data())
def test_a_damaged_report_is_refused_with_a_sentence_or_still_usable(report: Any, data: st.DataObject) -> None:
    damaged = asdict(report)
    damage(damaged, data)
    try:
        usable(Report.from_json(json.dumps(damaged)), picture=data.draw(st.integers(0, 40)) == 40)
    except ValueError as error:
        assert "report" in str(error)


def test_every_field_of_a_report_is_drawn_from() -> None:
    """A field that is added to the report without its draws here stays at its default and is only seen as damaged."""
    told = """status stages switch earliest latest sampler sampler_node shape sigmas steps hand_overs total_seconds
    notes error version given_steps render_steps device_bytes small_shape"""
    assert {f.name for f in fields(Report)} == set(told.split())


# --- the hand-over's file ---------------------------------------------------------------------------------------------


seeds = st.integers(0, 2**64 - 1)
indices = st.one_of(st.none(), st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=3))


@st.composite
def records(draw: st.DrawFn) -> Any:
    """A finished sketch of tiny tensors: every sampler's kinds of calls, with a mask or not, handed over or not."""
    shape = tuple(draw(st.lists(st.integers(1, 2), min_size=3, max_size=5)))
    steps, ndim = draw(st.integers(2, 6)), len(shape)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))

    def tensor(*size: int) -> torch.Tensor:
        return torch.randn(size or shape, generator=generator).to(dtype if not size else torch.float32)

    names = draw(st.sampled_from([(), record_module.NOTED]))
    calls = [
        record_module.Call(
            draw(finite(0, 1e3)), tensor(), tensor(record_module.SAMPLES), {name: tensor() for name in names}
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    handed_over = draw(st.booleans())
    hand_over = HandOver(draw(st.integers(1, steps - 1)), RENDER, "step", 0.5, 50.0)
    switch = {"mode": "step", "switch_step": hand_over.after_step}
    return record_module.SketchRecord(
        draw(
            st.builds(
                record_module.Settings, seeds, words, words, st.integers(1, 10_000), seconds, finite(0, 1), indices
            )
        ),
        Report(
            status="done",
            stages=[StageReport(SKETCH, calls=len(calls)), StageReport(RENDER)],
            switch=switch,
            hand_overs=[hand_over] * handed_over,
        ),
        noise_mask=draw(st.sampled_from([None, torch.ones((1,) * (ndim - 1)), torch.zeros((1,) * ndim)])),
        latent_image=draw(st.sampled_from([torch.zeros(shape), torch.full(shape, 0.25)])),
        sigmas=torch.linspace(1, 0, steps + 1),
        x=tensor() if handed_over else None,
        calls=calls,
        mask_changes=draw(st.booleans()),
        latent_facts={"latent format": draw(words), "scale": draw(finite(0.0625, 64))},
        schedule=record_module.Schedule(
            draw(st.lists(words, max_size=2)), draw(st.dictionaries(words, finite(), max_size=2)), {"sigmas": tensor(3)}
        ),
        host=draw(words),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hand_overs")


def same(one: Any, other: Any) -> bool:
    """Whether two parts of a record are equal, tensors to the bit and the type."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, dict)):
        keys = range(len(one)) if isinstance(one, list) else one
        return type(one) is type(other) and len(one) == len(other) and all(same(one[key], other[key]) for key in keys)
    return same(vars(one), vars(other)) if hasattr(one, "__dict__") else one == other


@cases(300, slow=True)
@given(record=records())
def test_every_hand_over_survives_its_file_to_the_bit(record: Any, folder: Path) -> None:
    path = folder / f"whole{handover.SUFFIX}"
    handover.write(record, path)
    assert same(handover.read(path), record)


@cases(1200, slow=True)
@given(record=records(), data=st.data())
def test_a_damaged_hand_over_is_refused_with_a_sentence_or_still_makes_sense(
    record: Any, data: st.DataObject, folder: Path
) -> None:
    """One fact of any kind anywhere, one that is gone, or a tensor that is gone, of another shape, type or name."""
    path = folder / f"damaged{handover.SUFFIX}"
    handover.write(record, path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    if data.draw(st.booleans()):
        facts = json.loads(metadata[handover.FACTS])
        damage(facts, data)
        metadata[handover.FACTS] = json.dumps(facts)
    else:
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(name)
        shapes = [tensor.flatten(), tensor[None], tensor[:0], torch.cat([tensor, tensor])]
        values = [None, tensor * math.nan, tensor.double(), tensor.int(), -tensor]
        other = data.draw(st.sampled_from(shapes + values))
        if other is not None:
            tensors[data.draw(st.sampled_from([name, name, name, *sorted(tensors), "another"]))] = other
    safetensors.torch.save_file(tensors, path, metadata)
    try:
        found = handover.read(path)
    except ValueError as error:
        assert str(error).startswith(path.name) and str(error).endswith("."), error
    else:
        handover.write(found, path)
        assert same(handover.read(path), found) and 0 < found.steps < len(found.sigmas)
        usable(found.report)
