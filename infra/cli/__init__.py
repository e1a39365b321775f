"""The command line: `everloop`."""

import sys

import typer

from agents.tasks import TaskFileError
from infra.cli import (
    dead_letters,
    evaluating,
    explaining,
    kafka,
    learning,
    looking,
    operating,
    pipeline,
    running,
    topics,
    training,
)
from infra.cli.options import app
from infra.config import ConfigError
from infra.logging import configure_logging
from infra.operating import OperatingError
from infra.processes.running import StartError
from infra.progress import NotDrainedError
from streams.errors import StreamError

__all__ = [
    "app",
    "dead_letters",
    "evaluating",
    "explaining",
    "kafka",
    "learning",
    "looking",
    "main",
    "operating",
    "pipeline",
    "running",
    "topics",
    "training",
]

USER_ERRORS = (ConfigError, TaskFileError, StartError, StreamError, NotDrainedError, OperatingError)


def main() -> None:
    """Run a command. What a user can mend is one line on standard error and exit status 2."""
    configure_logging()
    try:
        app(prog_name="everloop")
    except USER_ERRORS as error:
        typer.echo(f"everloop: {error}", err=True)
        sys.exit(2)
