"""Everloop as its users run it: the installed command, and its processes one by one."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_S

COMMAND = str(Path(sys.executable).parent / "everloop")


EXAMPLE = "research_society"


def environment(data_dir: Path) -> dict[str, str]:
    """Return the environment of an installation with short leases and free ports: of the example,
    unless EVERLOOP_CONFIG says otherwise.
    """
    config = os.environ.get("EVERLOOP_CONFIG", EXAMPLE)
    ours = {
        "EVERLOOP_CONFIG": config,
        "EVERLOOP_DATA_DIR": str(data_dir),
        "EVERLOOP_WORKER__LEASE_S": "1",
        "EVERLOOP_GATEWAY__PORT": "0",
        "EVERLOOP_ANALYTICS__PORT": "0",
    }
    if EXAMPLE in config:
        ours["EVERLOOP_APPS__SIMULATOR__PORT"] = "0"
    return os.environ | ours


def everloop(
    data_dir: Path,
    *arguments: str,
    more: Mapping[str, str] | None = None,
    timeout_s: float = PATIENCE_S,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with `more` in its environment."""
    return subprocess.run(
        [COMMAND, *arguments],
        env=environment(data_dir) | dict(more or {}),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def everloop_json(data_dir: Path, *arguments: str, timeout_s: float = PATIENCE_S) -> Any:
    """Run a command that must succeed, with --json, and return its one document."""
    done = everloop(data_dir, *arguments, "--json", timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def started(data_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a command and return at once."""
    return subprocess.Popen(
        [COMMAND, *arguments],
        env=environment(data_dir),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Part(AbstractContextManager["Part"]):
    """One process of an installation, such as `worker`, outside its supervisor."""

    def __init__(self, name: str, data_dir: Path, more: Mapping[str, str] | None = None) -> None:
        self._command = [sys.executable, "-m", "infra.processes.entry", name]
        self._environment = environment(data_dir) | dict(more or {})
        self._output = (data_dir / f"{name}.log").open("ab")
        self._process = self._start()

    def kill_and_restart(self) -> None:
        """Kill it with SIGKILL, as the machine's memory killer would, and start it again."""
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        try:
            assert self._process.wait(20) in (0, -15)
        finally:
            self._process.kill()
            self._process.wait()
            self._output.close()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )


def assert_one_line(done: Any, says: str) -> None:
    """Check that a command said in one line what was wrong, and that it exited 2."""
    assert done.returncode == 2, done
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("everloop: ")
    assert says in lines[0]
