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
        # Else Typer itself would say a mistake, in a frame of several lines.
        status = app(prog_name="everloop", standalone_mode=False)
    except typer.TyperException as error:
        sys.exit(_say_usage(error))
    except typer.Abort:
        sys.exit(1)
    except USER_ERRORS as error:
        typer.echo(f"everloop: {error}", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def _say_usage(error: typer.TyperException) -> int:
    """Say in one line how a command was not meant, and return the exit status."""
    # Typer's own classes have these; they are private.
    said = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    if said := " ".join(said.split()).rstrip("."):  # empty where the help was printed instead
        command = context.command_path if context is not None else "everloop"
        typer.echo(f"everloop: {said[0].lower()}{said[1:]}; see `{command} --help`", err=True)
    return int(getattr(error, "exit_code", 2))
