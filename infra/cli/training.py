"""Commands about training: train by hand, and list the runs."""

import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from infra.cli.options import AsJson, app, console, moment, print_json, print_table, progress_bar
from infra.cli.views import existing_log
from infra.config.settings import Settings, load_settings
from infra.runtime.errors import ConfigError
from infra.training.jobs import JOB, OUTPUT, PROGRESS, RESULT, Job, JobFolder, RunResult
from learners.training.config import HEADS, MODEL, AnyConfig, Method
from schemas.checkpoints import OffsetRange
from schemas.commands import Command, CommandEvent
from schemas.manifests import Manifest
from schemas.serialization import readable
from schemas.topics import COMMANDS, EXAMPLES
from streams.processors.batcher import examples_of
from streams.storage.log import Log
from streams.storage.records import Outgoing
from streams.views.follower import read_views
from streams.views.trainings import Trainings

BEGINNING, NOW = "beginning", "now"
POLL_S = 0.2


@app.command()
def train(
    method: Annotated[Method, typer.Argument(help="How to learn.")],
    target: Annotated[
        str | None, typer.Option(help="Logical name; by default the only one that learns so.")
    ] = None,
    start: Annotated[
        str, typer.Option("--from", help="`beginning`, or a time (ISO 8601).")
    ] = BEGINNING,
    end: Annotated[str, typer.Option("--to", help="`now`, or a time (ISO 8601).")] = NOW,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with settings of the method, over those of training.models."),
    ] = None,
    parent: Annotated[
        Path | None, typer.Option(help="Folder of the weights to begin with (default: the base).")
    ] = None,
    order: Annotated[
        bool,
        typer.Option(
            "--order", help="Let the running trainer do it, which serves, checks and announces it."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train here and now, on the examples of a time span.

    It leaves weights, rows, card and lineage in a folder.
    """
    settings = load_settings()
    if parent is not None and not parent.is_dir():
        raise ConfigError(f"--parent {parent} is not a folder of weights")
    target, trained = _config(settings, method, target, config)
    with existing_log(settings) as log:
        manifest = _manifest(log, target, method, start, end)
        if order:
            _order(log, target, method, manifest)
            return
    job = Job(
        target=target,
        config=trained,
        manifest=manifest,
        parent=parent and parent.name,
        parent_folder=parent,
    )
    folder, result = _result_of(settings, job)
    weights = str(folder.folder / MODEL)
    if as_json:
        examples = manifest.examples
        document = {"job": job.id, "folder": weights, "examples": examples}
        print_json(document | {"metrics": result.metrics})
        return
    rows = [(name, f"{value:.6g}") for name, value in result.metrics.items()]
    print_table(job.id, ["metric", "value"], rows)
    console.print(f"weights in {weights}")


def _order(log: Log, target: str, method: Method, manifest: Manifest) -> None:
    """Leave an order on the log for the running trainer."""
    command = Command(
        target=target,
        action="train",
        manifest=manifest,
        arguments={"method": method},
        reason="by hand",
    )
    log.append([Outgoing.of(COMMANDS, target, CommandEvent(payload=command)).record()])
    console.print(
        f"ordered: {method} of {target} on {manifest.examples} examples; see `everloop trainings`"
    )


def _result_of(settings: Settings, job: Job) -> tuple[JobFolder, RunResult]:
    """Run a job to its end, and return its folder with its result.

    Raises:
        ConfigError: the job failed.
    """
    folder = JobFolder(settings.data_dir / "trainings" / job.id)
    # An earlier run of the same job left these; they would be taken for this run's.
    for name in (RESULT, PROGRESS):
        (folder.folder / name).unlink(missing_ok=True)
    folder.write(JOB, job)
    _run(settings, folder)
    if folder.failure is not None:
        raise ConfigError(f"{job.id} failed: {folder.failure.reason}")
    if folder.result is None:
        raise ConfigError(f"{job.id} ended without saying why; see {folder.folder / OUTPUT}")
    return folder, folder.result


@app.command()
def trainings(as_json: AsJson = False) -> None:
    """List the runs of batch learners: target, state, progress, and the version that came of it."""
    view = Trainings()
    with existing_log(load_settings()) as log:
        read_views(log, view)
    # A run that is ordered again is one job: the last order counts.
    newest = {training.job: training for training in view.runs.values()}
    if as_json:
        print_json([training.model_dump(mode="json") for training in newest.values()])
        return
    print_table(
        "trainings",
        ["job", "target", "state", "examples", "step", "loss", "version", "reason"],
        [
            (
                t.job,
                t.target,
                t.state,
                t.manifest.examples,
                f"{t.step}/{t.steps}",
                _loss(t.metrics),
                t.version,
                t.reason,
            )
            for t in newest.values()
        ],
    )


def _loss(metrics: dict[str, float]) -> str:
    found = next(
        (metrics[name] for name in ("loss", "train_loss", "actor/pg_loss") if name in metrics), None
    )
    return "" if found is None else f"{found:.4g}"


def _config(
    settings: Settings, method: Method, target: str | None, file: Path | None
) -> tuple[str, AnyConfig]:
    """Return the target and its configuration. Settings of `file` replace the configured ones."""
    known = {
        name: c
        for name, ways in settings.training.models.items()
        for c in ways
        if c.method == method
    }
    if target is None:
        if len(known) != 1:
            raise ConfigError(
                f"--target is needed: {', '.join(known) or 'nothing in training.models'} learns"
                f" by {method}"
            )
        (target,) = known
    base: dict[str, Any] = known[target].model_dump() if target in known else {"method": method}
    if file is not None:
        try:
            base |= tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"--config {file}: {error}") from error
    try:
        return target, TypeAdapter[AnyConfig](AnyConfig).validate_python(base)
    except ValidationError as error:
        where = file or f"training.models.{target}"
        raise ConfigError(f"{where}: {readable(error)}") from error


def _manifest(log: Log, target: str, method: Method, start: str, end: str) -> Manifest:
    """Return a manifest of a target's examples in a time span."""
    first, last = _offsets(log, start, "--from"), _offsets(log, end, "--to")
    ranges = [
        OffsetRange(
            topic=EXAMPLES.name,
            partition=partition,
            first=first[partition],
            last=last[partition] - 1,
        )
        for partition in range(EXAMPLES.partitions)
        if last[partition] > first[partition]
    ]
    if ranges:
        # A manifest must count its examples, and counting needs the manifest. So one is drafted
        # first.
        draft = Manifest(target=target, head=HEADS[method], ranges=ranges, examples=1, number=1)
        if examples := sum(1 for _ in examples_of(log, draft)):
            return draft.model_copy(update={"examples": examples})
    raise ConfigError(
        f"{target} has no {HEADS[method]} examples from {start} to {end}; see the setting `adapter`"
    )


def _offsets(log: Log, said: str, option: str) -> dict[int, int]:
    if said == BEGINNING:
        return dict(log.beginnings(EXAMPLES.name))
    if said == NOW:
        return dict(log.ends(EXAMPLES.name))
    begin = moment(said, option, f"`{BEGINNING}`, `{NOW}` or ")
    return {
        partition: log.offset_at(EXAMPLES.name, partition, begin)
        for partition in range(EXAMPLES.partitions)
    }


def _run(settings: Settings, folder: JobFolder) -> None:
    """Run a job's process to its end, with its steps on a bar."""
    from infra.installation.training import start_run

    process = start_run(settings, folder)
    read = 0
    with progress_bar() as progress:
        bar = progress.add_task("steps", total=None)
        try:
            while process.poll() is None:
                steps, read = folder.progress(read)
                # Only the last step matters to the bar.
                for step in steps[-1:]:
                    progress.update(bar, completed=step.step, total=step.steps)
                time.sleep(POLL_S)
        finally:
            # Also on Ctrl-C: the process has a session of its own, and does not get the signal.
            process.terminate()
            process.wait()
