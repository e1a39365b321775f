"""The trainer: orders come to an end whatever happens to a run or to the trainer itself, and
nothing is run twice.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydantic import TypeAdapter

from infra.config.settings import Settings
from infra.installation.training import configured_trainer
from infra.runtime.errors import ConfigError
from infra.serving.servers import Servers
from infra.serving.settings import ServingSettings
from infra.training.settings import CheckSettings, TrainingSettings
from infra.training.trackers import trackers
from infra.training.trainer import Trainer
from learners.training.config import AnyConfig
from schemas.checkpoints import Checkpoint, CheckpointState, OffsetRange
from schemas.commands import Command, CommandEvent
from schemas.manifests import Manifest
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.topics import COMMANDS, EXAMPLES, ROUTES
from schemas.trainings import ENDED, Training, TrainingState
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.records import Outgoing
from tests.training.test_loop import checkpoints, trainings
from tests.training.test_trainers import config, examples

TARGET = "writer"


def settings_of(folder: Path, base: Path, **more: Any) -> Settings:
    """Return an installation that trains quickly and checks nothing."""
    training = TrainingSettings(
        models={
            TARGET: (
                TypeAdapter[AnyConfig](AnyConfig).validate_python(config(base, "sft", **more)),
            )
        },
        serving=ServingSettings(start_timeout_s=120, drain_s=0.0),
        check=CheckSettings(prompts=0, earlier=0),
    )
    return Settings(data_dir=folder, training=training)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    with EmbeddedLog(tmp_path / "log.db") as opened:
        yield opened


def order(log: EmbeddedLog, number: int = 1) -> Manifest:
    """Write examples, and order a run on them."""
    written = log.append([Outgoing.of(EXAMPLES, TARGET, event).record() for event in examples()])
    ranges = [
        OffsetRange(
            topic=EXAMPLES.name,
            partition=partition,
            first=min(o for p, o in written if p == partition),
            last=max(o for p, o in written if p == partition),
        )
        for partition in sorted({p for p, _ in written})
    ]
    manifest = Manifest(
        target=TARGET, head="sft", ranges=ranges, examples=len(written), number=number
    )
    command(log, Command(target=TARGET, action="train", manifest=manifest, reason="by hand"))
    return manifest


def command(log: EmbeddedLog, said: Command) -> None:
    log.append([Outgoing.of(COMMANDS, TARGET, CommandEvent(payload=said)).record()])


@contextmanager
def trainer_of(settings: Settings, log: EmbeddedLog) -> Iterator[Trainer]:
    trainer = configured_trainer(settings, log)
    try:
        yield trainer
    finally:
        trainer.close()


def until(trainer: Trainer, done: Callable[[], Any]) -> Any:
    """Let a trainer work until something is there."""
    deadline = time.monotonic() + 240
    while not (found := done()):
        assert time.monotonic() < deadline, "it never happened"
        trainer.run_once()
        time.sleep(0.05)
    return found


def ended(log: EmbeddedLog) -> Training | None:
    return next((training for training in trainings(log) if training.state in ENDED), None)


def reasons(log: EmbeddedLog, reason: str) -> list[Training]:
    return [training for training in trainings(log) if training.reason == reason]


def announced(log: EmbeddedLog) -> list[Checkpoint]:
    return [c for c in checkpoints(log) if c.state is CheckpointState.CANDIDATE]


def process_of(trainer: Trainer) -> int | None:
    running = [run.process.pid for run in trainer._runs.values() if run.process is not None]
    return running[0] if running else None


def test_what_cannot_be_trained_on_fails_with_its_reason_and_is_not_begun_again(
    log: EmbeddedLog, base: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, base, max_length=8)
    manifest = order(log)
    with trainer_of(settings, log) as trainer:
        failed = until(trainer, lambda: ended(log))
    assert (failed.state, "max_length = 8" in failed.reason) == (TrainingState.FAILED, True)
    assert announced(log) == []
    command(log, Command(target=TARGET, action="train", manifest=manifest, reason="once more"))
    with trainer_of(settings, log) as trainer:
        again = until(
            trainer,
            lambda: next((t for t in trainings(log) if t.state in ENDED and t != failed), None),
        )
    assert (again.job, again.order != failed.order) == (failed.job, True), (
        "who orders it again gets it again"
    )
    count = len(trainings(log))
    with trainer_of(settings, log) as trainer:
        for _ in range(5):
            trainer.run_once()
    assert len(trainings(log)) == count


def test_a_run_that_is_killed_is_begun_again_and_given_up_in_the_end(
    log: EmbeddedLog, base: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, base, steps=100_000, save_every=10)
    order(log)
    with trainer_of(settings, log) as trainer:
        for attempt in (1, 2):
            until(trainer, partial(reasons, log, f"attempt {attempt}"))
            psutil.Process(process_of(trainer)).kill()
        failed = until(trainer, lambda: ended(log))
    assert failed.state is TrainingState.FAILED
    assert "killed by signal 9" in failed.reason


def test_a_run_can_be_cancelled(log: EmbeddedLog, base: Path, tmp_path: Path) -> None:
    order(log)
    with trainer_of(settings_of(tmp_path, base, steps=100_000), log) as trainer:
        pid = until(trainer, lambda: process_of(trainer))
        command(
            log, Command(target=TARGET, action="cancel", arguments={"job": trainings(log)[0].job})
        )
        cancelled = until(trainer, lambda: ended(log))
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert cancelled.state is TrainingState.CANCELLED


def test_a_trainer_that_is_stopped_goes_on_when_it_starts_again(
    log: EmbeddedLog, base: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, base)
    order(log)
    with trainer_of(settings, log) as trainer:
        until(trainer, lambda: process_of(trainer))
    assert ended(log) is None
    with trainer_of(settings, log) as trainer:
        done = until(trainer, lambda: ended(log))
        (candidate,) = announced(log)
        assert candidate.endpoint is not None
        assert (done.version, candidate.version) == (candidate.version, done.version)
        assert [str(t.state) for t in trainings(log)].count("queued") == 1
        health = candidate.endpoint.base_url.removesuffix("/v1") + "/health"
        assert httpx.get(health).is_success
    with trainer_of(settings, log) as trainer:
        until(trainer, lambda: trainer.keeper.servers.servers)
        assert httpx.get(health).is_success, "what is announced is served again, and where it was"


def test_an_adapter_is_loaded_into_its_bases_server_and_leaves_it_when_nothing_needs_it(
    log: EmbeddedLog, base: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, base, lora={"rank": 4, "merge": False}, special_tokens=[])
    order(log)
    with trainer_of(settings, log) as trainer:
        until(trainer, lambda: ended(log))
        (candidate,) = announced(log)
        assert candidate.kind == "adapter"
        assert candidate.endpoint is not None
        (server,) = trainer.keeper.servers.servers.values()
        assert (server.weights, list(server.adapters)) == (str(base), [candidate.version])
        body = {
            "model": candidate.version,
            "messages": [{"role": "user", "content": "book"}],
            "max_tokens": 4,
        }
        answer = httpx.post(f"{candidate.endpoint.base_url}/chat/completions", json=body)
        assert answer.is_success, answer.text
        target = RouteTarget(version=candidate.version, endpoint=candidate.endpoint)
        route = Route(name=TARGET, kind="model", targets=[target])
        log.append([Outgoing.of(ROUTES, TARGET, RouteEvent(payload=route)).record()])
        trainer._announce(candidate.model_copy(update={"state": CheckpointState.REJECTED}))
        for _ in range(3):
            trainer.run_once()
        assert trainer.keeper.servers.servers, "a route leads to it, whatever its state"
        other = route.model_copy(
            update={"targets": [target.model_copy(update={"version": "other"})]}
        )
        log.append([Outgoing.of(ROUTES, TARGET, RouteEvent(payload=other)).record()])
        until(trainer, lambda: not trainer.keeper.servers.servers)


def test_a_server_that_a_killed_trainer_left_and_nothing_needs_is_stopped(
    log: EmbeddedLog, base: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, base)
    killed = Servers(settings.training.serving, tmp_path / "logs" / "models")
    left = killed.serve(str(base), "left")
    assert left.alive
    killed._http.close()  # all that a kill would have closed
    with trainer_of(settings, log) as trainer:
        assert [server.name for server in trainer.keeper.servers.servers.values()] == ["left"]
        until(trainer, lambda: not left.alive)
    assert not list((tmp_path / "logs" / "models").glob("*.json"))


def test_trackers_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match="tensorboard, mlflow, wandb"):
        trackers(["oracle"], Path())
    with pytest.raises(ConfigError, match="mlflow, which is not installed"):
        trackers(["mlflow"], Path())


def test_where_the_cheaper_way_failed_the_next_is_taken(
    log: EmbeddedLog, base: Path, tmp_path: Path
) -> None:
    cheap, dear = config(base, "sft", max_length=8), config(base, "sft")
    settings = settings_of(tmp_path, base)
    ways = settings.training.model_copy(update={"models": {TARGET: (cheap, dear)}})
    order(log)
    with trainer_of(settings.model_copy(update={"training": ways}), log) as trainer:
        first = until(trainer, lambda: ended(log))
        assert (first.state, first.config_sha256) == (TrainingState.FAILED, cheap.sha256)
        order(log, 2)
        second = until(
            trainer,
            lambda: next((t for t in trainings(log) if t.state in ENDED and t != first), None),
        )
    assert (second.state, second.config_sha256) == (TrainingState.SUCCEEDED, dear.sha256)
