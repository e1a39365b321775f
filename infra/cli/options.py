"""What all commands share: the application, its global options, and how results are printed."""

import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from infra.runtime.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Agents that improve from their own production traffic.",
)
console = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


@app.callback()
def everloop(
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for everything Everloop writes (default .everloop).")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="Configuration file (default everloop.toml), or several separated as in PATH; what"
            " an earlier one says counts. A package that has an everloop.toml is one too."
        ),
    ] = None,
) -> None:
    """Take the options that come before the command; they reach every process through the
    environment.
    """
    if data_dir is not None:
        # The environment, not a variable: processes that a command starts must read the same.
        os.environ["EVERLOOP_DATA_DIR"] = str(data_dir)
    if config is not None:
        os.environ["EVERLOOP_CONFIG"] = config


def moment(said: str, option: str, instead: str = "") -> datetime:
    """Return the time that an option names (ISO 8601; without an offset it is this machine's).

    Args:
        instead: what else the option takes, for the message, such as "`now` or ".

    Raises:
        ConfigError: it names none.
    """
    try:
        return datetime.fromisoformat(said).astimezone()
    except ValueError as error:
        raise ConfigError(
            f"{option} is {said!r}; it must be {instead}a time like 2026-01-31T12:00"
        ) from error


def print_json(document: Any) -> None:
    """Print one JSON document."""
    if isinstance(document, BaseModel):
        document = document.model_dump(mode="json")
    typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2, default=str).decode())


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title, title_justify="left", header_style="bold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def progress_bar() -> Progress:
    """Return a progress bar on standard error, so that standard output has only results."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        # Standard output carries the results, which other programs may read.
        console=Console(stderr=True),
    )


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
