"""The demo: a prompt becomes a video by sketch and render, in a real ComfyUI, beside sketch alone and render alone.

    make demo PROMPT="a red circle moves left above a blue square"

Any Python 3.10 or newer starts it, with nothing installed: it finds or makes a ComfyUI (demo/host.py) and continues in
that host's Python (demo/film.py). The prompt comes in the environment variable PROMPT, so no shell has to read it.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

from host import REPOSITORY, HostError, environ_for, find_or_make, say, tiny_family

HERE = Path(__file__).resolve().parent
ENOUGH_STEPS = 4  # fewer leave no room for both stages and the warm-up


def arguments() -> argparse.Namespace:
    """The command line; everything has a default, the prompt is not in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="sampling steps; default: the workflow's")
    parser.add_argument("--seed", type=int, help="seed of the noise; default: the workflow's")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="where videos, plot, report and table go")
    parser.add_argument("--weights", type=Path, default=HERE / "family" / "weights", help="folder of the tiny family")
    parser.add_argument("--workflow", type=Path, default=REPOSITORY / "demo" / "demo.json")
    asked = parser.parse_args()
    if asked.steps is not None and asked.steps < ENOUGH_STEPS:
        parser.error(f"--steps {asked.steps}: at least {ENOUGH_STEPS}, so that both stages run")
    return asked


def is_whole(file: Path) -> bool:
    """Whether a safetensors file is there and as long as its header says."""
    content = file.read_bytes() if file.is_file() else b""
    begin = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:begin])
        ends = [part["data_offsets"][1] for name, part in header.items() if name != "__metadata__"]
    except (ValueError, AttributeError, TypeError, KeyError, IndexError):
        return False
    return len(content) == begin + max(ends, default=0)


def main() -> int:
    """The command; returns the exit status."""
    folder = arguments().weights
    lacking = [file.name for files in tiny_family(folder).values() for file in files if not is_whole(file)]
    if lacking:
        say(
            f"demo: The tiny family is not complete: {', '.join(lacking)} is missing or cut short in {folder}. "
            "Get the folder back (git checkout -- demo/family/weights) or train it again (make family, some hours)."
        )
        return 1
    try:
        host = find_or_make()
        film = subprocess.Popen([str(host.python), str(HERE / "film.py"), *sys.argv[1:]], env=environ_for(host))
    except HostError as error:
        say(f"demo: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the film too: it stops the server
    signal.signal(signal.SIGTERM, lambda *_: film.terminate())
    return film.wait()


if __name__ == "__main__":
    sys.exit(main())
