"""Runs code that a model wrote: in a process of its own, for a short time, with little memory and
no network.

Where Linux lets a user make namespaces (`unshare` of util-linux), the code has no network and no
process outlives it. It can read what this user can read, but not the environment, where keys are:
for more, run what trains in a container.
"""

import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which

MOST_OUTPUT = 1_000_000
MOST_MEMORY = 512 * 2**20
JAIL = ("--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")


@dataclass(frozen=True)
class Ran:
    """What became of a program.

    Attributes:
        status: its exit status, negative for the signal that ended it; None where it took too long.
        output: what it wrote to standard output, up to a million bytes.
    """

    status: int | None
    output: str


def run_program(program: str, given: str = "", timeout_s: float = 5.0) -> Ran:
    """Run a Python program, which has the standard library only, in an empty folder.

    Args:
        given: its standard input.
    """

    def limits() -> None:
        seconds = math.ceil(timeout_s)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_OUTPUT, MOST_OUTPUT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with (
        tempfile.TemporaryDirectory(prefix="everloop-sandbox-") as folder,
        tempfile.TemporaryFile() as output,
    ):
        process = subprocess.Popen(  # noqa: S603 - to run it is what this is for
            [*_jail(), sys.executable, "-I", "-S", "-B", "-c", program],
            cwd=folder,
            env={"LANG": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=limits,
        )
        status: int | None = None
        try:
            process.communicate(given.encode(), timeout_s)
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it has started too
            process.wait()
        output.seek(0)
        return Ran(status, output.read(MOST_OUTPUT).decode(errors="replace"))


@cache
def _jail() -> tuple[str, ...]:
    """Return what to put before a command so that it runs without a network; nothing where that is
    not allowed.
    """
    unshare = which("unshare")
    if unshare is None:
        return ()
    tried = subprocess.run(  # noqa: S603
        [unshare, *JAIL, str(Path("/bin/true"))], capture_output=True, check=False
    )
    return (unshare, *JAIL) if tried.returncode == 0 else ()
