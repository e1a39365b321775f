"""The layout that `docs/architecture.md` draws is the layout of the tree and of the contracts."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
IMPORTLINTER: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "importlinter"
]
ROOMS = re.findall(r"^### `(\S+)/`$", PAGE, re.M)


def section(title: str) -> str:
    """Return what stands between a title and the next one."""
    return re.split(r"^#+ ", PAGE.partition(f"{title}\n")[2], maxsplit=1, flags=re.M)[0]


def drawn(folder: str) -> dict[str, int]:
    """Return the rooms of a folder as they are written, each with its floor."""
    rows = re.findall(r"^\| (\d+) \| `(\S+)` \|", section(f"### `{folder}/`"), re.M)
    return {room: int(floor) for floor, room in rows}


def steps() -> list[tuple[list[str], set[str]]]:
    """Return the steps of the three ways: the files each names, and the functions and classes."""
    ways = "".join(
        section(f"## The way of one {what}") for what in ("span", "reward", "checkpoint")
    )
    found = []
    for step in re.findall(r"^\d+\. .*(?:\n   +.*)*", ways, re.M):
        words = re.findall(r"`([^`]+)`", step)
        files = [word for word in words if word.endswith(".py")]
        found.append((files, set(words) - set(files)))
    return found


def definitions(file: Path) -> set[str]:
    """Return the functions and classes of a module, and each class's methods with its name."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return names


def test_every_folder_with_floors_is_drawn() -> None:
    contracts = [c for c in IMPORTLINTER["contracts"] if c["type"] == "layers"]
    containers = [name.replace(".", "/") for c in contracts for name in c["containers"]]
    assert sorted(ROOMS) == sorted(containers)


@pytest.mark.parametrize("folder", ROOMS)
def test_every_room_is_drawn_and_every_drawn_room_is_there(folder: str) -> None:
    packages = {f"{file.parent.name}/" for file in (ROOT / folder).glob("*/__init__.py")}
    modules = {file.name for file in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert drawn(folder).keys() == packages | modules


@pytest.mark.parametrize("folder", ROOMS)
def test_the_drawn_floors_are_those_of_the_contract(folder: str) -> None:
    (contract,) = [
        c for c in IMPORTLINTER["contracts"] if c.get("containers") == [folder.replace("/", ".")]
    ]
    floors = [set(re.split(r"\s*\|\s*", layer)) for layer in contract["layers"]]
    rooms = drawn(folder)
    assert floors == [
        {Path(room).stem for room, floor in rooms.items() if floor == level}
        for level in range(len(floors), 0, -1)
    ]


def test_what_a_folder_may_not_import_is_forbidden_by_a_contract() -> None:
    rows = re.findall(r"^\| `(\S+)/` \| .* \| (.*) \|$", section("## The layout"), re.M)
    known = set(IMPORTLINTER["root_packages"])
    allowed = {Path(folder).name: set(re.findall(r"`(\w+)`", imports)) for folder, imports in rows}
    assert allowed.keys() == known
    for package, imports in allowed.items():
        forbidden = {
            name
            for contract in IMPORTLINTER["contracts"]
            if package in contract.get("source_modules", ())
            for name in contract["forbidden_modules"]
        }
        if package != "infra":  # it stands above all others
            assert known - imports - {package} <= forbidden, package


def test_every_file_and_function_of_the_three_ways_is_there() -> None:
    assert len(steps()) > 20
    for files, names in steps():
        defined = set[str]().union(*(definitions(ROOT / file) for file in files))
        assert names <= defined, files
