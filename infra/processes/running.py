"""What a supervisor leaves in its data folder about itself, for other commands to find."""

from pathlib import Path

import orjson
import psutil

RUN_FILE = "run.json"


class StartError(Exception):
    """An installation did not come up; the message says which part and where its log is."""


def running(data_dir: Path) -> dict[str, object] | None:
    """Return what the supervisor of a data folder wrote about itself, None where none runs."""
    try:
        document: dict[str, object] = orjson.loads((data_dir / RUN_FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return document if psutil.pid_exists(int(str(document["pid"]))) else None
