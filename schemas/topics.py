"""The topics: name, event, key, partitions and cleanup. Both logs and all clients read them here.

Topics that are joined have the same key and the same number of partitions, so a join never leaves
its partition. Everything about a rollout has its `rollout_id` as key (with its tenant:
`schemas.envelope.rollout_key`). Everything about a learned artifact (examples, checkpoints, routes,
commands) has its logical name as key.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from schemas.audit import AuditEvent
from schemas.checkpoints import CheckpointEvent
from schemas.commands import CommandEvent
from schemas.dead_letters import DeadLetterEvent
from schemas.decisions import DecisionEvent
from schemas.envelope import AnyEvent
from schemas.examples import ExampleEvent
from schemas.gates import GateEvent
from schemas.keys import KeyEvent, UsageEvent
from schemas.lightning import LightningEvent
from schemas.outcomes import OutcomeEvent
from schemas.rewards import RewardEvent
from schemas.rollouts import RolloutEvent
from schemas.routes import RouteEvent
from schemas.spans import SpanEvent
from schemas.trainings import TrainingEvent
from schemas.trajectories import TrajectoryEvent

PREFIX = "everloop."
# Never change these numbers: keys would move to other partitions than their states. Eight is also
# the most workers that can share the work on rollouts.
ROLLOUT_PARTITIONS = 8
NAME_PARTITIONS = 4


@dataclass(frozen=True)
class Topic:
    """One topic.

    Attributes:
        event: the model of its values.
        key: meaning of the record key.
        cleanup: `delete` drops records that are older than `retention`; `compact` keeps the last
            record of each key.
        retention: age at which records are deleted; None keeps them for ever.
        batched: whether events with one key that are written together may share a record.
    """

    name: str
    event: type[AnyEvent]
    key: Literal[
        "rollout_id", "logical name", "source topic", "key id", "counter", "subject", "tenant"
    ]
    partitions: int
    cleanup: Literal["delete", "compact"] = "delete"
    retention: timedelta | None = None
    batched: bool = False


ROLLOUTS = Topic(PREFIX + "rollouts", RolloutEvent, "rollout_id", ROLLOUT_PARTITIONS)
SPANS = Topic(
    PREFIX + "spans",
    SpanEvent,
    "rollout_id",
    ROLLOUT_PARTITIONS,
    retention=timedelta(days=90),
    batched=True,
)
REWARDS = Topic(PREFIX + "rewards", RewardEvent, "rollout_id", ROLLOUT_PARTITIONS)
DECISIONS = Topic(PREFIX + "decisions", DecisionEvent, "rollout_id", ROLLOUT_PARTITIONS)
TRAJECTORIES = Topic(
    PREFIX + "trajectories",
    TrajectoryEvent,
    "rollout_id",
    ROLLOUT_PARTITIONS,
    retention=timedelta(days=90),
)
EXAMPLES = Topic(PREFIX + "examples", ExampleEvent, "logical name", NAME_PARTITIONS)
OUTCOMES = Topic(
    PREFIX + "outcomes", OutcomeEvent, "logical name", NAME_PARTITIONS, retention=timedelta(days=90)
)
CHECKPOINTS = Topic(PREFIX + "checkpoints", CheckpointEvent, "logical name", NAME_PARTITIONS)
ROUTES = Topic(PREFIX + "routes", RouteEvent, "logical name", NAME_PARTITIONS, cleanup="compact")
GATES = Topic(PREFIX + "gates", GateEvent, "logical name", NAME_PARTITIONS, cleanup="compact")
COMMANDS = Topic(PREFIX + "commands", CommandEvent, "logical name", NAME_PARTITIONS)
TRAININGS = Topic(PREFIX + "trainings", TrainingEvent, "logical name", NAME_PARTITIONS)
# One partition, so that the offset numbers dead letters.
DEAD_LETTERS = Topic(PREFIX + "dead-letters", DeadLetterEvent, "source topic", 1)
KEYS = Topic(PREFIX + "keys", KeyEvent, "key id", 1, cleanup="compact")
USAGE = Topic(PREFIX + "usage", UsageEvent, "counter", 1, cleanup="compact")
AUDIT = Topic(PREFIX + "audit", AuditEvent, "subject", 1)
# One partition: the server API has one order of changes.
LIGHTNING = Topic(PREFIX + "lightning", LightningEvent, "tenant", 1, retention=timedelta(days=30))

TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        ROLLOUTS,
        SPANS,
        REWARDS,
        DECISIONS,
        TRAJECTORIES,
        EXAMPLES,
        OUTCOMES,
        CHECKPOINTS,
        ROUTES,
        GATES,
        COMMANDS,
        TRAININGS,
        DEAD_LETTERS,
        KEYS,
        USAGE,
        AUDIT,
        LIGHTNING,
    )
}


def topic_named(name: str) -> Topic:
    """Return a topic by its full or short name.

    Raises:
        KeyError: there is no such topic; the message lists the names.
    """
    topic = TOPICS.get(name) or TOPICS.get(PREFIX + name)
    if topic is None:
        known = ", ".join(known.removeprefix(PREFIX) for known in TOPICS)
        raise KeyError(f"there is no topic {name!r}; there are: {known}")
    return topic
