"""The whole loop in one process, in simulated time: routes, rewards, learner and promotion."""

import heapq
from random import Random

from infra.gateway.routes.table import RoutingTable
from infra.gateway.routes.targets import unit_draw
from infra.gateway.settings import GatewaySettings
from learners.bandit import BanditLearner
from learners.contract import Policy
from learners.gate import GateConfig
from learners.policies import UNIFORM_VERSION, UniformPolicy
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.decisions import Decision
from schemas.envelope import AnyEvent
from schemas.examples import BanditExample, Example, ExampleEvent
from schemas.identifiers import new_event_id
from schemas.outcomes import OutcomeEvent, RolloutOutcome
from schemas.rollouts import RolloutState
from schemas.routes import RouteEvent
from schemas.serialization import decode
from schemas.topics import CHECKPOINTS, ROUTES
from streams.processors.promotion import Promotion
from streams.processors.promotion_state import PromotionState
from streams.storage.artifacts import ArtifactStore
from tests import events
from tests.benchmarks.convergence.worlds import Asked

NAME = "policy"
PER_SECOND = 10.0
"""Rollouts that begin in a second."""

JITTER = 0.05
"""Delays differ by up to this share, and by a tenth of a second."""


class Loop:
    """Learner, promotion and routing as deployed, with their defaults. Nothing waits for a clock.

    Args:
        delay: seconds until a reward comes, at least.
    """

    def __init__(self, artifacts: ArtifactStore, delay: float, seed: int) -> None:
        self._artifacts = artifacts
        self._routes = RoutingTable(artifacts)
        self._learner = BanditLearner(NAME)
        self._learned = self._learner.initial()
        self._promotion = Promotion(GateConfig(), artifacts)
        self._promoted: PromotionState | None = None
        self._holdout = GatewaySettings().holdout
        self._delay, self._seed, self._random = delay, seed, Random(seed)
        self._due: list[tuple[float, int, RolloutOutcome, Decision, float]] = []
        self._told = 0
        self.rollouts = 0

    def roll_out(self, asked: Asked) -> bool:
        """Begin a rollout, after all rewards that are due; return whether it chose the best."""
        # 1. Learn what has become known.
        now = self.rollouts / PER_SECOND
        while self._due and self._due[0][0] <= now:
            time, number, outcome, decision, reward = heapq.heappop(self._due)
            self._reward(time, number, outcome, decision, reward)
        # 2. Choose as the gateway does.
        rollout = self._rollout(self.rollouts)
        version, decision = self._decide(rollout, asked)
        # 3. Tell that it began, and note when its reward is due.
        held_out = unit_draw("held out", rollout) < self._holdout
        outcome = RolloutOutcome(
            name=NAME,
            version=version,
            split="validation" if held_out else "train",
            begun=events.at(now),
            state=RolloutState.STARTED,
        )
        self._tell(OutcomeEvent(time=events.at(now), rollout_id=rollout, payload=outcome), now)
        due = now + self._delay + self._random.random() * (JITTER * self._delay + 0.1)
        reward = asked.rewards[decision.choice]
        heapq.heappush(self._due, (due, self.rollouts, outcome, decision, reward))
        self.rollouts += 1
        return decision.choice == asked.best

    def _rollout(self, number: int) -> str:
        return f"{self._seed}-{number}"

    def _decide(self, rollout: str, asked: Asked) -> tuple[str, Decision]:
        """Return the version that a rollout is assigned, and what it chooses."""
        route = self._routes.routes.get(NAME)
        target = route.target_for(rollout) if route else None
        policy: Policy = target.chooser if target else UniformPolicy()
        version = target.version if target else UNIFORM_VERSION
        chances = policy.probabilities(asked.context, asked.candidates)
        (choice,) = self._random.choices(range(len(chances)), chances)
        return version, Decision(
            policy=NAME,
            policy_version=version,
            feature_version=policy.feature_version,
            context=asked.context,
            candidates=asked.candidates,
            probabilities=chances,
            choice=choice,
            propensity=chances[choice],
        )

    def _reward(
        self, now: float, number: int, outcome: RolloutOutcome, decision: Decision, reward: float
    ) -> None:
        """Tell promotion what a rollout earned, and teach it to the learner if it may learn it."""
        rollout, time = self._rollout(number), events.at(now)
        is_train = outcome.split == "train"
        ended = outcome.model_copy(
            update={
                "state": RolloutState.SUCCEEDED,
                "reward": reward,
                "rewarded": time,
                "decisions": [] if is_train else [decision],
            }
        )
        self._tell(OutcomeEvent(time=time, rollout_id=rollout, payload=ended), now)
        if is_train:
            source = new_event_id()
            example = Example(
                target=NAME,
                reward=reward,
                reward_revision=1,
                source_event_ids=[source],
                body=BanditExample(decision_id=source, decision=decision),
            )
            self._learn(ExampleEvent(time=time, rollout_id=rollout, payload=example), now)

    def _learn(self, event: ExampleEvent, now: float) -> None:
        """Teach an example to the learner, and announce a version where one is due."""
        self._learned = self._learner.fold(self._learned, event)
        made = self._learner.checkpoint(self._learned)
        if made is not None:
            checkpoint = Checkpoint(
                name=NAME,
                version=made.version,
                kind="policy",
                state=CheckpointState.CANDIDATE,
                artifact=self._artifacts.put(made.artifact, made.media_type),
            )
            self._tell(CheckpointEvent(time=event.time, payload=checkpoint), now)

    def _tell(self, event: AnyEvent, now: float) -> None:
        """Tell promotion of an event, and of all that it says to that; follow its routes."""
        told: list[AnyEvent] = [event]
        while told:
            one = told.pop(0)
            source = events.record(one, self._told, NAME, events.at(now))
            self._told += 1
            said = self._promotion.handle(self._promoted, one, source)
            self._promoted = said.state
            for record in said.records:
                if record.topic is ROUTES:
                    route = decode(RouteEvent, record.value)
                    self._routes.apply(route.payload)
                    told.append(route)
                elif record.topic is CHECKPOINTS:
                    told.append(decode(CheckpointEvent, record.value))
