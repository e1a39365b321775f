"""Promotion in tests: events that it meets, and what it said of them."""

import itertools
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from learners.bandit import MEDIA_TYPE, BanditPolicy
from learners.bandit.features import features
from learners.bandit.policy import Weights
from learners.bandit.regressor import BlockBayesianRegressor
from learners.gate import GateConfig
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.decisions import Candidate
from schemas.endpoints import Endpoint
from schemas.envelope import AnyEvent
from schemas.gates import GateEvent, GateStatus
from schemas.identifiers import new_event_id
from schemas.outcomes import OutcomeEvent
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.serialization import decode
from schemas.topics import CHECKPOINTS, DEAD_LETTERS, GATES, ROUTES
from streams.processors.promotion import Promotion
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from tests import events

TARGET = "supervisor-policy"
GOOD, BAD = "the effect was significant", "nothing is known"
A_SECOND = timedelta(seconds=1)
HALVES = GateConfig(canary_share=0.5, raised_share=0.5, control_share=0.5, maturity=A_SECOND)
"""Versions that serve beside one another get as many rollouts, as those of `side_by_side` do."""
AT_ONCE = HALVES.model_copy(update={"canary_share": 0.0, "tolerance": 0.2})
ON_TRIAL = HALVES
CLOCK = itertools.count(1)
"""Seconds of the test's world. Everything that a test makes is later than what it made before."""


def policy(good_reward: float) -> bytes:
    """Return a policy that believes in the good text that much more than in the bad one."""
    regressor = BlockBayesianRegressor()
    good, bad = features("which is best?", [Candidate(text=GOOD), Candidate(text=BAD)])
    for _ in range(40):
        regressor.learn_one(good, good_reward).learn_one(bad, 1 - good_reward)
    return BanditPolicy(Weights.of(regressor), "squarecb", 200.0, 0.03).to_bytes()


def held_out(count: int) -> list[OutcomeEvent]:
    """Return held-out rollouts with a uniform decision, where the good text earns 1 and the bad one
    0.
    """
    return [
        events.outcome(
            f"held-out-{number}",
            "uniform",
            float(number % 2 == 0),
            begun=next(CLOCK),
            split="validation",
            decisions=[events.decision_of([GOOD, BAD], number % 2)],
        )
        for number in range(count)
    ]


def rewarded(version: str, value: float | None, count: int, **more: Any) -> list[AnyEvent]:
    """Return rollouts of a version that all earned the same."""
    return [
        events.outcome(new_event_id(), version, value, begun=next(CLOCK), **more)
        for _ in range(count)
    ]


def later(seconds: float = 60.0) -> list[AnyEvent]:
    """Return a rollout of another version, so late that all before it are old enough."""
    for _ in range(int(seconds)):
        next(CLOCK)
    return rewarded("another", 0.5, 1)


def side_by_side(count: int, **of: float | None) -> list[AnyEvent]:
    """Return rollouts of versions that serve at the same time, and time enough for all to count."""
    both = [
        event
        for _ in range(count)
        for version, value in of.items()
        for event in rewarded(version, value, 1)
    ]
    return [*both, *later()]


def candidate(
    store: ArtifactStore, version: str, content: bytes, kind: Any = "policy"
) -> CheckpointEvent:
    artifact = store.put(content, MEDIA_TYPE)
    payload = Checkpoint(
        name=TARGET, version=version, kind=kind, state=CheckpointState.CANDIDATE, artifact=artifact
    )
    return CheckpointEvent(time=events.START, payload=payload)


def batches(sequence: tuple[AnyEvent, ...]) -> Iterator[list[AnyEvent]]:
    """Yield the outcomes that follow one another together, and every other event alone: topics are
    read apart, so what is to be read in order is written one after the other.
    """
    for outcomes, follow in itertools.groupby(sequence, lambda e: isinstance(e, OutcomeEvent)):
        together = list(follow)
        yield from [together] if outcomes else ([event] for event in together)


def promoted(
    log: EmbeddedLog, store: ArtifactStore, *sequence: AnyEvent, config: GateConfig = AT_ONCE
) -> list[tuple[str, str, str]]:
    """Run promotion over events; return version, state and reason of every change so far."""
    runner = EmbeddedRunner(log, Promotion(config, store), "t")
    for told in batches(sequence):
        log.append([events.new_record(event, TARGET) for event in told])
        while runner.run_once():
            pass
    runner.close()
    changes = [
        decode(CheckpointEvent, record.value).payload for record in read_all(log, CHECKPOINTS.name)
    ]
    assert not list(read_all(log, DEAD_LETTERS.name))
    return [(change.version, str(change.state), change.reason) for change in changes]


def gate(log: EmbeddedLog) -> GateStatus:
    """Return what the gate told last."""
    *_, last = read_all(log, GATES.name)
    return decode(GateEvent, last.value).payload


def served(log: EmbeddedLog) -> list[str]:
    routes = [decode(ROUTES.event, record.value).payload for record in read_all(log, ROUTES.name)]
    return [route.targets[0].version for route in routes]


def weights(log: EmbeddedLog) -> list[dict[str, float]]:
    """Return what was served, route by route, by version."""
    routes = [decode(RouteEvent, record.value).payload for record in read_all(log, ROUTES.name)]
    return [{target.version: target.weight for target in route.targets} for route in routes]


def controls(log: EmbeddedLog) -> list[dict[str, float]]:
    """Return what kept a share beside what was promoted, route by route."""
    routes = [decode(RouteEvent, record.value).payload for record in read_all(log, ROUTES.name)]
    return [{r.control.version: r.control.weight} if r.control else {} for r in routes]


MODEL = Endpoint(base_url="http://127.0.0.1:9/v1", model="base")

BASE = Route(
    name=TARGET, kind="model", targets=[RouteTarget(version="configured:base", endpoint=MODEL)]
)


def adapter(store: ArtifactStore, version: str) -> CheckpointEvent:
    """Return an adapter that a server has loaded."""
    event = candidate(store, version, version.encode(), kind="adapter")
    tuned = MODEL.model_copy(update={"model": version})
    return event.model_copy(
        update={"payload": event.payload.model_copy(update={"endpoint": tuned})}
    )


def models(log: EmbeddedLog) -> list[dict[str, str]]:
    """Return what was served, route by route: version to the server's model."""
    routes = [decode(RouteEvent, record.value).payload for record in read_all(log, ROUTES.name)]
    return [{t.version: t.endpoint.model for t in route.targets if t.endpoint} for route in routes]


def given_up(event: CheckpointEvent) -> CheckpointEvent:
    """Return what whoever serves a checkpoint says when it cannot any more."""
    change = {"state": CheckpointState.ROLLED_BACK, "reason": "its server died"}
    return CheckpointEvent(time=events.START, payload=event.payload.model_copy(update=change))


def behind(log: EmbeddedLog) -> list[list[str]]:
    """Return what answered where the targets did not, route by route."""
    routes = [decode(RouteEvent, record.value).payload for record in read_all(log, ROUTES.name)]
    return [[target.version for target in route.fallbacks] for route in routes]


def by_hand(store: ArtifactStore, version: str, state: CheckpointState) -> CheckpointEvent:
    """Return what a person makes of a policy's checkpoint."""
    event = candidate(store, version, policy(0.9))
    said = {"state": state, "reason": "a person", "by_hand": True}
    return event.model_copy(update={"payload": event.payload.model_copy(update=said)})
