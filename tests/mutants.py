"""Mutation tests: mutmut changes the code, and tests must notice. Exits 1 below `LEAST_KILLED`.

    python -m tests.mutants                     what has no result yet
    python -m tests.mutants survivors           what no test has noticed, once more
    python -m tests.mutants 'learners.gate.*'   what is named, once more

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


def results() -> dict[str, dict[str, str]]:
    """Return the end of each mutant by its name, file by file."""
    found = {}
    for path in sorted(FOLDER.rglob("*.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"]
        ends = {name: status_by_exit_code[code] for name, code in codes.items()}
        found[str(path.relative_to(FOLDER)).removesuffix(".meta")] = ends
    return {file: ends for file, ends in found.items() if ends}


def survivors() -> list[str]:
    """Return the names of the mutants that no test has noticed."""
    return [name for ends in results().values() for name, end in ends.items() if end == "survived"]


def report() -> float:
    """Print a table of the counts; return the share that was killed."""
    table = {file: Counter(ends.values()) for file, ends in results().items()}
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
    named = survivors() if sys.argv[1:] == ["survivors"] else sys.argv[1:]
    cli(["run", "--max-children", "2", *named], standalone_mode=False)
    sys.exit(report() < LEAST_KILLED)
