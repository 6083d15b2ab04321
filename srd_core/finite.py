"""Whether predictions are finite, asked without making a GPU wait.

To read a value off a GPU is to wait until the GPU has done all that it was given. So the answer travels to main memory
behind that work, and is read once it is there: mostly while the next step is on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Answer:
    """Whether a tensor is finite: ``value`` holds it once ``event`` has happened (None: it is there)."""

    value: torch.Tensor
    event: torch.cuda.Event | None


def ask(tensor: torch.Tensor) -> Answer:
    """Whether all values of ``tensor`` (any shape and dtype) are finite. Does not wait for a CUDA or ROCm device; others have
    no such messages, so their answer may wait when it is read."""
    value = torch.isfinite(tensor).all()
    if not value.is_cuda:
        return Answer(value, None)
    with torch.cuda.device(value.device):
        event = torch.cuda.Event()
        value = value.to("cpu", non_blocking=True)  # to page-locked memory, or it would wait
        event.record()
    return Answer(value, event)


@dataclass
class FiniteGuard:
    """The predictions of a run whose answers are on their way, oldest first."""

    _asked: deque[tuple[Answer, Callable[[], str]]] = field(default_factory=deque)

    def watch(self, prediction: torch.Tensor, complaint: Callable[[], str]) -> None:
        """Ask whether ``prediction`` is finite; ``complaint`` will be called for what to say if it is not."""
        self._asked.append((ask(prediction), complaint))

    def check(self, wait: bool = False) -> None:
        """Raises RuntimeError with its complaint for the first prediction that is known not to be finite. All but the newest
        are known: a device that has two calls to do is waited for until it has one, which keeps it busy meanwhile. ``wait``:
        all are known."""
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
