"""Whether predictions are finite, asked without making a GPU wait.

To read a value off a GPU is to wait until the GPU has done all that it was given. So the answer travels to main memory
behind that work, and is read once it is there: mostly while the next step is on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch


class Event(Protocol):
    """What tells that an answer is there, as torch's events of a device do."""

    def query(self) -> bool:
        """Whether it has happened."""
        ...

    def synchronize(self) -> None:
        """Wait for it."""
        ...


class NextLook:
    """For devices whose messages are not used here: an answer counts as there at the second look, a call later.

    Reading it waits for the work up to its question only.
    """

    def __init__(self) -> None:
        self._looked = False

    def query(self) -> bool:
        """False at the first look."""
        looked, self._looked = self._looked, True
        return looked

    def synchronize(self) -> None:
        """Reading the answer will wait."""


@dataclass
class Answer:
    """Whether a tensor is finite: ``value`` holds it once ``event`` has happened (None: it is there)."""

    value: torch.Tensor
    event: Event | None


def ask(tensor: torch.Tensor) -> Answer:
    """Whether all values of ``tensor`` (any shape and dtype) are finite.

    Waits for no device: the answer of a CUDA or ROCm device comes to main memory by itself, that of another (MPS, XPU,
    NPU) stays there until it is read.
    """
    value = torch.isfinite(tensor).all()
    if _kind(value) == "cpu":
        return Answer(value, None)
    if not value.is_cuda:
        return Answer(value, NextLook())
    with torch.cuda.device(value.device):
        event = torch.cuda.Event()
        value = value.to("cpu", non_blocking=True)  # to page-locked memory, or it would wait
        event.record()
    return Answer(value, event)


def _kind(tensor: torch.Tensor) -> str:
    """Of the device, as torch calls it."""
    return tensor.device.type


@dataclass
class FiniteGuard:
    """The predictions of a run whose answers are on their way, oldest first."""

    _asked: deque[tuple[Answer, Callable[[], str]]] = field(default_factory=deque)

    def watch(self, prediction: torch.Tensor, complaint: Callable[[], str]) -> None:
        """Ask whether ``prediction`` is finite; ``complaint`` will be called for what to say if it is not."""
        self._asked.append((ask(prediction), complaint))

    def check(self, wait: bool = False) -> None:
        """Raises RuntimeError with its complaint for the first prediction that is known not to be finite.

        All but the newest are known: a device that has two calls to do is waited for until it has one, which keeps it
        busy meanwhile. ``wait``: all are known.
        """
        while self._asked:
            answer, complaint = self._asked[0]
            if answer.event is not None and not answer.event.query():
                if len(self._asked) == 1 and not wait:
                    return
                answer.event.synchronize()
            self._asked.popleft()
            if not answer.value:
                raise RuntimeError(complaint())

    def forget(self) -> None:
        """The run is over."""
        self._asked.clear()


def complaint(stage: str, place: str, model: str, attention: str, weights: str) -> str:
    """What to say of a prediction that is not finite, and what to try. All arguments are as a message names them."""
    advice = "Look for a broken LoRA, text encoder or model file."
    if "float8" in weights:
        advice = "Set weight_dtype to default, or use a file that is made for fp8 (fp8_scaled)."
    if attention not in ("pytorch", "basic", "split", "sub_quad"):
        advice = f"Set attention to pytorch on the {stage}'s loader. If that does not help: {advice}"
    return (
        f"The {stage}'s prediction has values that are not finite (NaN or infinity) at {place}, so the run is stopped. "
        f"Model: {model}, attention: {attention}, weights: {weights}. {advice}"
    )
