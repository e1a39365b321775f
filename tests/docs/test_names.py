"""One name stands for one thing."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "agents/client/everloop_client",
    "agents/research_society",
    "infra",
    "learners",
    "schemas",
    "streams",
)
TWICE = {
    # Both names are promises: agents import them from `everloop_client`, which stands alone, and
    # `schemas/json` has them. No module sees both.
    "Choice",
    "Rollout",
}


def test_no_two_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == TWICE
