"""What the documents say in passing is so: links, paths, settings, numbers."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from infra.config.settings import Settings
from schemas.topics import TOPICS
from tests.docs.pages import PAGES, ROOT, code_spans, name_of, prose_of

FOLDERS = sorted(
    folder.name
    for folder in ROOT.iterdir()
    if folder.is_dir() and not folder.name.startswith(".") and any(folder.rglob("*.py"))
)
MODULES = {file.name for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
WORDS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
NUMBERS = {count: (str(count), word) for count, word in enumerate(WORDS.split(), 10)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{target}: {path} is not there"
        assert not anchor or anchor in _anchors(file), f"{target}: no such heading"


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_of_the_repository_on_a_page_is_there(page: Path) -> None:
    paths = re.findall(rf"(?<![\w/.:…-])(?:{'|'.join(FOLDERS)})/[\w./-]+", page.read_text())
    missing = [path for path in paths if not (ROOT / path.rstrip(".")).exists()]
    assert not missing
    modules = re.findall(r"(?<![\w./…-])\w+\.py\b", page.read_text())
    assert not set(modules) - MODULES


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_named_on_a_page_exist(page: Path) -> None:
    for span in [*code_spans(page), *_rows_of_sections(page)]:
        name = re.match(r"^([a-z_]+)((?:\.[\w*]+)+)(?: = .*)?$", span)
        if name is not None and name[1] in Settings.model_fields and name[2] != ".py":
            path = [name[1], *name[2].removeprefix(".").split(".")]
            assert _is_setting(Settings, path), f"`{span}` names no setting"


def _rows_of_sections(page: Path) -> list[str]:
    """Return the settings in the first column of tables whose header names a `[section]`."""
    found: list[str] = []
    section: str | None = None
    for line in prose_of(page).splitlines():
        if not line.startswith("|"):
            section = None
        elif (header := re.match(r"^\| .*?`\[(\w+)\]`", line)) is not None:
            section = header[1]
        elif section is not None:
            first = line.split("|")[1]
            found += [f"{section}.{name}" for name in re.findall(r"`([^`]+)`", first)]
    return found


def _is_setting(model: type[BaseModel], path: list[str]) -> bool:
    """Return whether a dotted name leads to a setting; `*` is any."""
    if path[0] == "*":
        return True
    field = model.model_fields.get(path[0])
    if field is None:
        return False
    rest = path[1:]
    return not rest or _leads_on(field.annotation, rest)


def _leads_on(annotation: Any, rest: list[str]) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _is_setting(annotation, rest)
    arguments = get_args(annotation)
    if not arguments:
        return False
    inner = rest[1:] if getattr(annotation, "__origin__", None) is dict else rest
    return not inner or any(_leads_on(argument, inner) for argument in arguments)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_that_counts_the_topics_counts_right(page: Path) -> None:
    for number in re.findall(r"\b(\w+) topics of events\b", prose_of(page)):
        assert number in NUMBERS[len(TOPICS)], f"{number} topics; there are {len(TOPICS)}"
