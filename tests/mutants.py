"""Mutation tests: mutmut changes the code, and tests must notice. Exits 1 below `LEAST_KILLED`.

Settings are in `pyproject.toml`, `[tool.mutmut]`. Results of each mutant lie in `mutants/`.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from mutmut.__main__ import cli, status_by_exit_code

FOLDER = Path("mutants")
LEAST_KILLED = 0.85
COLUMNS = ("killed", "timeout", "survived", "suspicious", "no tests")

# mutmut 3.7 reads a name that pytest 9.2 no longer has. The next mutmut needs a click that
# faust does not allow.
pytest.Item._nodeid = property(lambda item: item.nodeid)  # type: ignore[attr-defined]


def counts() -> dict[str, Counter[str]]:
    """Return how many mutants of each file have come to which end."""
    found = {}
    for path in sorted(FOLDER.rglob("*.meta")):
        ends = json.loads(path.read_text())["exit_code_by_key"].values()
        found[str(path.relative_to(FOLDER)).removesuffix(".meta")] = Counter(
            status_by_exit_code[end] for end in ends
        )
    return {file: ends for file, ends in found.items() if ends}


def report() -> float:
    """Print a table of the counts; return the share that was killed."""
    table = counts()
    table["all"] = sum(table.values(), Counter())
    sys.stdout.write(f"| file | mutants | {' | '.join(COLUMNS)} | share killed |\n")
    sys.stdout.write("|---" * (len(COLUMNS) + 3) + "|\n")
    share = 0.0
    for file, ends in table.items():
        share = (ends["killed"] + ends["timeout"]) / max(1, ends.total())
        numbers = " | ".join(str(ends[column]) for column in COLUMNS)
        sys.stdout.write(f"| {file} | {ends.total()} | {numbers} | {share:.1%} |\n")
    return share


if __name__ == "__main__":
    cli(["run", "--max-children", "2"], standalone_mode=False)
    sys.exit(report() < LEAST_KILLED)
