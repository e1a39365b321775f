"""Commands about dead letters: list, show, replay."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from infra.cli.options import AsJson, app, console, print_json, print_table
from infra.cli.views import existing_log
from infra.config.settings import load_settings
from infra.runtime.errors import ConfigError
from schemas.dead_letters import DeadLetterEvent
from streams.processing.dead_letters import dead_letters, put_back

letters_app = typer.Typer(
    no_args_is_help=True, help="Look at what could not be processed, and put it back."
)
app.add_typer(letters_app, name="dead-letters")


@letters_app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List all dead letters, the oldest first."""
    with existing_log(load_settings()) as log:
        rows = [_row(number, event) for number, event in dead_letters(log)]
    if as_json:
        print_json(rows)
        return
    print_table(
        "Dead letters",
        ("number", "time", "topic", "processor", "error"),
        [(r["number"], r["time"], r["topic"], r["processor"], r["error"]) for r in rows],
    )


@letters_app.command()
def show(
    number: Annotated[int, typer.Argument(help="As in `list`.")],
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: its place, its headers, its bytes and the reason."""
    with existing_log(load_settings()) as log:
        ((_, event),) = _pick(list(dead_letters(log)), [number])
    letter = event.payload
    document = _row(number, event) | {
        "offset": letter.offset,
        "partition": letter.partition,
        "attempts": letter.attempts,
        "key": _text(letter.key),
        "headers": [[header.name, _text(header.value)] for header in letter.headers],
        "value": _text(letter.value),
    }
    if as_json:
        print_json(document)
        return
    print_table(f"Dead letter {number}", ("what", "value"), list(document.items()))


@letters_app.command()
def replay(
    numbers: Annotated[
        list[int] | None, typer.Argument(help="As in `list`; none with --all.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Put every dead letter back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put dead letters back on the topics they came from. They stay here too: this is a log."""
    if bool(numbers) == everything:
        raise ConfigError("name the dead letters by their numbers, or use --all")
    with existing_log(load_settings()) as log:
        letters = list(dead_letters(log))
        count = put_back(log, letters if numbers is None else _pick(letters, numbers))
    if as_json:
        print_json({"replayed": count})
    else:
        console.print(f"Put {count} records back.")


def _pick(
    letters: Sequence[tuple[int, DeadLetterEvent]], numbers: Sequence[int]
) -> list[tuple[int, DeadLetterEvent]]:
    known = dict(letters)
    if unknown := [number for number in numbers if number not in known]:
        raise ConfigError(
            f"there is no dead letter {unknown[0]}; `everloop dead-letters list` shows them"
        )
    return [(number, known[number]) for number in numbers]


def _row(number: int, event: DeadLetterEvent) -> dict[str, Any]:
    letter = event.payload
    return {
        "number": number,
        "time": event.time.isoformat(),
        "topic": letter.topic,
        "processor": letter.processor,
        "error": f"{letter.error_type}: {letter.error_message}",
    }


def _text(value: bytes | None) -> str | None:
    # The bytes may be no text; that may be why the record is here.
    return None if value is None else value.decode("utf-8", "backslashreplace")
