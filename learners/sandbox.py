"""Runs code that a model wrote, in a process of its own, with limits on time, memory and output.

Where Linux lets a user make namespaces (`unshare` of util-linux), the code has no network, and no
process that it starts outlives it. The code can read the files that this user can read, but not the
environment, which holds keys. For a stronger wall, run the trainer in a container.
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
class ProgramResult:
    """The result of a program.

    Attributes:
        status: exit status; negative for the signal that ended it; None if it took too long.
        output: its standard output, at most a million bytes.
    """

    status: int | None
    output: str


def run_program(program: str, stdin: str = "", timeout_s: float = 5.0) -> ProgramResult:
    """Run a Python program in an empty folder. It has the standard library only.

    Args:
        stdin: text for its standard input.
        timeout_s: longest time it may run, in seconds; also its limit of CPU time, rounded up.
    """

    def limits() -> None:
        seconds = math.ceil(timeout_s)
        # Every process that the program starts has these limits, too.
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        # Also bounds the output, which goes to a file.
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_OUTPUT, MOST_OUTPUT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with (
        tempfile.TemporaryDirectory(prefix="everloop-sandbox-") as folder,
        tempfile.TemporaryFile() as output,
    ):
        process = subprocess.Popen(  # noqa: S603 - this module exists to run it
            [*_jail(), sys.executable, "-I", "-S", "-B", "-c", program],
            cwd=folder,
            # Nothing of our environment, which holds keys.
            env={"LANG": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=limits,
        )
        status: int | None = None
        try:
            process.communicate(stdin.encode(), timeout_s)
            status = process.returncode
        except subprocess.TimeoutExpired:
            # The group, because the program may have started processes of its own.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return ProgramResult(status, output.read(MOST_OUTPUT).decode(errors="replace"))


@cache
def _jail() -> tuple[str, ...]:
    """Return the command that runs another without a network; empty if the system does not allow
    it.
    """
    unshare = which("unshare")
    if unshare is None:
        return ()
    # Tried once: some systems have the program and forbid the namespaces.
    trial = subprocess.run(  # noqa: S603
        [unshare, *JAIL, str(Path("/bin/true"))], capture_output=True, check=False
    )
    return (unshare, *JAIL) if trial.returncode == 0 else ()
