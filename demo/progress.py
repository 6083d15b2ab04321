"""What the person at the terminal sees while the server works: a bar that the server's own messages move."""

import time
from collections.abc import Mapping
from typing import Any

from host import say
from tqdm import tqdm


class Progress:
    """Follows one run by the server's messages; call it with each of them.

    On a terminal a bar shows the node at work and its steps; elsewhere every node that takes steps, or half a second,
    is a line.
    """

    def __init__(self, label: str, graph: Mapping[str, Mapping[str, Any]]) -> None:
        self.seconds: dict[str, float] = {}  # wall time of every node that ran, by its id
        self.steps: dict[str, list[float]] = {}  # seconds a step between two messages; the first step is not in it
        self._label = label
        self._graph = graph
        look = "{desc}{bar} {n_fmt}/{total_fmt}"
        self._bar = tqdm(bar_format=look, dynamic_ncols=True, leave=False, disable=None)  # None: without a terminal
        self._node = ""
        self._since = 0.0
        self._last = (0, 0.0)  # steps done and when, of the message before

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        """Take a message: "executing" names the node that starts, "progress" its steps."""
        if kind == "executing":
            self._end_node()
            self._node, self._since, self._last = data.get("node") or "", time.perf_counter(), (0, 0.0)
            self._bar.reset(1)
            self._bar.set_description_str(f"{self._label}: {self._title():24.24} ")
        elif kind == "progress" and str(data.get("node")) == self._node:
            self._note_steps(int(data["value"]))
            self._bar.n, self._bar.total = int(data["value"]), int(data["max"])
            self._bar.refresh()
        elif kind in ("execution_success", "execution_error", "execution_interrupted"):
            self._end_node()

    def close(self) -> None:
        """End the line."""
        self._end_node()
        self._bar.close()

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
            if self._bar.disable and (takes_steps or took >= 0.5):
                say(f"{self._label}: {self._title()}, {took:.1f} s")
        self._node = ""

    def _title(self) -> str:
        node = self._graph.get(self._node, {})
        return str(node.get("_meta", {}).get("title") or node.get("class_type") or self._node)
