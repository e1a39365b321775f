"""The folder of a run: the job in `job.json`, a line of progress for each step, and at the end the
result or the failure.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import psutil
from pydantic import BaseModel, ConfigDict

from learners.training.config import AnyConfig
from schemas.manifests import Manifest

OUTPUT = "output.log"
RUNNING = "running.json"
JOB = "job.json"
PROGRESS = "progress.jsonl"
RESULT = "result.json"
FAILURE = "failure.json"
CASES = "held_out.jsonl"


class Job(BaseModel):
    """The task of a run. The same job gives the same weights.

    Attributes:
        target: logical name of what learns.
        parent: version whose weights the run starts from; None for the base.
        parent_folder: folder of these weights.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    config: AnyConfig
    manifest: Manifest
    parent: str | None = None
    parent_folder: Path | None = None

    @property
    def id(self) -> str:
        """The run's name: a hash of everything that decides its outcome."""
        said = [self.target, self.config.sha256, self.manifest.sha256, self.parent]
        return f"{self.config.method}-{sha256(orjson.dumps(said)).hexdigest()[:16]}"


class Progress(BaseModel):
    """One step of a run."""

    step: int
    steps: int
    metrics: dict[str, float]


class Failure(BaseModel):
    """Why a run failed."""

    reason: str


class RunResult(BaseModel):
    """What a run measured; its weights lie in `model/`."""

    metrics: dict[str, float]


class Case(BaseModel):
    """A held-out prompt with what is expected of its answer."""

    prompt: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    expected: Any


class JobFolder:
    """The files of a run.

    Args:
        folder: made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, document: BaseModel) -> None:
        """Write a document; a reader sees the old one or the new one, never a part."""
        partial = self.folder / f"{name}.partial"
        partial.write_bytes(document.model_dump_json().encode())
        partial.replace(self.folder / name)

    @property
    def job(self) -> Job:
        """The order."""
        return Job.model_validate_json((self.folder / JOB).read_bytes())

    @property
    def result(self) -> RunResult | None:
        """The result, if the run succeeded."""
        path = self.folder / RESULT
        return RunResult.model_validate_json(path.read_bytes()) if path.exists() else None

    @property
    def failure(self) -> Failure | None:
        """Why the run failed, if it left a reason."""
        path = self.folder / FAILURE
        return Failure.model_validate_json(path.read_bytes()) if path.exists() else None

    @property
    def cases(self) -> list[Case]:
        """The held-out prompts of its examples."""
        path = self.folder / CASES
        return (
            [Case.model_validate_json(line) for line in path.read_bytes().splitlines()]
            if path.exists()
            else []
        )

    def progress(self, after: int = 0) -> tuple[list[Progress], int]:
        """Return the steps written after a byte, and the byte to go on from."""
        path = self.folder / PROGRESS
        if not path.exists():
            return [], after
        with path.open("rb") as lines:
            lines.seek(after)
            written = lines.read()
        # The run may be in the middle of a line. The rest is read next time.
        whole = written[: written.rfind(b"\n") + 1]
        return [Progress.model_validate_json(line) for line in whole.splitlines()], after + len(
            whole
        )


class _JobProcess(BaseModel):
    pid: int
    created: float


def start_process(
    folder: JobFolder, module: str, python: Path | None, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start the process of a job, with its output in the job's folder.

    If a killed trainer left a process running for this job, that process is ended first.

    Args:
        module: runs the job of a folder, which is its only argument.
        python: interpreter that has the extra `learn`; None is this process's own.
        environment: variables that lead the process to this installation.
    """
    # Two processes of one job would write to the same files.
    _end_other(folder)
    # The reason of an earlier attempt must not be taken for this one's.
    (folder.folder / FAILURE).unlink(missing_ok=True)
    with (folder.folder / OUTPUT).open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [
                str(python or sys.executable),
                "-m",
                module,
                str(folder.folder.absolute()),
            ],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for whoever started it
        )
    created = psutil.Process(process.pid).create_time()
    folder.write(RUNNING, _JobProcess(pid=process.pid, created=created))
    return process


def _end_other(folder: JobFolder) -> None:
    try:
        left = _JobProcess.model_validate_json((folder.folder / RUNNING).read_bytes())
        process = psutil.Process(left.pid)
        # The system may have given the pid to another process.
        if process.create_time() == left.created:
            process.kill()
            process.wait()
    except (FileNotFoundError, psutil.NoSuchProcess):
        return
