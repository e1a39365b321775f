"""The pages that a reader sees, and the fenced blocks on them.

A block that the tests neither run nor parse has a comment on the line before its fence that says
why: `<!-- not run: needs a GPU -->`. A Python block that another test runs names that test:
`<!-- run by: tests/e2e/test_peers.py -->`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "agents" / "client" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

_FENCE = re.compile(r"^```(?P<language>.*)$")
_MARK = re.compile(r"^<!-- (?P<kind>not run|run by): (?P<reason>.+) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: number of the fence's line, from 1.
        mark: `not run`, `run by`, or None where the tests must run or parse the block.
        reason: what the mark says.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str | None = None
    reason: str = ""

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """Return a page's path from the root."""
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    lines = page.read_text().splitlines()
    found: list[Block] = []
    start: int | None = None
    for number, line in enumerate(lines):
        if (fence := _FENCE.match(line)) is None:
            continue
        if start is None:
            start = number
            continue
        assert not fence["language"], f"{name_of(page)}:{start + 1} is not closed"
        mark = _MARK.match(lines[start - 1]) if start else None
        found.append(
            Block(
                page=page,
                line=start + 1,
                language=lines[start].removeprefix("```"),
                text="\n".join([*lines[start + 1 : number], ""]),
                mark=mark["kind"] if mark else None,
                reason=mark["reason"] if mark else "",
            )
        )
        start = None
    assert start is None, f"{name_of(page)} ends inside of a block"
    return found


def prose_of(page: Path) -> str:
    """Return a page without its fenced blocks, with as many lines."""
    return re.sub(
        r"^```.*?^```$",
        lambda block: "\n" * block[0].count("\n"),
        page.read_text(),
        flags=re.M | re.S,
    )


def code_spans(page: Path) -> list[str]:
    """Return what stands in backticks on a page."""
    return re.findall(r"`([^`\n]+)`", prose_of(page))


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks_in(*languages: str) -> list[Block]:
    """Return the blocks in these languages that have no mark."""
    return [block for block in BLOCKS if block.language in languages and block.mark is None]
