"""Environments of their own for packages that exclude ours, made by uv the first time they are
needed.
"""

import fcntl
import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".peers"


class UnavailableError(Exception):
    """An environment cannot be made here; the message says what is missing."""


def uv() -> str:
    """Return uv, as the Makefile finds it.

    Raises:
        UnavailableError: it is not here.
    """
    found = shutil.which("uv") or shutil.which(str(ROOT / ".uv" / "bin" / "uv"))
    if found is None:
        raise UnavailableError("uv is not here; `make setup` brings it")
    return found


def is_uv_here() -> bool:
    """Return whether uv is here, without which no environment can be made."""
    try:
        uv()
    except UnavailableError:
        return False
    return True


def is_python_here(version: str) -> bool:
    """Return whether a Python of this version is here."""
    try:
        _interpreter(version)
    except UnavailableError:
        return False
    return True


def environment(python: str, *packages: str) -> str:
    """Return the interpreter of an environment with these packages.

    Args:
        python: version, such as `3.12`.

    Raises:
        UnavailableError: uv or this Python is not here.
    """
    interpreter = _interpreter(python)
    name = sha256("\n".join([python, *packages]).encode()).hexdigest()[:12]
    folder = FOLDER / name
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test workers may want the same one at once
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run("venv", "--python", interpreter, str(folder))
            _run("pip", "install", "--python", str(folder / "bin" / "python"), *packages)
            (folder / "complete").touch()
    return str(folder / "bin" / "python")


def _interpreter(version: str) -> str:
    """Return a Python of this version: on the path, or one that pyenv keeps."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [f"python{version}", *map(str, kept.glob(f"{version}.*/bin/python{version}"))]
    for candidate in candidates:
        found = shutil.which(candidate)
        if (
            found
            and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
        ):
            return found
    raise UnavailableError(f"Python {version} is not here")


def _run(*arguments: str) -> None:
    done = subprocess.run([uv(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
