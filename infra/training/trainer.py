"""The trainer: follows commands and runs jobs. It serves what a job made, checks it and announces
it. It stops the servers that nothing needs.

It keeps no state of its own. When it starts, it reads the log: orders on `commands`, runs on
`trainings`, announced versions on `checkpoints`, and what serves on `routes`. So a trainer that was
killed goes on where it was.
"""

import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import structlog

from infra.serving.servers import ServingError
from infra.training.checks import check_candidate
from infra.training.jobs import JOB, OUTPUT, Case, Job, JobFolder
from infra.training.keeper import Keeper
from infra.training.settings import TrainingSettings
from infra.training.trackers import trackers
from infra.training.views import TrainingViews
from learners.training.config import HEADS, MODEL, AnyConfig
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState, Lineage
from schemas.commands import Command, CommandEvent
from schemas.topics import CHECKPOINTS, TRAININGS
from schemas.trainings import ENDED, Training, TrainingEvent, TrainingState
from streams.storage.artifacts import FOLDER_TYPE, ArtifactStore
from streams.storage.errors import RejectedRecordError
from streams.storage.log import Log
from streams.storage.records import Outgoing

POLL_S = 0.2
STOP_TIMEOUT_S = 15.0
LEARNER_VERSION = 1
logger = structlog.get_logger(__name__)


@dataclass
class Run:
    """A job and where it stands."""

    job: Job
    training: Training
    process: "subprocess.Popen[bytes] | None" = None
    attempts: int = 0
    read: int = 0


class Trainer:
    """Runs jobs and serves what they made.

    Args:
        data_dir: of the installation.
        start_process: starts the process of a job.
        log: of its own.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        data_dir: Path,
        artifacts: ArtifactStore,
        start_process: Callable[[JobFolder], "subprocess.Popen[bytes]"],
        log: Log,
    ) -> None:
        self._training, self._artifacts, self._log = settings, artifacts, log
        self._start_process = start_process
        self._folder = data_dir / "trainings"
        self._trackers = trackers(settings.track, data_dir / "tracking")
        self._known = TrainingViews(settings.models.keys())
        self.keeper = Keeper(settings.serving, data_dir, artifacts, self._known)
        self._runs: dict[str, Run] = {}
        self._stop = threading.Event()

    def run(self) -> None:
        """Work until `stop`. Jobs that run then are stopped. The next trainer goes on with them."""
        try:
            while not self._stop.is_set():
                self.run_once()
                self._stop.wait(POLL_S)
        finally:
            self.close()

    def stop(self) -> None:
        """Make `run` return."""
        self._stop.set()

    def run_once(self) -> None:
        """Read new events, take orders, advance runs and keep servers."""
        self._known.catch_up(self._log)
        self._take_orders()
        for run in list(self._runs.values()):
            self._advance(run)
        for given_up in self.keeper.keep():
            self._announce(given_up)

    def close(self) -> None:
        """Stop the jobs and the servers."""
        for run in self._runs.values():
            _stop_process(run.process)
        self.keeper.servers.close()

    def _take_orders(self) -> None:
        """Queue new orders, and cancel runs."""
        for order in self._known.orders.take():
            if order.payload.action == "cancel":
                self._cancel(str(order.payload.arguments.get("job", "")))
            else:
                self._queue(order)

    def _queue(self, order: CommandEvent) -> None:
        """Queue a run. A run that an earlier trainer began keeps its configuration and parent."""
        before = self._known.trainings.runs.get(order.event_id)
        # The log is read from its beginning at each start, so finished orders come again.
        if before is not None and before.state in ENDED:
            return
        config = self._config(order.payload) if before is None else self._first_config(before)
        if config is None:
            return
        parent = before.parent if before is not None else self._parent(order.payload.target)
        assert order.payload.manifest is not None  # noqa: S101 - others are not kept
        job = Job(
            target=order.payload.target,
            config=config,
            manifest=order.payload.manifest,
            parent=parent,
        )
        # The same job was ordered twice. Two processes must not write to one folder.
        if job.id in self._runs:
            self._known.orders.waiting.append(order)  # when the one that runs has ended
            return
        run = Run(job, _training(job, order))
        self._runs[job.id] = run
        if before is None:
            self._publish(run.training)

    def _cancel(self, job: str) -> None:
        run = self._runs.get(job)
        if run is not None:
            _stop_process(run.process)
            self._end_run(run, TrainingState.CANCELLED, "asked for")

    def _config(self, order: Command) -> AnyConfig | None:
        """Return the configuration for an order: of the methods that suit its examples, the first
        that has not failed on what serves now. If all have, the first.
        """
        assert order.manifest is not None  # noqa: S101 - orders without one are not for us
        wanted = order.arguments.get("method")
        suited = [
            config
            for config in self._training.models[order.target]
            if HEADS[config.method] == order.manifest.head and wanted in (None, config.method)
        ]
        if not suited:
            logger.warning(
                "no method of the target learns from these examples",
                target=order.target,
                method=wanted,
                head=order.manifest.head,
            )
            return None
        failed = self._known.failed_configs(order.target, self._parent(order.target))
        return next((config for config in suited if config.sha256 not in failed), suited[0])

    def _first_config(self, before: Training) -> AnyConfig | None:
        """Return the configuration that a run began with; None if the settings have it no more."""
        for config in self._training.models[before.target]:
            if config.sha256 == before.config_sha256:
                return config
        logger.warning("the configuration of a run is gone; order it again", job=before.job)
        return None

    def _parent(self, target: str) -> str | None:
        """Return the version that a run starts from: what is promoted, if it was trained here."""
        promoted = self._known.promoted(target)
        ours = (
            promoted is not None
            and promoted.artifact is not None
            and promoted.artifact.media_type == FOLDER_TYPE
        )
        return promoted.version if promoted is not None and ours else None

    def _advance(self, run: Run) -> None:
        folder = JobFolder(self._folder / run.job.id)
        if run.process is None and folder.result is not None:
            self._take_result(run, folder)  # an earlier trainer ended before it could tell
        elif run.process is None:
            if (
                sum(other.process is not None for other in self._runs.values())
                < self._training.concurrency
            ):
                self._start(run, folder)
        else:
            self._follow(run, folder)
            if run.process.poll() is not None:
                self._finish(run, folder, run.process.returncode)

    def _start(self, run: Run, folder: JobFolder) -> None:
        try:
            job = run.job.model_copy(
                update={"parent_folder": self.keeper.weights(run.job.target, run.job.parent)}
            )
        except RejectedRecordError as error:
            self._end_run(run, TrainingState.FAILED, f"its parent cannot be read: {error}")
            return
        if run.attempts == 0:
            _, run.read = folder.progress()  # what an earlier trainer told already
        folder.write(JOB, job)
        run.attempts += 1
        run.process = self._start_process(folder)
        self._change(run, TrainingState.RUNNING, f"attempt {run.attempts}")

    def _follow(self, run: Run, folder: JobFolder) -> None:
        steps, run.read = folder.progress(run.read)
        for step in steps:
            run.training = run.training.model_copy(
                update={
                    "step": step.step,
                    "steps": step.steps,
                    "metrics": step.metrics,
                    "reason": "",
                }
            )
            self._publish(run.training)

    def _finish(self, run: Run, folder: JobFolder, status: int) -> None:
        """Take the result of a job that ended. If it left neither result nor failure, start it
        again, or give it up after too many attempts.
        """
        if folder.result is not None:
            self._follow(run, folder)
            self._take_result(run, folder)
        elif folder.failure is not None:
            self._end_run(run, TrainingState.FAILED, folder.failure.reason)
        # It left no reason, so it was killed, perhaps for its memory. It goes on from its last
        # saved state.
        elif run.attempts < self._training.attempts:
            logger.warning(
                "the process of a run died, starting it again", job=run.job.id, status=status
            )
            self._start(run, folder)
        else:
            how = (
                f"was killed by signal {-status}, out of memory perhaps"
                if status < 0
                else f"ended with {status}"
            )
            self._end_run(
                run, TrainingState.FAILED, f"its process {how}; see {folder.folder / OUTPUT}"
            )

    def _take_result(self, run: Run, folder: JobFolder) -> None:
        result = folder.result
        assert result is not None  # noqa: S101 - asked for only where there is one
        artifact = self._artifacts.put_folder(folder.folder / MODEL)
        version = f"{run.job.config.method}-{artifact.sha256[:12]}"
        candidate = Checkpoint(
            name=run.job.target,
            version=version,
            kind=_kind(run.job.config),
            state=CheckpointState.CANDIDATE,
            artifact=artifact,
            lineage=Lineage(
                learner=f"{run.job.config.method}@{LEARNER_VERSION}",
                config_sha256=run.job.config.sha256,
                ranges=run.job.manifest.ranges,
                examples=run.job.manifest.examples,
                parent=run.job.parent,
            ),
            metrics=result.metrics,
            reason=f"{run.job.manifest.examples} examples",
        )
        # The version is the hash of the weights, and a version is announced once.
        if (candidate.name, version) in self._known.checkpoints.all:
            self._end_run(run, TrainingState.SUCCEEDED, "the same weights as before", version)
            return
        reason = None
        try:
            # Served before it is announced: promotion may give it rollouts at once.
            server = self.keeper.serve(candidate)
            candidate = candidate.model_copy(update={"endpoint": server.endpoint(version)})
            metrics, reason = self._check(candidate, run, folder)
            candidate = candidate.model_copy(update={"metrics": candidate.metrics | metrics})
        except (ServingError, RejectedRecordError) as error:
            reason = f"cannot be served: {error}"
        if reason is not None:
            # A rejected version is not kept served, so its address would be wrong.
            candidate = candidate.model_copy(update={"endpoint": None})
        self._announce(candidate)
        if reason is not None:
            self._announce(
                candidate.model_copy(update={"state": CheckpointState.REJECTED, "reason": reason})
            )
        self._end_run(run, TrainingState.SUCCEEDED, reason or "announced", version)

    def _check(
        self, candidate: Checkpoint, run: Run, folder: JobFolder
    ) -> tuple[dict[str, float], str | None]:
        """Ask a candidate, and what serves now, the held-out prompts.

        Returns:
            The figures, and the reason to refuse the candidate; None if there is none.
        """
        check = self._training.check
        cases = folder.cases[: check.prompts]
        assert candidate.endpoint is not None  # noqa: S101 - it was served just now
        serving = self._known.serving(candidate.name)
        timeout_s = self._training.serving.timeout_s
        return check_candidate(
            candidate.endpoint, serving, cases, self._earlier(run), check, timeout_s
        )

    def _earlier(self, run: Run) -> list[Case]:
        """Return held-out prompts of the target's earlier runs, a sample if there are many."""
        jobs = dict.fromkeys(
            training.job
            for training in self._known.trainings.runs.values()
            if training.target == run.job.target and training.state is TrainingState.SUCCEEDED
        )
        found = [
            case
            for job in jobs
            if job != run.job.id
            for case in JobFolder(self._folder / job).cases
        ]
        most = self._training.check.earlier
        # Seeded by the job, so that a repeated run is asked the same prompts.
        return found if len(found) <= most else Random(run.job.id).sample(found, most)  # noqa: S311

    def _change(self, run: Run, state: TrainingState, reason: str) -> None:
        run.training = run.training.model_copy(update={"state": state, "reason": reason})
        self._publish(run.training)

    def _end_run(
        self, run: Run, state: TrainingState, reason: str, version: str | None = None
    ) -> None:
        run.training = run.training.model_copy(update={"version": version})
        self._change(run, state, reason)
        del self._runs[run.job.id]

    def _publish(self, training: Training) -> None:
        event = TrainingEvent(payload=training)
        self._log.append([Outgoing.of(TRAININGS, training.target, event).record()])
        # Not only when the log is read again: the next step must already know it.
        self._known.trainings.apply(event)
        for track in self._trackers:
            track(training)

    def _announce(self, checkpoint: Checkpoint) -> None:
        event = CheckpointEvent(payload=checkpoint)
        self._log.append([Outgoing.of(CHECKPOINTS, checkpoint.name, event).record()])
        self._known.checkpoints.apply(event)


def _training(job: Job, order: CommandEvent) -> Training:
    return Training(
        job=job.id,
        order=order.event_id,
        target=job.target,
        method=job.config.method,
        state=TrainingState.QUEUED,
        manifest=job.manifest,
        config_sha256=job.config.sha256,
        parent=job.parent,
        reason=order.payload.reason,
    )


def _kind(config: AnyConfig) -> Any:
    return "adapter" if config.lora is not None and not config.lora.merge else "model"


def _stop_process(process: "subprocess.Popen[bytes] | None") -> None:
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
