"""A sketch record as one safetensors file. Data only: tensors and JSON, nothing that could be executed."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import safetensors
import safetensors.torch
import torch
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from ..checkpoint import read_header
from ..report.data import Report, fault_of
from ..route import RENDER, SKETCH
from .record import NOTED, SAMPLES, STRICT, Call, Schedule, Settings, SketchRecord

VERSION, VERSION_SMALL = 2, 3
READS = ("1", "2", "3")  # 1: with a report of version 1; 3: of a smaller sketch
SUFFIX = ".sketch.safetensors"  # of a file's name
PARTIAL = ".partial"  # after it, while the file is written
LEFT_AFTER = 24 * 3600.0  # seconds after which nobody writes a file any more
MARK = "srdiffusion_hand_over"  # metadata: the version
FACTS = "facts"  # metadata: all that is not a tensor, as JSON
HEADER_LIMIT = 20_000_000  # bytes; a run of 10000 steps stays below
FLOATS = ("F32", "F16", "BF16", "F64")  # the kinds of numbers that a hand-over may hold


# --- writing ---


def write(record: SketchRecord, path: Path) -> None:
    """Write a complete record, first under another name: no half-written file has this one. Raises OSError."""
    _sweep(path.parent)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    version = VERSION if record.sketch_size is None else VERSION_SMALL  # an older pack would take it for a damaged one
    try:
        safetensors.torch.save_file(_tensors(record), partial, {MARK: str(version), FACTS: json.dumps(_facts(record))})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what servers that were killed left half-written. What another server writes now is younger."""
    for left in folder.glob(f".*{SUFFIX}{PARTIAL}"):
        with contextlib.suppress(OSError):  # another server was faster, or the file is not ours to remove
            if time.time() - left.stat().st_mtime > LEFT_AFTER:
                left.unlink()


def _tensors(record: SketchRecord) -> dict[str, torch.Tensor]:
    tensors = {
        "sigmas": record.sigmas,
        "call_sigmas": torch.tensor([call.sigma for call in record.calls], dtype=torch.float64),
        "call_x": torch.stack([call.x for call in record.calls]),
    }
    if not _is_implied(record):
        tensors["latent_image"] = record.latent_image
    for name, tensor in (("noise", record.noise), ("noise_mask", record.noise_mask), ("x", record.x)):
        if tensor is not None:
            tensors[name] = tensor
    for i, call in enumerate(record.calls):
        tensors |= {f"prediction.{i}": call.prediction} | {f"{name}.{i}": value for name, value in call.noted.items()}
    tensors |= {f"schedule.{name}": table for name, table in record.schedule.tables.items()}
    return {name: each.detach().cpu().clone(memory_format=torch.contiguous_format) for name, each in tensors.items()}


def _is_implied(record: SketchRecord) -> bool:
    """Whether the latent is the empty one of the predictions' size: it is then not written."""
    latent, first = record.latent_image, record.calls[0].prediction
    return latent.dtype == torch.float32 and latent.shape == first.shape and not torch.count_nonzero(latent)


def _facts(record: SketchRecord) -> dict[str, Any]:
    return {
        "settings": asdict(record.settings),
        "latent": record.latent_facts,
        "schedule": {"kinds": record.schedule.kinds, "values": record.schedule.values},
        "mask_changes": record.mask_changes,
        "host": record.host,
        "report": json.loads(record.report.to_json()),
    }


# --- reading ---


def _latent_facts(facts: dict[str, Any]) -> dict[str, Any]:
    scale: Any = facts.get("scale")
    _need(type(facts.get("latent format")) is str, "it has no latent format")
    _need(type(scale) in (int, float) and 1e-6 <= scale <= 1e6, "its scale is not from 1e-6 to 1e6")
    return facts


@dataclass
class Facts:
    """All of a file that is not a tensor."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    settings: Settings
    latent: Annotated[dict[str, Any], AfterValidator(_latent_facts)]
    schedule: Schedule
    host: str
    report: dict[str, Any]
    mask_changes: bool = False


READER: TypeAdapter[Facts] = TypeAdapter(Facts)


def check(path: Path) -> Facts:
    """The facts of a hand-over file, from its header alone. Raises ValueError: what is wrong, and what to do."""
    header = read_header(path, HEADER_LIMIT)
    metadata = header.pop("__metadata__", None) or {}
    if MARK not in metadata:
        raise ValueError(
            f"{path.name} is a safetensors file, but not a hand-over. Choose one that Save Hand-over wrote."
        )
    if metadata[MARK] not in READS:
        raise ValueError(
            f"{path.name} is a hand-over of version {metadata[MARK][:20]!r}; this ComfyUI-SRDiffusion reads versions "
            f"{READS[0]} to {READS[-1]}. Update the pack where the file is used, or sketch again."
        )
    if strange := [name for name, each in header.items() if each["dtype"] not in FLOATS]:
        raise damaged(path, f"{strange[0][:40]!r} is not a tensor of floating point numbers")
    try:
        return READER.validate_json(metadata.get(FACTS, ""))
    except ValidationError as error:
        raise damaged(path, f"its {fault_of(error)}") from error


def read(path: Path) -> SketchRecord:
    """Read what ``write`` wrote, everything checked. Raises ValueError as ``check`` does."""
    facts = check(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise damaged(path, "its tensors can't be read") from error
    try:
        return _record(facts, tensors)
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, what: str) -> ValueError:
    """The error for a file with something wrong in it; ``what``: a part of a sentence."""
    return ValueError(f"{path.name} is damaged: {what}. Copy it again, or sketch again.")


def _record(facts: Facts, tensors: dict[str, torch.Tensor]) -> SketchRecord:
    """Raises ValueError with what is wrong, as a part of a sentence."""
    for name, tensor in tensors.items():
        _need(tensor.numel() > 0 and bool(torch.isfinite(tensor).all()), f"{name[:40]!r} is empty or not finite")
    sigmas, levels = (_taken(tensors, name, 1) for name in ("sigmas", "call_sigmas"))
    _need(len(sigmas) > 1 and bool((sigmas >= 0).all()), "its noise levels make no schedule")
    _need(bool((sigmas[1:] <= sigmas[:-1]).all()), "its noise levels rise")
    call_x = _taken(tensors, "call_x", 2)
    _need(call_x.shape == (len(levels), SAMPLES), "its calls do not fit together")
    predictions = [_taken(tensors, f"prediction.{i}") for i in range(len(levels))]
    noted = [
        {name: tensors.pop(f"{name}.{i}") for name in NOTED if f"{name}.{i}" in tensors} for i in range(len(levels))
    ]
    first = predictions[0]
    _need(first.ndim >= 3, f"its predictions have the shape {list(first.shape)}")
    latent = tensors.pop("latent_image", torch.zeros_like(first, dtype=torch.float32))
    for tensor in [latent, *predictions]:  # samplers may change the size of a video, not how many and of what
        _need(tensor.ndim == first.ndim and tensor.shape[:2] == first.shape[:2], "its tensors do not fit together")
    for prediction, others in zip(predictions, noted):
        _need(all(other.shape == prediction.shape for other in others.values()), "its tensors do not fit together")
        _need(len(others) in (0, len(NOTED)), "a prediction has lost a part")
    x, noise_mask, noise = (tensors.pop(name, None) for name in ("x", "noise_mask", "noise"))
    prefix = "schedule."
    tables = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    _need(not tensors, f"nobody knows what {next(iter(tensors), '')[:40]!r} is")
    record = SketchRecord(
        settings=facts.settings,
        report=_report(facts.report, len(sigmas) - 1),
        noise_mask=noise_mask,
        latent_image=latent,
        noise=noise,
        sigmas=sigmas,
        x=x,
        calls=[Call(*call) for call in zip(levels.tolist(), predictions, call_x, noted)],
        latent_facts=facts.latent,
        schedule=replace(facts.schedule, tables=tables),
        mask_changes=facts.mask_changes,
        host=facts.host,
    )
    _need((x is not None) == bool(record.report.hand_overs), "its latent and its report disagree about the hand-over")
    _need(x is None or x.shape[:2] == first.shape[:2], "its tensors do not fit together")
    _need(noise is None or noise.shape == latent.shape, "its tensors do not fit together")
    _need(noise_mask is None or 2 <= noise_mask.ndim <= first.ndim, "its mask has the wrong shape")
    return record


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _taken(tensors: dict[str, torch.Tensor], name: str, dimensions: int | None = None) -> torch.Tensor:
    _need(name in tensors, f"{name} is missing")
    tensor = tensors.pop(name)
    _need(dimensions in (None, tensor.ndim), f"{name} has the shape {list(tensor.shape)}")
    return tensor


def _report(facts: dict[str, Any], steps: int) -> Report:
    report = Report.from_json(json.dumps(facts))
    _need(len(report.hand_overs) <= 1, "its report tells of more than one hand-over")
    for hand_over in report.hand_overs:
        _need(0 < hand_over.after_step < steps, "its hand-over lies outside the run")
        _need(hand_over.to == RENDER, "its report does not hand over to a render")
    _need([stage.name for stage in report.stages] == [SKETCH, RENDER], "its report is not of two stages")
    _need(len(report.steps) <= steps, "its report has more steps than the run")
    return report
