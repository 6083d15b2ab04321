"""The cache in which hosts are made: its folder, its lock, environments in it and pip. Standard library only."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from client import HostError

Log = Callable[[str], None]

GIGABYTES_FREE = 8  # for the first host: 6 GB stay, the rest is pip's temporary files
COMPLETE = "srd-complete.json"  # put last into a made environment; without it the folder is a leftover
ELSE = (
    "Without a connection: set COMFYUI_PATH to the folder of a ComfyUI you have (and COMFYUI_PYTHON to the interpreter "
    "that runs it), or connect once; what was made is kept in the cache."
)


def say(line: str) -> None:
    """Tell the person at the terminal; on stderr, so that what a command prints can be read by another."""
    print(line, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Where made hosts are kept: $SRD_CACHE, else the user's cache folder. Not created here."""
    if os.environ.get("SRD_CACHE"):
        return Path(os.environ["SRD_CACHE"]).expanduser().absolute()
    variable, default = ("LOCALAPPDATA", "~/AppData/Local") if os.name == "nt" else ("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get(variable) or default).expanduser().absolute() / "comfyui-srdiffusion"


@contextlib.contextmanager
def locked(log: Log) -> Iterator[None]:
    """Hold the cache's lock: one process makes, the others wait and then find it made.

    It ends with the process, and with the pip that a killed process leaves behind: pip inherits it (not on Windows).
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    with open(cache_folder() / "lock", "a+b") as file:
        os.set_inheritable(file.fileno(), os.name != "nt")
        if not try_lock(file.fileno()):
            log(f"Another process is making a host in {cache_folder()}; waiting for it.")
            while not try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def try_lock(descriptor: int) -> bool:
    """Take the lock if it is free. The system gives it back when the file is closed, also after a crash."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Where to write a file or folder that shall exist whole or not at all: it becomes `path` when the block ends."""
    partial = path.with_name(f".{path.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_dir():  # an interrupted one left it
        shutil.rmtree(partial)
    yield partial
    partial.replace(path)


def check_space() -> None:
    """Raises HostError where the cache has no room for a host."""
    free = shutil.disk_usage(cache_folder()).free / 1e9
    if free < GIGABYTES_FREE:
        raise HostError(
            f"{cache_folder()} has {free:.1f} GB free, a host needs {GIGABYTES_FREE} GB. "
            "Make room, set SRD_CACHE to a folder on another disk, or set COMFYUI_PATH to a ComfyUI you have."
        )


def python_in(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def is_complete(environment: Path) -> bool:
    """Whether an environment is whole, not what an interrupted run left."""
    return (environment / COMPLETE).is_file() and python_in(environment).is_file()


@contextlib.contextmanager
def new_environment(folder: Path, over: Path | None = None) -> Iterator[Path]:
    """The interpreter of a new virtual environment, which counts as whole when the block ends well.

    It lies in its final place (environments can't be moved), over what an interrupted run left there. With pip, or over
    another environment, whose packages and pip it sees.
    """
    try:
        venv.create(folder, clear=True, symlinks=os.name != "nt", with_pip=over is None)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HostError(
            f"This Python ({sys.executable}) cannot make a virtual environment; on Debian and Ubuntu: "
            f"apt install python3-venv\n{error}\n{getattr(error, 'output', '')}"
        ) from error
    if over:
        (_packages_of(folder) / "srd_torch.pth").write_text(f"{_packages_of(over)}\n", "utf-8")
    yield python_in(folder)
    (folder / COMPLETE).touch()


def _packages_of(environment: Path) -> Path:
    """The folder in which a virtual environment's packages lie."""
    return next(environment.glob("Lib/site-packages" if os.name == "nt" else "lib/python3*/site-packages"))


def ask(python: Path, code: str) -> str:
    """What that interpreter prints for a line of code. Raises HostError if it cannot be run or the line fails."""
    command = [str(python), "-c", code]
    try:
        asked = subprocess.run(command, check=False, env=clean_environ(), capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{python} cannot be run: {error}") from error
    if asked.returncode:
        raise HostError(f"{python} cannot be used:\n{asked.stderr[-1500:]}")
    return asked.stdout.strip()


def clean_environ() -> dict[str, str]:
    """The environment for our own interpreters: nothing in it may lead to packages or a target outside them."""
    unwanted = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONNOUSERSITE": "1", "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def pip(python: Path, arguments: Sequence[str], what: str, log: Log) -> None:
    """Run pip, its output in a log file, a line on the screen now and then. Raises HostError with the log's end."""
    file = cache_folder() / "logs" / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}-pip-{arguments[0]}.log")
    file.parent.mkdir(parents=True, exist_ok=True)
    log(f"Getting {what}; log: {file}")
    what, started = what.split(" (")[0], time.monotonic()
    command = [str(python), "-m", "pip", *arguments, "--progress-bar", "off"]
    with open(file, "wb") as output:
        process = subprocess.Popen(
            command,
            env=clean_environ(),
            stdout=output,
            stderr=subprocess.STDOUT,
            close_fds=os.name == "nt",  # see locked
        )
    try:
        while process.returncode is None:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                log(f"  still getting {what}, {time.monotonic() - started:.0f} s")
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        tail = "\n".join(file.read_text("utf-8", "replace").splitlines()[-15:])
        raise HostError(f"Could not get {what}. {ELSE}\nThe end of {file}:\n{tail}")


def packages(folder: Path, python: Path, wanted: Sequence[str], what: str, log: Log) -> Path:
    """`folder` with what pip installs into it, got first if need be."""
    if not folder.is_dir():
        with locked(log):
            if not folder.is_dir():
                with aside(folder) as partial:
                    pip(python, ["install", "--target", str(partial), *wanted], what, log)
    return folder
