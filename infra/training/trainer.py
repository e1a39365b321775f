"""The trainer: follows commands, runs jobs, serves what they made, checks it, announces it, stops what nothing needs.

Everything it knows it reads from the log again when it starts: orders on `commands`, what became of them on
`trainings`, what was announced on `checkpoints` and what is served on `routes`. So one that was killed goes on.
"""

import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from infra.config import Settings
from infra.serving.servers import Server, Servers, ServingError
from infra.training.checks import examined, refused
from infra.training.jobs import JOB, OUTPUT, Job, JobFolder, started
from infra.training.tracking import trackers
from learners.registry import merged
from learners.training.config import HEADS, AnyConfig
from schemas.checkpoints import Artifact, Checkpoint, CheckpointEvent, CheckpointState, Lineage
from schemas.commands import Command, CommandEvent
from schemas.endpoints import Endpoint
from schemas.envelope import AnyEvent
from schemas.routes import Route, RouteEvent
from schemas.serialization import UndecodableError, decode_all
from schemas.topics import CHECKPOINTS, COMMANDS, ROUTES, TRAININGS
from schemas.trainings import ENDED, Training, TrainingEvent, TrainingState
from streams.artifacts import FOLDER_TYPE, ArtifactStore
from streams.errors import RejectedRecordError
from streams.log import Log
from streams.records import Outgoing

POLL_S = 0.2
STOP_TIMEOUT_S = 15.0
LEARNER_VERSION = 1
SERVED = frozenset(
    {CheckpointState.CANDIDATE, CheckpointState.EVALUATED, CheckpointState.CANARY, CheckpointState.PROMOTED}
)
"""States in which a checkpoint's server must answer."""

log_event = structlog.get_logger(__name__)


@dataclass
class Run:
    """A job and where it stands."""

    job: Job
    training: Training
    process: "subprocess.Popen[bytes] | None" = None
    attempts: int = 0
    read: int = 0


@dataclass
class Known:
    """What the log says."""

    trainings: dict[str, Training] = field(default_factory=dict)
    checkpoints: dict[tuple[str, str], Checkpoint] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    orders: list[Command] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)

    def promoted(self, name: str) -> Checkpoint | None:
        """Return the version of a name that serves, if one was promoted."""
        found = (c for c in self.checkpoints.values() if c.name == name and c.state is CheckpointState.PROMOTED)
        return next(found, None)


class Trainer:
    """Runs jobs and serves what they made.

    Args:
        log: of its own.
    """

    topics = (TRAININGS, CHECKPOINTS, ROUTES, COMMANDS)

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings, self._log = settings, log
        self._training = settings.training
        self._folder = settings.data_dir / "trainings"
        self._artifacts = ArtifactStore(settings.artifacts_dir)
        self._servers = Servers(settings.training.serving, settings.data_dir / "logs" / "models")
        self._trackers = trackers(settings.training.track, settings.data_dir / "tracking")
        self._known = Known()
        self._runs: dict[str, Run] = {}
        self._idle_since: dict[str, float] = {}
        self._positions = {(t.name, p): begin for t in self.topics for p, begin in log.beginnings(t.name).items()}
        self._stop = threading.Event()

    def run(self) -> None:
        """Work until `stop`; jobs that run then are stopped, and go on when a trainer starts again."""
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
        """Read what is new, and do what follows from it."""
        self._read()
        self._take_orders()
        for run in list(self._runs.values()):
            self._advance(run)
        self._keep_serving()

    def close(self) -> None:
        """Stop the jobs and the servers."""
        for run in self._runs.values():
            _end(run.process)
        self._servers.close()

    def _read(self) -> None:
        while records := self._log.fetch(self._positions, 500):
            for record in records:
                self._positions[record.topic, record.partition] = record.offset + 1
                topic = next(topic for topic in self.topics if topic.name == record.topic)
                try:
                    events = decode_all(topic.event, record.value) if record.value is not None else []
                except UndecodableError:
                    continue  # whoever processes the topic makes it a dead letter
                for event in events:
                    self._take(event)

    def _take(self, event: AnyEvent) -> None:
        known = self._known
        match event:
            case TrainingEvent(payload=training):
                known.trainings[training.job] = training
            case CheckpointEvent(payload=change):
                before = known.checkpoints.get((change.name, change.version))
                known.checkpoints[change.name, change.version] = merged(before, change) if before else change
            case RouteEvent(payload=route):
                known.routes[route.name] = route
            case CommandEvent(payload=order) if order.target in self._training.models:
                if order.action == "train" and order.manifest is not None:
                    known.orders.append(order)
                elif order.action == "cancel":
                    known.cancelled.add(str(order.arguments.get("job", "")))
            case _:
                pass

    def _take_orders(self) -> None:
        """Queue what was ordered and has not come to an end; what began before goes on as it began."""
        orders, self._known.orders = self._known.orders, []
        for order in orders:
            assert order.manifest is not None  # noqa: S101 - others are not kept
            config = self._config(order)
            if config is None:
                continue
            before = [t for t in self._known.trainings.values() if _is_about(t, order, config)]
            queued = [run for run in self._runs.values() if _is_about(run.training, order, config)]
            if queued or any(training.state in ENDED for training in before):
                continue
            parent = self._parent(order.target, before[-1].parent if before else None)
            job = Job(target=order.target, config=config, manifest=order.manifest, parent=parent)
            run = Run(job, _training(job, TrainingState.QUEUED, order.reason))
            self._runs[job.id] = run
            if not before:
                self._publish(run.training)

    def _config(self, order: Command) -> AnyConfig | None:
        """Return how an order's lessons are learned from."""
        assert order.manifest is not None  # noqa: S101 - orders without one are not for us
        wanted = order.arguments.get("method")
        for config in self._training.models[order.target]:
            if wanted == config.method or (wanted is None and HEADS[config.method] == order.manifest.head):
                return config
        log_event.warning("nothing learns so", target=order.target, method=wanted, head=order.manifest.head)
        return None

    def _parent(self, target: str, begun_with: str | None) -> str | None:
        """Return the version that a run begins with: what it began with before, else what serves."""
        promoted = self._known.promoted(target)
        return begun_with or (promoted.version if promoted is not None else None)

    def _advance(self, run: Run) -> None:
        folder = JobFolder(self._folder / run.job.id)
        if run.job.id in self._known.cancelled:
            _end(run.process)
            self._ended(run, TrainingState.CANCELLED, "asked for")
        elif run.process is None and folder.result is not None:
            self._made(run, folder)  # an earlier trainer ended before it could tell
        elif run.process is None:
            if sum(other.process is not None for other in self._runs.values()) < self._training.concurrency:
                self._start(run, folder)
        else:
            self._follow(run, folder)
            if run.process.poll() is not None:
                self._finish(run, folder, run.process.returncode)

    def _start(self, run: Run, folder: JobFolder) -> None:
        try:
            job = run.job.model_copy(update={"parent_folder": self._weights(run.job.target, run.job.parent)})
        except RejectedRecordError as error:
            self._ended(run, TrainingState.FAILED, f"its parent cannot be read: {error}")
            return
        folder.write(JOB, job)
        run.attempts += 1
        run.process = started(self._settings, folder)
        self._change(run, TrainingState.RUNNING, f"attempt {run.attempts}")

    def _follow(self, run: Run, folder: JobFolder) -> None:
        steps, run.read = folder.progress(run.read)
        for step in steps:
            run.training = run.training.model_copy(
                update={"step": step.step, "steps": step.steps, "metrics": step.metrics, "reason": ""}
            )
            self._publish(run.training)

    def _finish(self, run: Run, folder: JobFolder, status: int) -> None:
        """Serve and announce what a job made; begin it again where it said nothing, or give it up."""
        if folder.result is not None:
            self._follow(run, folder)
            self._made(run, folder)
        elif folder.failure is not None:
            self._ended(run, TrainingState.FAILED, folder.failure.reason)
        elif run.attempts < self._training.attempts:
            log_event.warning("a training died, beginning it again", job=run.job.id, status=status)
            self._start(run, folder)
        else:
            how = f"was killed by signal {-status}, out of memory perhaps" if status < 0 else f"ended with {status}"
            self._ended(run, TrainingState.FAILED, f"its process {how}; see {folder.folder / OUTPUT}")

    def _made(self, run: Run, folder: JobFolder) -> None:
        result = folder.result
        assert result is not None  # noqa: S101 - asked for only where there is one
        artifact = self._artifacts.put_folder(folder.folder / "model")
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
                lessons=run.job.manifest.lessons,
                parent=run.job.parent,
            ),
            metrics=result.metrics,
            reason=f"{run.job.manifest.lessons} lessons",
        )
        if (candidate.name, version) in self._known.checkpoints:
            self._ended(run, TrainingState.SUCCEEDED, "the same weights as before", version)
            return
        reason = None
        try:
            server = self._serve(candidate)
            candidate = candidate.model_copy(update={"endpoint": server.endpoint(version)})
            metrics, reason = self._checked(candidate, folder)
            candidate = candidate.model_copy(update={"metrics": candidate.metrics | metrics})
        except (ServingError, RejectedRecordError) as error:
            reason = f"cannot be served: {error}"
        if reason is not None:
            candidate = candidate.model_copy(update={"endpoint": None})
        self._announce(candidate)
        if reason is not None:
            self._announce(candidate.model_copy(update={"state": CheckpointState.REJECTED, "reason": reason}))
        self._ended(run, TrainingState.SUCCEEDED, reason or "announced", version)

    def _checked(self, candidate: Checkpoint, folder: JobFolder) -> tuple[dict[str, float], str | None]:
        """Ask a candidate, and what serves now, the run's held-out prompts; return the figures and why to refuse it."""
        cases = folder.cases[: self._training.check.prompts]
        if not cases:
            return {}, None
        timeout_s = self._training.serving.timeout_s
        assert candidate.endpoint is not None  # noqa: S101 - it was served just now
        found = examined(candidate.endpoint, cases, timeout_s)
        serving = self._serving_now(candidate.name)
        champion = examined(serving, cases, timeout_s) if serving is not None else None
        metrics = found.metrics("held_out_") | (champion.metrics("champion_") if champion else {})
        return metrics, refused(found, champion, self._training.check)

    def _serving_now(self, name: str) -> Endpoint | None:
        route = self._known.routes.get(name)
        return max(route.targets, key=lambda target: target.weight).endpoint if route is not None else None

    def _keep_serving(self) -> None:
        """Start servers that died, and those that routes lead to; stop what nothing leads to any more."""
        wanted = {(c.name, c.version): c for c in self._known.checkpoints.values() if self._wanted(c)}
        for checkpoint in wanted.values():
            try:
                self._serve(checkpoint)
            except (ServingError, RejectedRecordError) as error:
                log_event.warning("not served", name=checkpoint.name, version=checkpoint.version, error=str(error))
        names = {version for _, version in wanted}
        bases = {self._base(c) for c in wanted.values() if c.kind == "adapter"}
        for weights, server in list(self._servers.servers.items()):
            for adapter in [a for a in server.adapters if a not in names]:
                if self._idle(adapter):
                    self._servers.unload(server, adapter)
            needed = server.name in names or weights in bases or bool(server.adapters)
            if not needed and self._idle(server.name):
                self._servers.stop(weights)
        for name in [name for name in self._idle_since if name in names]:
            del self._idle_since[name]

    def _wanted(self, checkpoint: Checkpoint) -> bool:
        """Return whether one of our checkpoints must be served: it is under way, a route leads to it, or may again."""
        if checkpoint.endpoint is None or checkpoint.artifact is None or checkpoint.artifact.media_type != FOLDER_TYPE:
            return False
        route = self._known.routes.get(checkpoint.name)
        routed = [t.version for t in [*route.targets, *route.fallbacks, *route.shadows]] if route else []
        promoted = self._known.promoted(checkpoint.name)
        parent = promoted.lineage.parent if promoted is not None and promoted.lineage else None
        # The parent of what serves is what a drop would bring back.
        return checkpoint.state in SERVED or checkpoint.version in routed or checkpoint.version == parent

    def _idle(self, name: str) -> bool:
        """Return whether a server has been unneeded for long enough that no call of it is in flight."""
        since = self._idle_since.setdefault(name, time.monotonic())
        if time.monotonic() - since < self._training.serving.drain_s:
            return False
        del self._idle_since[name]
        return True

    def _serve(self, checkpoint: Checkpoint) -> Server:
        """Serve a checkpoint, where it was served before if it was."""
        folder = self._weights(checkpoint.name, checkpoint.version, checkpoint.artifact)
        assert folder is not None  # noqa: S101 - a checkpoint of ours has an artifact
        port = _port(checkpoint.endpoint)
        if checkpoint.kind != "adapter":
            return self._servers.serve(str(folder), checkpoint.version, port)
        base = self._base(checkpoint)
        return self._servers.serve_adapter(base, Path(base).name, checkpoint.version, folder, port)

    def _base(self, checkpoint: Checkpoint) -> str:
        """Return the whole weights below an adapter."""
        return self._training.models[checkpoint.name][0].base

    def _weights(self, name: str, version: str | None, artifact: Artifact | None = None) -> Path | None:
        """Return the folder of a version's weights, laid out from the artifact store; None for the base."""
        if version is None:
            return None
        if artifact is None:
            known = self._known.checkpoints.get((name, version))
            artifact = known.artifact if known is not None else None
        if artifact is None or artifact.media_type != FOLDER_TYPE:
            raise RejectedRecordError(f"{name} {version} has no weights")
        return self._artifacts.get_folder(artifact, self._settings.data_dir / "models" / artifact.sha256[:16])

    def _change(self, run: Run, state: TrainingState, reason: str) -> None:
        run.training = run.training.model_copy(update={"state": state, "reason": reason})
        self._publish(run.training)

    def _ended(self, run: Run, state: TrainingState, reason: str, version: str | None = None) -> None:
        run.training = run.training.model_copy(update={"version": version})
        self._change(run, state, reason)
        del self._runs[run.job.id]

    def _publish(self, training: Training) -> None:
        self._log.append([Outgoing.of(TRAININGS, training.target, TrainingEvent(payload=training)).record()])
        self._known.trainings[training.job] = training
        for track in self._trackers:
            track(training)

    def _announce(self, checkpoint: Checkpoint) -> None:
        event = CheckpointEvent(payload=checkpoint)
        self._log.append([Outgoing.of(CHECKPOINTS, checkpoint.name, event).record()])
        self._take(event)


def _training(job: Job, state: TrainingState, reason: str) -> Training:
    return Training(
        job=job.id,
        target=job.target,
        method=job.config.method,
        state=state,
        manifest=job.manifest,
        config_sha256=job.config.sha256,
        parent=job.parent,
        reason=reason,
    )


def _is_about(training: Training, order: Command, config: AnyConfig) -> bool:
    """Return whether a run is what an order asks for."""
    same_config = training.config_sha256 == config.sha256 and training.method == config.method
    return training.target == order.target and training.manifest == order.manifest and same_config


def _kind(config: AnyConfig) -> Any:
    return "adapter" if config.lora is not None and not config.lora.merge else "model"


def _port(endpoint: Endpoint | None) -> int | None:
    """Return the port that a checkpoint's endpoint names."""
    if endpoint is None:
        return None
    return int(endpoint.base_url.rpartition(":")[2].partition("/")[0])


def _end(process: "subprocess.Popen[bytes] | None") -> None:
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
