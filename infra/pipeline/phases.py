"""Phases one after another: rollouts, an order to train, the run, the trial, the switch, a
measurement.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from random import Random
from typing import Any

from everloop_client import AsyncClient
from pydantic import BaseModel

from infra.analytics.report import Report
from infra.pipeline.agents import PlannedRollout, configured_agent, run_rollouts
from infra.pipeline.settings import PhaseSettings, PipelineSettings
from infra.pipeline.tasks import PipelineTask
from infra.runtime.errors import ConfigError
from infra.training.views import TrainingViews
from learners.training.config import HEADS, AnyConfig
from schemas.checkpoints import Checkpoint, CheckpointState
from schemas.commands import Command, CommandEvent
from schemas.rollouts import Split
from schemas.topics import COMMANDS
from schemas.trainings import ENDED, Training
from streams.processing.processor import Processor
from streams.runners.lag import wait_until_taken
from streams.storage.log import Log
from streams.storage.records import Outgoing

DRAIN_TIMEOUT_S = 120.0
POLL_S = 0.2
TRIED_TOGETHER = 8
UNDECIDED = frozenset(
    {CheckpointState.CANDIDATE, CheckpointState.EVALUATED, CheckpointState.CANARY}
)


class PhaseResult(BaseModel):
    """What a phase came to.

    Attributes:
        rollouts: those of its trial included, those of its measurement not.
        state: of what was learned: `promoted` means that it serves; `failed` and `cancelled` are of
            the run, `nothing` means that there was nothing to learn from. None where the phase only
            gathers.
        group: of its rollouts on held-out tasks in the report.
        held_out: how many those are.
        mean_reward, success_rate, decision_alignment: of those.
    """

    round: int
    phase: str
    target: str | None
    method: str | None
    rollouts: int
    version: str | None = None
    state: str | None = None
    reason: str = ""
    group: str | None = None
    held_out: int = 0
    mean_reward: float | None = None
    success_rate: float | None = None
    decision_alignment: float | None = None


@dataclass(frozen=True)
class Came:
    """What a learner's turn came to; fields as of `PhaseResult`."""

    state: str
    reason: str = ""
    version: str | None = None


def check_pipeline(
    settings: PipelineSettings,
    policies: Collection[str],
    models: Mapping[str, Sequence[AnyConfig]],
) -> None:
    """Refuse phases that nothing here can learn.

    Args:
        policies: logical names of the policies that are learned.
        models: logical name of each model that is trained to the ways it is trained in.

    Raises:
        ConfigError: with what is missing.
    """
    if not settings.phases:
        raise ConfigError("pipeline: there are no phases; set pipeline.phases")
    configured_agent(settings)
    for phase in settings.phases:
        if phase.method == "bandit" and phase.target not in policies:
            raise ConfigError(
                f"pipeline: no policy {phase.target!r} is learned; there are {policies}"
            )
        if phase.target is None or phase.method in (None, "bandit"):
            continue
        if phase.method not in [config.method for config in models.get(phase.target, ())]:
            raise ConfigError(
                f"pipeline: phase {phase.name} trains {phase.target} by {phase.method}; say how in"
                f" [[training.models.{phase.target}]]"
            )


class Pipeline:
    """Runs phases against a gateway.

    Args:
        log: of the installation.
        processors: of the installation; a phase waits until they have taken what it wrote.
        on_progress: called with what is being done.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        gateway_url: str,
        log: Log,
        processors: Sequence[Processor[Any]],
        tasks: Sequence[PipelineTask],
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._pipeline, self._log = settings, log
        self._say = on_progress
        self._processors = processors
        self._known = TrainingViews(
            {phase.target for phase in self._pipeline.phases if phase.target}
        )
        order = list(tasks)
        Random(0).shuffle(order)  # noqa: S311 - a reproducible order, not a secret
        self._held_out = list(
            islice((task for task in order if task.held_out), self._pipeline.held_out)
        )
        taught = [task for task in order if not task.held_out]
        if not taught or (self._pipeline.held_out and not self._held_out):
            raise ConfigError(
                f"{len(tasks)} tasks are too few: some are learned from, some held out"
            )
        self._tasks = cycle(taught)
        self._loop = (
            asyncio.Runner()
        )  # one for all phases: what the models' clients hold belongs to its loop
        self._agent = configured_agent(self._pipeline)
        api_key = settings.api_key
        self._client = AsyncClient(gateway_url, api_key.get_secret_value() if api_key else None)
        self._numbers = count()
        self._name = f"pipeline-{time.time_ns() // 1_000_000:x}"

    def close(self) -> None:
        """Close the connections."""
        self._loop.run(self._client.close())
        self._loop.close()

    def rounds(self, rounds: int | None) -> Iterator[PhaseResult]:
        """Yield what each phase came to, as it ends.

        Args:
            rounds: how often all phases are run; None goes on for ever.

        Raises:
            NotDrainedError: the workers do not keep up.
        """
        for number in count(1) if rounds is None else range(1, rounds + 1):
            for phase in self._pipeline.phases:
                yield self._run(number, phase)

    def _run(self, number: int, phase: PhaseSettings) -> PhaseResult:
        group = f"{number}-{phase.name}"
        self._gather(phase, group, phase.rollouts)
        result = PhaseResult(
            round=number,
            phase=phase.name,
            target=phase.target,
            method=phase.method,
            rollouts=phase.rollouts,
        )
        if phase.method is not None:
            came, tried = self._learn(phase, group)
            result = result.model_copy(
                update={
                    "state": came.state,
                    "version": came.version,
                    "reason": came.reason,
                    "rollouts": phase.rollouts + tried,
                }
            )
        if self._held_out:
            result.group, result.held_out = f"{group}-held-out", len(self._held_out)
            self._say(f"{group}: measuring on {len(self._held_out)} held-out tasks")
            self._rollouts(self._held_out, "test", result.group)
        return result

    def _learn(self, phase: PhaseSettings, group: str) -> tuple[Came, int]:
        """Have a learner take its turn, and rollouts run until the gate has decided; return how
        many those were.
        """
        assert phase.target is not None  # noqa: S101 - a phase with a method has a target
        version = None
        self._known.catch_up(self._log)
        if phase.method == "bandit":
            before = self._known.promoted(phase.target)
        else:
            training = self._trained(phase, group)
            if training is None:
                return Came(
                    "nothing", "no examples: see `everloop events tail examples` for what there is"
                ), 0
            version = training.version
            if version is None:
                return Came(str(training.state), training.reason), 0
        tried = 0
        while self._undecided(phase.target, version) and tried < phase.trial:
            together = min(TRIED_TOGETHER, phase.trial - tried)
            self._gather(phase, group, together)
            tried += together
            self._known.catch_up(self._log)
        if phase.method == "bandit":
            after = self._known.promoted(phase.target)
            if after is None or (before is not None and after.version == before.version):
                return Came("kept", "nothing surely better was learned"), tried
            return _came(after), tried
        return _came(self._known.checkpoints.all[phase.target, str(version)]), tried

    def _trained(self, phase: PhaseSettings, group: str) -> Training | None:
        """Order a run on what was gathered since the last, and return how it ended; None without
        examples.
        """
        assert phase.target is not None  # noqa: S101 - a phase with a method has a target
        assert phase.method is not None  # noqa: S101 - asked for where there is one
        assert phase.method != "bandit"  # noqa: S101 - it learns by itself
        self._known.catch_up(self._log)
        self._known.orders.take()
        order = Command(
            target=phase.target,
            action="train",
            arguments={"head": HEADS[phase.method], "method": phase.method},
            reason=f"phase {group}",
        )
        self._log.append(
            [Outgoing.of(COMMANDS, phase.target, CommandEvent(payload=order)).record()]
        )
        self._drained()
        self._known.catch_up(self._log)
        closed = next(
            (
                o
                for o in self._known.orders.waiting
                if o.payload.manifest and o.payload.reason == order.reason
            ),
            None,
        )
        if closed is None:
            return None
        self._say(f"{group}: {phase.target} learns by {phase.method}")
        deadline = time.monotonic() + self._pipeline.training_s
        while (
            training := self._known.trainings.runs.get(closed.event_id)
        ) is None or training.state not in ENDED:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{group}: the run did not end in {self._pipeline.training_s:.0f} s"
                    " (pipeline.training_s);"
                    " see `everloop trainings`, and whether a trainer runs"
                )
            time.sleep(POLL_S)
            self._known.catch_up(self._log)
        return training

    def _undecided(self, target: str, version: str | None) -> bool:
        """Return whether the gate has still to decide on a version, on any of the target's where it
        is None.
        """
        return any(
            checkpoint.state in UNDECIDED and version in (None, checkpoint.version)
            for checkpoint in self._known.checkpoints.all.values()
            if checkpoint.name == target
        )

    def _gather(self, phase: PhaseSettings, group: str, rollouts: int) -> None:
        self._say(
            f"{group}: {rollouts} rollouts" + (f" for {phase.target}" if phase.target else "")
        )
        repeated = (task for task in self._tasks for _ in range(phase.samples))
        self._rollouts(islice(repeated, rollouts), "train", group)

    def _rollouts(self, tasks: Iterable[PipelineTask], split: Split, group: str) -> None:
        planned = [
            PlannedRollout(f"{self._name}-{next(self._numbers):06d}", task, split, group)
            for task in tasks
        ]
        self._loop.run(run_rollouts(self._agent, self._client, self._pipeline, planned))
        self._drained()

    def _drained(self) -> None:
        wait_until_taken(self._log, self._processors, DRAIN_TIMEOUT_S)


def measured(results: Sequence[PhaseResult], report: Report) -> list[PhaseResult]:
    """Return the results with what the report says of their rollouts on held-out tasks."""
    groups = {group.group: group for group in report.groups}
    found = []
    for result in results:
        group = groups.get(result.group or "")
        update: dict[str, Any] = {}
        if group is not None:
            update = group.model_dump(include={"mean_reward", "success_rate", "decision_alignment"})
        found.append(result.model_copy(update=update))
    return found


def _came(checkpoint: Checkpoint) -> Came:
    return Came(str(checkpoint.state), checkpoint.reason, checkpoint.version)
