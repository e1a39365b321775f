"""Every command line of the documents names what is there; those that need nothing are run."""

import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from infra.cli import app
from infra.config.settings import is_known, load_settings
from streams.storage.embedded.log import EmbeddedLog
from tests.docs.pages import PAGES, ROOT, Block, blocks_in, code_spans, name_of

ASSIGNMENT = re.compile(r"^[A-Z_]+=")
RUN = (
    "audit",
    "batches",
    "checkpoints",
    "config",
    "doctor",
    "keys create",
    "keys list",
    "routes list",
    "trainings",
)
"""Commands that answer at once on an installation that has seen nothing."""


def _lines(block: Block) -> list[str]:
    """Return the commands of a block, which stand after `$ `, with continued lines joined."""
    text = block.text.replace("\\\n", " ")
    return [line[2:] for line in text.splitlines() if line.startswith("$ ")]


LINES = [
    pytest.param(line, id=f"{block}: {line.partition('#')[0].strip()}")
    for block in blocks_in("console")
    for line in _lines(block)
]


def check(line: str) -> None:
    """Fail where a command line names something that is not there."""
    words = shlex.split(line, comments=True)
    while words and ASSIGNMENT.match(words[0]):
        _check_variable(words.pop(0))
    program, *arguments = words
    _PROGRAMS[program](arguments)


def _check_variable(assignment: str) -> None:
    name = assignment.partition("=")[0]
    if name.startswith("EVERLOOP_"):
        assert is_known(name), f"{name} names no setting"


def _check_everloop(arguments: list[str]) -> None:
    command, rest, context = _command(arguments)
    command.make_context(command.name, rest, parent=context)


def _command(arguments: list[str]) -> tuple[Any, list[str], Any]:
    """Return the command that arguments lead to, what is left for it, and its parent's context."""
    group: Any = typer.main.get_command(app)
    context: Any = None
    while True:
        context = group.context_class(group, info_name="everloop", parent=context)
        _, rest, _ = group.make_parser(context).parse_args(list(arguments))
        _, command, arguments = group.resolve_command(context, rest)
        if not hasattr(command, "resolve_command"):
            return command, arguments, context
        group = command


def _check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for argument in arguments:
        assert ASSIGNMENT.match(argument) or argument in targets, f"no target {argument}"


def _check_uv(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for option, value in pairwise(arguments):
        assert option != "--extra" or value in extras, f"no extra {value}"


def _check_docker(arguments: list[str]) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    profiles = {name for service in services.values() for name in service.get("profiles", [])}
    for option, value in pairwise(arguments):
        assert option != "--profile" or value in profiles, f"no profile {value}"


def _check_pip(arguments: list[str]) -> None:
    for package in arguments[1:]:
        assert (ROOT / package / "pyproject.toml").is_file(), f"{package} is no folder of a package"


def _check_copy(arguments: list[str]) -> None:
    assert (ROOT / arguments[0]).exists(), f"{arguments[0]} is not there"


def _check_export(arguments: list[str]) -> None:
    for assignment in arguments:
        _check_variable(assignment)


_PROGRAMS = {
    "everloop": _check_everloop,
    "make": _check_make,
    "uv": _check_uv,
    "docker": _check_docker,
    "pip": _check_pip,
    "cp": _check_copy,
    "export": _check_export,
}
"""What is looked at of each program. A block with any other is marked."""


def test_a_console_block_shows_commands_after_a_dollar() -> None:
    assert [str(block) for block in blocks_in("console") if not _lines(block)] == []


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_names_commands_and_options_that_exist(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check(line)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_named_in_sentences_exist(page: Path) -> None:
    for span in code_spans(page):
        program, *arguments = span.split()
        if program == "make" and arguments:
            _check_make(arguments)
        if program == "everloop" and arguments and arguments[0].islower():
            command, rest, _ = _command(arguments)
            options = {option for param in command.params for option in param.opts}
            unknown = [word for word in rest if word.startswith("-") and word not in options]
            assert not unknown, f"`{span}`: no option {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_environment_variables_of_ours_name_settings(page: Path) -> None:
    for name in re.findall(r"EVERLOOP_[A-Z_]+[A-Z]", page.read_text()):
        assert is_known(name), f"{name} names no setting"


SAFE = [
    line
    for block in blocks_in("console")
    for line in _lines(block)
    if line.startswith(tuple(f"everloop {command}" for command in RUN))
]


@pytest.mark.parametrize("line", dict.fromkeys(SAFE))
def test_commands_that_need_nothing_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    EmbeddedLog(load_settings().log_path).close()
    done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
    assert done.exit_code == 0, done.output
