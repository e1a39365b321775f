"""Tasks are read from PubMedQA's file or our own, and what is missing is named."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from research_society.tasks import AbstractSection, ResearchTask, TaskFileError, load_tasks

PUBMEDQA = Path(__file__).parents[2].parent / "shared" / "data" / "pubmedqa" / "ori_pqal.json"
ENTRY = {
    "QUESTION": "Does it?",
    "CONTEXTS": ["It did."],
    "LABELS": ["RESULTS"],
    "final_decision": "yes",
}


def written(tmp_path: Path, document: Any) -> str:
    path = tmp_path / "tasks.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def test_the_built_in_tasks_have_all_three_parts_and_answers() -> None:
    tasks = load_tasks(None)
    assert len(tasks) == 40
    assert {len(task.sections) for task in tasks} == {3}
    assert Counter(task.expected_decision for task in tasks).keys() == {"yes", "no", "maybe"}


def test_a_fifth_of_the_tasks_is_held_out_and_always_the_same() -> None:
    section = (AbstractSection(label="RESULTS", text="It did."),)
    splits = [
        ResearchTask(
            id=f"t{number}", goal="Does it?", sections=section, expected_decision="yes"
        ).split
        for number in range(1000)
    ]
    assert 0.17 < splits.count("validation") / len(splits) < 0.23
    assert splits[:5] == ["train", "train", "validation", "train", "train"]


def test_pubmedqas_format_is_read(tmp_path: Path) -> None:
    (task,) = load_tasks(written(tmp_path, {"123": ENTRY}))
    assert (task.id, task.goal, task.context, task.expected_decision) == (
        "123",
        "Does it?",
        "It did.",
        "yes",
    )


@pytest.mark.skipif(
    not PUBMEDQA.exists(), reason="PubMedQA's ori_pqal.json is not beside the project"
)
def test_the_whole_of_pubmedqa_is_read() -> None:
    tasks = load_tasks(str(PUBMEDQA))
    assert Counter(task.expected_decision for task in tasks) == {
        "yes": 552,
        "no": 338,
        "maybe": 110,
    }


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("{", "is not JSON"),
        ("3", "must hold a list"),
        ([], "holds no task"),
        ({"1": {**ENTRY, "final_decision": "perhaps"}}, "1: expected_decision"),
        ({"1": {"QUESTION": "q"}}, "1: missing CONTEXTS, LABELS, final_decision"),
        ({"1": 3}, "1: expected an object"),
        ([{"id": "a"}], "task 0: goal: Field required"),
        ([{"id": "a", "goal": "g", "sections": [], "expected_decision": "no"}], "sections"),
        (
            [
                {
                    "id": "a",
                    "goal": "g",
                    "sections": [{"label": "X", "text": "t"}],
                    "expected_decision": "no",
                }
            ]
            * 2,
            "more than once: a",
        ),
    ],
)
def test_what_is_wrong_with_a_task_file_is_said(tmp_path: Path, document: Any, reason: str) -> None:
    with pytest.raises(TaskFileError, match=reason):
        load_tasks(written(tmp_path, document))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(TaskFileError, match=r"nowhere\.json: No such file"):
        load_tasks("nowhere.json")


def test_the_hub_is_read_through_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub itself cannot be reached in tests; its library's answer has this shape."""
    rows = [
        {
            "pubid": 21645374,
            "question": "Does it?",
            "context": {"contexts": ["It did."], "labels": ["RESULTS"], "meshes": []},
            "final_decision": "no",
        }
    ]
    library = ModuleType("datasets")
    library.load_dataset = lambda *_, **__: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("research_society.tasks.find_spec", lambda _: object())
    (task,) = load_tasks("pubmedqa")
    assert (task.id, task.expected_decision) == ("21645374", "no")


def test_without_the_hubs_library_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("research_society.tasks.find_spec", lambda _: None)
    with pytest.raises(TaskFileError, match="uv sync --extra hub"):
        load_tasks("pubmedqa")
