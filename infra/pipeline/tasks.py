"""The tasks of a pipeline, from a file or a function of the user's."""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.runtime.errors import ConfigError
from learners.references import (
    FOREIGN_ERRORS,
    UnknownReferenceError,
    one_line,
    resolve_plain,
)
from schemas.envelope import Name
from schemas.rollouts import Split
from schemas.serialization import readable

HELD_OUT_SHARE = 0.2
"""Share of tasks that are held out, of those that do not say where they belong."""


class PipelineTask(BaseModel):
    """One task.

    Attributes:
        input: what the agent is asked, as JSON.
        expected: the right output, for graders; the agent never sees it.
        split: `train`, or `validation` and `test`, which are held out. Without it, a fifth of all
            tasks is held out, by a hash of the id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    input: Any = None
    expected: Any = None
    split: Split | None = None

    @property
    def held_out(self) -> bool:
        """Whether nothing may learn from it."""
        if self.split is not None:
            return self.split != "train"
        # A hash, not a draw: a task stays on the same side in every run and every process.
        digest = blake2b(self.id.encode(), digest_size=4, person=b"everloop-split").digest()
        return int.from_bytes(digest) / 2**32 < HELD_OUT_SHARE


def load_tasks(source: str | None) -> list[PipelineTask]:
    """Return the tasks.

    Args:
        source: a file of JSON Lines, one task a line; or `module:function`, which returns tasks as
            mappings.

    Raises:
        ConfigError: there are none, or one cannot be used; the message says which and why.
    """
    if source is None:
        raise ConfigError(
            'pipeline: there are no tasks; set pipeline.tasks = "tasks.jsonl" or "module:function"'
        )
    if Path(source).is_file():
        entries: Iterable[Any] = Path(source).read_bytes().splitlines()
    # After the file: a path may contain a colon.
    elif ":" in source:
        entries = _call(source)
    else:
        raise ConfigError(f"pipeline.tasks: {source} is neither a file nor module:function")
    tasks = [_task(source, number, entry) for number, entry in enumerate(entries, 1) if entry]
    if not tasks:
        raise ConfigError(f"pipeline.tasks: {source} holds no task")
    names = [task.id for task in tasks]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"pipeline.tasks: more than one task has the id {repeated[0]!r}")
    return tasks


def _call(reference: str) -> Iterable[Any]:
    try:
        return list(resolve_plain(reference)())
    except UnknownReferenceError as error:
        raise ConfigError(f"pipeline.tasks: {error}") from error
    except FOREIGN_ERRORS as error:
        raise ConfigError(f"pipeline.tasks: {reference}() failed: {one_line(error)}") from error


def _task(source: str, number: int, entry: Any) -> PipelineTask:
    try:
        document = orjson.loads(entry) if isinstance(entry, bytes) else entry
        return PipelineTask.model_validate(document)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"pipeline.tasks: {source}, task {number}: not JSON: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"pipeline.tasks: {source}, task {number}: {readable(error)}") from error
