"""The pipeline: runs its phases one after another.

A phase gathers rollouts, orders a training run and waits for it. Then it runs rollouts until the
gate has decided, and measures on held-out tasks.
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
    """The outcome of a phase.

    Attributes:
        rollouts: how many it ran, in its trial too; without those of its measurement.
        state: state of what was learned. `promoted`: it serves. `failed`, `cancelled`: the run
            ended so. `nothing`: there were no examples. `kept`: the bandit promoted nothing new.
            None: the phase only gathers.
        group: group of its held-out rollouts in the report.
        held_out: how many held-out rollouts it ran.
        mean_reward, success_rate, decision_alignment: of the held-out rollouts.
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
class TurnOutcome:
    """The outcome of a learner's turn; fields as in `PhaseResult`."""

    state: str
    reason: str = ""
    version: str | None = None


def check_pipeline(
    settings: PipelineSettings,
    policies: Collection[str],
    models: Mapping[str, Sequence[AnyConfig]],
) -> None:
    """Refuse phases whose target nothing can train.

    Args:
        policies: logical names of the policies that are learned.
        models: logical name of each trained model to the configurations of its methods.

    Raises:
        ConfigError: the message says what is missing.
    """
    if not settings.phases:
        raise ConfigError("pipeline: there are no phases; set pipeline.phases")
    configured_agent(settings)
    for phase in settings.phases:
        if phase.method == "bandit" and phase.target not in policies:
            raise ConfigError(
                f"pipeline: phase {phase.name} names the policy {phase.target!r}, which nothing"
                f" learns; there are: {', '.join(policies) or 'none'}"
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
                f"pipeline.tasks: {len(tasks)} tasks are too few: at least one is needed to learn"
                " from, and one that is held out"
            )
        self._tasks = cycle(taught)
        self._loop = (
            asyncio.Runner()
        )  # one for all phases: what the models' clients hold belongs to its loop
        self._agent = configured_agent(self._pipeline)
        api_key = settings.api_key
        self._client = AsyncClient(gateway_url, api_key.get_secret_value() if api_key else None)
        self._numbers = count()
        # A name of its own for each run: rollout ids must never come twice.
        self._name = f"pipeline-{time.time_ns() // 1_000_000:x}"

    def close(self) -> None:
        """Close the connections."""
        self._loop.run(self._client.close())
        self._loop.close()

    def rounds(self, rounds: int | None) -> Iterator[PhaseResult]:
        """Yield the outcome of each phase when it ends.

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
            outcome, tried = self._learn(phase, group)
            result = result.model_copy(
                update={
                    "state": outcome.state,
                    "version": outcome.version,
                    "reason": outcome.reason,
                    "rollouts": phase.rollouts + tried,
                }
            )
        if self._held_out:
            result.group, result.held_out = f"{group}-held-out", len(self._held_out)
            self._say(f"{group}: measuring on {len(self._held_out)} held-out tasks")
            self._rollouts(self._held_out, "test", result.group)
        return result

    def _learn(self, phase: PhaseSettings, group: str) -> tuple[TurnOutcome, int]:
        """Let the phase's learner learn. Run rollouts until the gate has decided. Return the
        outcome and the number of these rollouts.
        """
        assert phase.target is not None  # noqa: S101 - a phase with a method has a target
        version = None
        self._known.catch_up(self._log)
        if phase.method == "bandit":
            before = self._known.promoted(phase.target)
        else:
            training = self._train(phase, group)
            if training is None:
                return TurnOutcome(
                    "nothing", "no examples: see `everloop events tail examples` for what there is"
                ), 0
            version = training.version
            if version is None:
                return TurnOutcome(str(training.state), training.reason), 0
        tried = 0
        while self._undecided(phase.target, version) and tried < phase.trial:
            together = min(TRIED_TOGETHER, phase.trial - tried)
            self._gather(phase, group, together)
            tried += together
            self._known.catch_up(self._log)
        if phase.method == "bandit":
            after = self._known.promoted(phase.target)
            if after is None or (before is not None and after.version == before.version):
                return TurnOutcome("kept", "nothing surely better was learned"), tried
            return _outcome_of(after), tried
        return _outcome_of(self._known.checkpoints.all[phase.target, str(version)]), tried

    def _train(self, phase: PhaseSettings, group: str) -> Training | None:
        """Order a run on what was gathered since the last run. Return how it ended; None if there
        were no examples.
        """
        assert phase.target is not None  # noqa: S101 - a phase with a method has a target
        assert phase.method is not None  # noqa: S101 - asked for where there is one
        assert phase.method != "bandit"  # noqa: S101 - it learns by itself
        self._known.catch_up(self._log)
        # Orders of earlier phases are dropped, so that the one below is found by itself.
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
        # The batcher must have read the order before its answer can be looked for.
        self._wait_until_taken()
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
        """Return whether the gate has yet to decide on a version.

        Args:
            version: None means any version of the target.
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
        # Samples of a task one after another: learners compare rollouts that one version made.
        repeated = (task for task in self._tasks for _ in range(phase.samples))
        self._rollouts(islice(repeated, rollouts), "train", group)

    def _rollouts(self, tasks: Iterable[PipelineTask], split: Split, group: str) -> None:
        planned = [
            PlannedRollout(f"{self._name}-{next(self._numbers):06d}", task, split, group)
            for task in tasks
        ]
        self._loop.run(run_rollouts(self._agent, self._client, self._pipeline, planned))
        self._wait_until_taken()

    def _wait_until_taken(self) -> None:
        wait_until_taken(self._log, self._processors, DRAIN_TIMEOUT_S)


def with_measurements(results: Sequence[PhaseResult], report: Report) -> list[PhaseResult]:
    """Return the results with the report's figures of their held-out rollouts."""
    groups = {group.group: group for group in report.groups}
    found = []
    for result in results:
        group = groups.get(result.group or "")
        update: dict[str, Any] = {}
        if group is not None:
            update = group.model_dump(include={"mean_reward", "success_rate", "decision_alignment"})
        found.append(result.model_copy(update=update))
    return found


def _outcome_of(checkpoint: Checkpoint) -> TurnOutcome:
    return TurnOutcome(str(checkpoint.state), checkpoint.reason, checkpoint.version)
