"""The results files of the speed bench: sessions (machine, versions, command, date) and the lines measured in them."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Data = dict[str, list[Line]]
HAND_OVER = "a hand-over after which the render comes from main memory"
# What must be the same of two sessions before their seconds may be put together.
SETTING = ("card", "device", "machine", "host", "versions", "threads", "clock", "recipe")


def setting(session: Line) -> tuple[Any, ...]:
    """The facts of a session that its seconds depend on."""
    return tuple(session.get(name) for name in SETTING)


def read(path: Path) -> Data:
    """The content of a results file. Raises ValueError for any other file."""
    try:
        data = json.loads(path.read_text("utf-8"))
        sessions, lines = data["sessions"], data["lines"]
        sound = len(data) == 2 and all(0 <= line["session"] < len(sessions) and line["kind"] and line["case"] for line in lines)
        sound = sound and all(isinstance(session["case"], str) for session in sessions)
    except (ValueError, TypeError, KeyError):
        sound = False
    if not sound:
        raise ValueError(f"{path.name} does not hold results of the speed bench. Name another by --results.")
    return {"sessions": sessions, "lines": lines}


def parts(data: Data) -> list[Data]:
    """The sessions of each setting by themselves, with their lines."""
    found: dict[tuple[Any, ...], Data] = {}
    for i, session in enumerate(data["sessions"]):
        part = found.setdefault(setting(session), {"sessions": [], "lines": []})
        part["lines"] += [{**line, "session": len(part["sessions"])} for line in data["lines"] if line["session"] == i]
        part["sessions"].append(session)
    return list(found.values())


def default_path(folder: Path, card: str) -> Path:
    """The newest results file of a card in the folder; today's, speed-<card>-<date>.json, where there is none."""
    start = f"speed-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}-"
    dated = re.compile(re.escape(start) + r"\d{4}-\d\d-\d\d\.json")
    names = [path.name for path in folder.glob("speed-*.json") if dated.fullmatch(path.name)]
    return folder / max(names, default=f"{start}{datetime.date.today().isoformat()}.json")


class Store:
    """A results file, written anew after each line."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError for what is none of these results, OSError for a file that can't be read or a folder that can't
        be made."""
        if path.is_dir():
            raise ValueError(f"{path} is a folder. Name a file by --results.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._written = path, time_written(path)
        self.data: Data = read(path) if path.exists() else {"sessions": [], "lines": []}

    @property
    def lines(self) -> list[Line]:
        return self.data["lines"]

    @property
    def session(self) -> Line:
        """The present one."""
        return self.data["sessions"][-1]

    def begin(self, **session: Any) -> None:
        """A new session; the lines that follow are its own."""
        self.data["sessions"].append(session)

    def add(self, kind: str, **line: Any) -> None:
        """One measurement. Raises OSError when another command has written to the file meanwhile."""
        if time_written(self.path) != self._written:
            raise OSError(f"Another command writes to {self.path.name} too. Start this one again after it.")
        self.lines.append({"kind": kind, "session": len(self.data["sessions"]) - 1, **line})
        partial = self.path.with_suffix(".part")
        partial.write_text(compact(self.data), "utf-8")
        partial.replace(self.path)
        self._written = time_written(self.path)

    def count(self, **wanted: Any) -> int:
        """How many lines have these values, of the sessions with the present one's setting."""
        return sum(wanted.items() <= line.items() for line in self.alike()["lines"])

    def alike(self) -> Data:
        """The sessions with the present one's setting, and their lines."""
        return next(part for part in parts(self.data) if setting(part["sessions"][0]) == setting(self.session))


def time_written(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def compact(data: Data) -> str:
    """JSON with one line for each session and each measurement."""
    block = [f' "{name}": [\n' + ",\n".join("  " + json.dumps(item) for item in items) + "\n ]" for name, items in data.items()]
    return "{\n" + ",\n".join(block) + "\n}\n"
