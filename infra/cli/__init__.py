"""The command line: `everloop`."""

import sys

import typer

from infra.cli import (
    control,
    dead_letters,
    evaluation,
    explanation,
    kafka,
    lifecycle,
    pipeline,
    replay,
    topics,
    training,
    views,
)
from infra.cli.options import app
from infra.control.audit import ControlError
from infra.processes.run_file import StartError
from infra.runtime.errors import ConfigError
from infra.runtime.logger import configure_logging
from streams.runners.lag import NotDrainedError
from streams.storage.errors import StreamError

__all__ = [
    "app",
    "control",
    "dead_letters",
    "evaluation",
    "explanation",
    "kafka",
    "lifecycle",
    "main",
    "pipeline",
    "replay",
    "topics",
    "training",
    "views",
]

USER_ERRORS = (ConfigError, StartError, StreamError, NotDrainedError, ControlError)


def main() -> None:
    """Run a command. An error that a user can fix is one line on standard error, with exit status
    2.
    """
    configure_logging()
    try:
        app(prog_name="everloop")
    except USER_ERRORS as error:
        typer.echo(f"everloop: {error}", err=True)
        sys.exit(2)
