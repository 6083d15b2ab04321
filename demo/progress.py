"""What the person at the terminal sees while the server works: a bar that the server's own messages move."""

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

WIDTH = 20  # characters of the bar


class Progress:
    """Follows one run by the server's messages; call it with each of them.

    On a terminal one line shows the node at work and its steps, elsewhere every node that takes steps, or half a second, gets a line.
    """

    def __init__(self, label: str, graph: Mapping[str, Mapping[str, Any]], stream: TextIO | None = None) -> None:
        self.seconds: dict[str, float] = {}  # wall time of every node that ran, by its id
        self.steps: dict[str, list[float]] = {}  # seconds a step between two messages; the first step is not in it
        self._label = label
        self._graph = graph
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._node = ""
        self._since = 0.0
        self._last = (0, 0.0)  # steps done and when, of the message before

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take a message: "executing" names the node that starts, "progress" its steps."""
        if kind == "executing":
            self._end_node()
            self._node, self._since, self._last = data.get("node") or "", time.perf_counter(), (0, 0.0)
            self._draw("")
        elif kind == "progress" and str(data.get("node")) == self._node:
            self._note_steps(int(data["value"]))
            self._draw(bar(int(data["value"]), int(data["max"])))
        elif kind in ("execution_success", "execution_error", "execution_interrupted"):
            self._end_node()

    def close(self) -> None:
        """End the line."""
        self._end_node()
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _note_steps(self, done: int) -> None:
        """Take down what the steps since the last message cost; the server leaves out messages that come too fast."""
        (before, since), now = self._last, time.perf_counter()
        if 0 < before < done:
            self.steps.setdefault(self._node, []).append((now - since) / (done - before))
        self._last = (done, now)

    def _end_node(self) -> None:
        if self._node:
            took = self.seconds[self._node] = time.perf_counter() - self._since
            takes_steps = "steps" in self._graph.get(self._node, {}).get("inputs", {})
            if not self._live and (takes_steps or took >= 0.5):
                self._stream.write(f"{self._label}: {self._title()}, {took:.1f} s\n")
                self._stream.flush()
        self._node = ""

    def _draw(self, text: str) -> None:
        if self._live and self._node:
            line = f"{self._label}: {self._title():24.24} {text}"
            # A line that wraps could not be drawn over.
            self._stream.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
            self._stream.flush()

    def _title(self) -> str:
        node = self._graph.get(self._node, {})
        return str(node.get("_meta", {}).get("title") or node.get("class_type") or self._node)


def bar(value: int, most: int) -> str:
    """A bar and the count, e.g. [######------] 10/20."""
    filled = round(WIDTH * value / max(most, 1))
    return f"[{'#' * filled}{'-' * (WIDTH - filled)}] {value}/{most}"
