"""Research tasks: PubMedQA (Jin et al., EMNLP 2019) from the hub or a JSON file, and the project's
own small set.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.envelope import Name
from schemas.rollouts import Split
from schemas.serialization import readable

BUILT_IN = Path(__file__).parent / "data" / "tasks.json"
HUB_DATASET = ("qiaojin/PubMedQA", "pqa_labeled")
VALIDATION_SHARE = 0.2

Label = Literal["yes", "no", "maybe"]


class TaskFileError(Exception):
    """A task file cannot be used; the message says which task and what is missing."""


class AbstractSection(BaseModel):
    """A part of an abstract."""

    model_config = ConfigDict(frozen=True)

    label: str
    text: str = Field(min_length=1)


class ResearchTask(BaseModel):
    """A question, the abstract it is about (without its conclusion) and the experts' answer.

    Attributes:
        expected_decision: for the judge and the report; no agent ever sees it.
    """

    model_config = ConfigDict(frozen=True)

    id: Name
    goal: str = Field(min_length=1)
    sections: tuple[AbstractSection, ...] = Field(min_length=1)
    expected_decision: Label

    @property
    def context(self) -> str:
        """The abstract as one text."""
        return " ".join(section.text for section in self.sections)

    @property
    def split(self) -> Split:
        """Whether the task is learned from or held out: a fifth of all tasks is, by a hash of the
        id.
        """
        # A hash, not a draw: a task stays on the same side in every run.
        digest = blake2b(self.id.encode(), digest_size=4, person=b"everloop-split").digest()
        return "validation" if int.from_bytes(digest) / 2**32 < VALIDATION_SHARE else "train"


def load_tasks(source: str | None) -> list[ResearchTask]:
    """Return tasks from a JSON file, from the hub (`pubmedqa`), or the project's own (None).

    A file holds either PubMedQA's own format (an object by PubMed id with QUESTION, CONTEXTS,
    LABELS and final_decision) or a list of objects like `ResearchTask`.

    Raises:
        TaskFileError: there is no such file, it is no JSON, or a task in it lacks something.
    """
    if source == "pubmedqa":
        return _from_hub()
    path = Path(source) if source else BUILT_IN
    try:
        document = orjson.loads(path.read_bytes())
    except OSError as error:
        raise TaskFileError(f"cannot read the task file {path}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise TaskFileError(f"{path} is not JSON: {error}") from error
    if isinstance(document, dict):
        return _check_entries((key, _from_pubmedqa(key, entry)) for key, entry in document.items())
    if isinstance(document, list):
        return _check_entries((f"task {index}", entry) for index, entry in enumerate(document))
    raise TaskFileError(
        f"{path} must hold a list of tasks or PubMedQA's object, not {type(document).__name__}"
    )


def _from_pubmedqa(key: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise TaskFileError(f"{key}: expected an object, found {type(entry).__name__}")
    wanted = ("QUESTION", "CONTEXTS", "LABELS", "final_decision")
    if missing := [name for name in wanted if name not in entry]:
        raise TaskFileError(f"{key}: missing {', '.join(missing)}")
    sections = [
        {"label": label, "text": text}
        for label, text in zip(entry["LABELS"], entry["CONTEXTS"], strict=False)
        if text
    ]
    return {
        "id": key,
        "goal": entry["QUESTION"],
        "sections": sections,
        "expected_decision": entry["final_decision"],
    }


def _from_hub() -> list[ResearchTask]:
    if find_spec("datasets") is None:
        raise TaskFileError(
            "--tasks pubmedqa reads the Hugging Face hub and needs the extra `hub` (uv sync"
            " --extra hub);"
            " or give PubMedQA's ori_pqal.json as a file"
        )
    from datasets import load_dataset

    rows = load_dataset(*HUB_DATASET, split="train")
    return _check_entries(
        (
            str(row["pubid"]),
            {
                "id": str(row["pubid"]),
                "goal": row["question"],
                "sections": [
                    {"label": label, "text": text}
                    for label, text in zip(
                        row["context"]["labels"], row["context"]["contexts"], strict=True
                    )
                ],
                "expected_decision": row["final_decision"],
            },
        )
        for row in rows
    )


def _check_entries(entries: Iterable[tuple[str, Any]]) -> list[ResearchTask]:
    tasks: list[ResearchTask] = []
    for name, entry in entries:
        try:
            tasks.append(ResearchTask.model_validate(entry))
        except ValidationError as error:
            raise TaskFileError(f"{name}: {readable(error)}") from error
    if not tasks:
        raise TaskFileError("the task file holds no task")
    identifiers = [task.id for task in tasks]
    if len(set(identifiers)) < len(identifiers):
        repeated = sorted({name for name in identifiers if identifiers.count(name) > 1})
        raise TaskFileError(f"task ids must differ; more than once: {', '.join(repeated[:5])}")
    return tasks
