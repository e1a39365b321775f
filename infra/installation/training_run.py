"""The process of one run: `python -m infra.installation.training_run FOLDER`.

It needs the extra `learn`. It reads the job in its folder and the examples that the manifest names,
and nothing else. An error that a person can fix ends it with status 1, and `failure.json` has the
reason. After a crash there is no such file, and the run may be started again in its folder.

It needs the extra `learn`.

It reads the order in its folder, the examples that the manifest names, and nothing else. What a
person can mend ends it with status 1 and the reason in `failure.json`; a crash leaves none, and the
run may be begun again where it was.
"""

import sys
import time
from pathlib import Path

from infra.config.settings import load_settings
from infra.installation.log import open_log
from infra.runtime.errors import ConfigError
from infra.runtime.logger import configure_logging
from infra.training.jobs import (
    CASES,
    FAILURE,
    PROGRESS,
    RESULT,
    Case,
    Failure,
    Job,
    JobFolder,
    Progress,
    RunResult,
)
from infra.training.judge import NAME, GradingModel
from learners.datasets import prompt_rows
from learners.graders import register
from learners.training.errors import TrainingError
from schemas.examples import ExampleEvent
from streams.processors.batcher import examples_of
from streams.storage.errors import StreamError

ORDINARY_REPORT_S = 0.5


def main(arguments: list[str] | None = None) -> int:
    """Run the job of a folder; return the exit status."""
    (name,) = arguments if arguments is not None else sys.argv[1:]
    configure_logging()
    folder = JobFolder(Path(name))
    try:
        folder.write(RESULT, RunResult(metrics=_run(folder)))
    except _mendable() as error:
        folder.write(FAILURE, Failure(reason=str(error)))
        return 1
    return 0


def _mendable() -> tuple[type[Exception], ...]:
    import torch

    from learners.graders import UnknownGraderError

    # A GPU that runs out of memory raises. If the machine itself does, the kernel kills the
    # process, and there is no reason to write.
    return (
        TrainingError,
        UnknownGraderError,
        ConfigError,
        StreamError,
        torch.OutOfMemoryError,
        MemoryError,
    )


def _run(folder: JobFolder) -> dict[str, float]:
    from learners.training.backend import unsloth_trains

    job = folder.job
    unsloth_trains(job.config)  # before what it changes is imported
    from learners.training.runs import run

    settings = load_settings()
    if settings.training.judge is not None:
        register(NAME, GradingModel(settings.training.judge))
    with open_log(settings) as log:
        examples = list(examples_of(log, job.manifest))
    _write_cases(folder, job, examples)
    with (folder.folder / PROGRESS).open("ab") as lines:
        last = 0.0

        def report(step: int, steps: int, metrics: dict[str, float]) -> None:
            nonlocal last
            # Each report becomes an event. A small model makes a hundred steps a second.
            if time.monotonic() - last < ORDINARY_REPORT_S and step < steps:
                return
            last = time.monotonic()
            lines.write(
                Progress(step=step, steps=steps, metrics=metrics).model_dump_json().encode() + b"\n"
            )
            # The trainer reads this file while the run goes on.
            lines.flush()

        lineage = {
            "job": job.id,
            "target": job.target,
            "parent": job.parent,
            "manifest": job.manifest.model_dump(mode="json"),
        }
        return run(examples, job.config, job.parent_folder, lineage, folder.folder, report)


def _write_cases(folder: JobFolder, job: Job, examples: list[ExampleEvent]) -> None:
    """Write the held-out prompts, which the trainer uses to check the model."""
    rows = [
        row
        for row in prompt_rows(examples, job.config.dataset)
        if row.origin.held_out and row.expected is not None
    ]
    cases = [Case(prompt=row.prompt, tools=row.tools, expected=row.expected) for row in rows]
    (folder.folder / CASES).write_text("".join(case.model_dump_json() + "\n" for case in cases))


if __name__ == "__main__":
    sys.exit(main())
