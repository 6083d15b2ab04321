"""The demo: a prompt becomes a video by sketch and render, in a real ComfyUI, beside sketch alone and render alone.

    make demo PROMPT="a red circle moves left above a blue square"

Any Python 3.10 or newer starts it, with nothing installed: it finds or makes a ComfyUI (demo/host.py) and continues in
that host's Python (demo/film.py). The prompt comes in the environment variable PROMPT, so no shell has to read it.
"""

import sys

if sys.version_info < (3, 10):
    raise SystemExit(
        "This needs Python 3.10 or newer, this is %d.%d. "
        "Install a newer Python and name it: make PYTHON=python3.12 demo" % sys.version_info[:2]
    )

import argparse
import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from host import REPOSITORY, Host, HostError, find_or_make, say

HERE = Path(__file__).resolve().parent
WEIGHTS = ("tiny_wan_sketch.safetensors", "tiny_wan_render.safetensors", "tiny_wan_vae.safetensors")
ENOUGH_STEPS = 4  # fewer leave no room for both stages and the warm-up


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line; everything has a default, the prompt is not in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="sampling steps; default: the workflow's")
    parser.add_argument("--seed", type=int, help="seed of the noise; default: the workflow's")
    parser.add_argument("--output", type=Path, default=HERE / "output", help="where videos, plot, report and table go")
    parser.add_argument("--weights", type=Path, default=HERE / "family" / "weights", help="folder of the tiny family")
    parser.add_argument("--workflow", type=Path, default=REPOSITORY / "demo" / "demo.json")
    asked = parser.parse_args(words)
    if asked.steps is not None and asked.steps < ENOUGH_STEPS:
        parser.error(f"--steps {asked.steps}: at least {ENOUGH_STEPS}, so that both stages run")
    return asked


def missing_weights(folder: Path) -> str:
    """What to do when files of the family are not there; empty when they are."""
    missing = [name for name in WEIGHTS if not (folder / name).is_file()]
    if not missing:
        return ""
    return (
        f"The tiny family is not complete: {', '.join(missing)} not found in {folder}. "
        "Get the folder back (git checkout -- demo/family/weights) or train it again (make family, some hours)."
    )


def go_on_in(host: Host, asked: argparse.Namespace) -> int:
    """Run demo/film.py in the host's Python; returns its exit status. Ctrl-C reaches it too: it stops the server."""
    flags = ["-E", "-s"] if host.source == "package" else []  # a made host must not see packages from elsewhere
    facts = {"path": str(host.path), "python": str(host.python), "version": host.version, "source": host.source}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
    command = [str(host.python), *flags, str(HERE / "film.py"), json.dumps(facts), json.dumps(settings)]
    film = subprocess.Popen(command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: film.terminate())
    return film.wait()


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    asked = arguments_of(words)
    if problem := missing_weights(asked.weights):
        say(f"demo: {problem}")
        return 1
    try:
        return go_on_in(find_or_make(), asked)
    except HostError as error:
        say(f"demo: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
