"""The run file: a supervisor writes into its data folder what runs, for other commands."""

from pathlib import Path

import orjson
from pydantic import BaseModel

from infra.runtime.pids import is_running

RUN_FILE = "run.json"


class StartError(Exception):
    """An installation did not come up; the message says which part and where its log is."""


class RunningProcess(BaseModel):
    """One supervised process.

    Attributes:
        restarts: how often it died and was started again.
    """

    pid: int
    restarts: int
    log: Path


class Running(BaseModel):
    """A running installation.

    Attributes:
        pid: of the supervisor.
        created: when that process began, in seconds since the epoch; tells it from a later one with
            its pid.
        urls: where each server answers, by process.
    """

    pid: int
    created: float
    urls: dict[str, str]
    processes: dict[str, RunningProcess]

    @property
    def alive(self) -> bool:
        """Whether the supervisor has not ended yet."""
        return is_running(self.pid, self.created)

    def write(self, data_dir: Path) -> None:
        """Write it into a data folder. A reader sees the old one or the new one, never a part."""
        partial = data_dir / f"{RUN_FILE}.partial"
        partial.write_bytes(orjson.dumps(self.model_dump(mode="json")))
        partial.replace(data_dir / RUN_FILE)


def running_installation(data_dir: Path) -> Running | None:
    """Return the installation that runs on a data folder; None if none does."""
    try:
        found = Running.model_validate_json((data_dir / RUN_FILE).read_bytes())
    except FileNotFoundError:
        return None
    return found if found.alive else None
