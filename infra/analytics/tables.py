"""The tables: one for each topic, one row for each event.

ReplacingMergeTree keeps one of the rows with equal sort keys, and every sort key ends in
(partition, offset, index). So a batch that is inserted again after a crash counts once when read
with FINAL, also if it is cut differently. Partition and sort columns come from the event, which
never changes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from schemas.checkpoints import CheckpointEvent
from schemas.dead_letters import DeadLetterEvent
from schemas.decisions import DecisionEvent
from schemas.envelope import AnyEvent
from schemas.gates import GateEvent
from schemas.outcomes import OutcomeEvent
from schemas.rewards import RewardEvent
from schemas.routes import RouteEvent
from schemas.spans import Attribute, SpanEvent
from schemas.topics import (
    CHECKPOINTS,
    DEAD_LETTERS,
    DECISIONS,
    GATES,
    OUTCOMES,
    REWARDS,
    ROUTES,
    SPANS,
    TRAININGS,
    TRAJECTORIES,
    Topic,
)
from schemas.trainings import TrainingEvent
from schemas.trajectories import TrajectoryEvent
from streams.storage.records import Record

# Delta: offsets and times of neighbours differ little, so the differences compress well.
_COMMON = (
    ("partition", "UInt16"),
    ("offset", "UInt64 CODEC(Delta, ZSTD(1))"),
    ("index", "UInt16"),
    ("event_id", "String"),
    ("time", "DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1))"),
    ("tenant", "LowCardinality(String)"),
    ("rollout_id", "String"),
)


@dataclass(frozen=True)
class Table:
    """A topic's table.

    Attributes:
        columns: name and type of what it has beside the common columns.
        row: values of those columns, from an event.
        order: sort key before (partition, offset, index).
        keep: TTL clause, empty to keep for ever.
    """

    name: str
    topic: Topic
    columns: tuple[tuple[str, str], ...]
    row: Callable[[Any], list[Any]]
    order: str
    keep: str = ""

    @property
    def definition(self) -> str:
        """The statement that creates it."""
        columns = ", ".join(f"`{name}` {kind}" for name, kind in (*_COMMON, *self.columns))
        # Rows lie by name and time. Without this index, one rollout would mean to read them all.
        index = ", INDEX by_rollout rollout_id TYPE bloom_filter GRANULARITY 4"
        return (
            # The deduplication window drops a block that is inserted twice, before it is merged.
            f"CREATE TABLE IF NOT EXISTS {self.name} ({columns}{index}) ENGINE = ReplacingMergeTree"
            f" PARTITION BY toYYYYMM(time) ORDER BY ({self.order}, `partition`, `offset`,"
            f" `index`) {self.keep}"
            " SETTINGS non_replicated_deduplication_window = 1000"
        )

    @property
    def column_names(self) -> list[str]:
        """All columns, in the order of `values`."""
        return [name for name, _ in (*_COMMON, *self.columns)]

    def values(self, record: Record, event: AnyEvent) -> list[Any]:
        """Return a row."""
        common = [
            record.partition,
            record.offset,
            record.index,
            event.event_id,
            event.time,
            event.tenant,
            event.rollout_id or "",
        ]
        return common + self.row(event)


def _span(event: SpanEvent) -> list[Any]:
    span = event.payload
    attributes = span.attributes
    return [
        event.trace_id,
        event.span_id,
        span.parent_span_id or "",
        span.name,
        span.text(Attribute.OPERATION) or "",
        span.text(Attribute.NODE) or "",
        span.text(Attribute.REQUEST_MODEL) or "",
        span.text(Attribute.CHECKPOINT) or "",
        span.start_unix_nano,
        span.duration_s,
        span.status,
        _count(attributes.get(Attribute.INPUT_TOKENS)),
        _count(attributes.get(Attribute.OUTPUT_TOKENS)),
        orjson.dumps(attributes).decode(),
    ]


def _trajectory(event: TrajectoryEvent) -> list[Any]:
    trajectory = event.payload
    rollout = trajectory.rollout
    output = rollout.output if isinstance(rollout.output, dict) else {}
    policy = trajectory.decisions[0].payload if trajectory.decisions else None
    return [
        rollout.agent,
        rollout.group,
        rollout.split,
        rollout.task.id if rollout.task else "",
        str(rollout.state),
        trajectory.revision,
        trajectory.reward,
        rollout.turns,
        str(output.get("final_decision", "")),
        str(rollout.task.expected if rollout.task and rollout.task.expected is not None else ""),
        rollout.error or "",
        policy.policy_version if policy else "",
        len(trajectory.spans),
    ]


def _reward(event: RewardEvent) -> list[Any]:
    reward = event.payload
    return [
        reward.value,
        str(reward.source),
        reward.grader,
        dict(reward.criteria),
        reward.supersedes or "",
    ]


def _decision(event: DecisionEvent) -> list[Any]:
    decision = event.payload
    chosen = decision.candidates[decision.choice].id
    return [
        decision.policy,
        decision.policy_version,
        len(decision.candidates),
        decision.choice,
        chosen,
        decision.propensity,
    ]


def _checkpoint(event: CheckpointEvent) -> list[Any]:
    checkpoint = event.payload
    parent = checkpoint.lineage.parent if checkpoint.lineage else None
    return [
        checkpoint.name,
        checkpoint.version,
        checkpoint.kind,
        str(checkpoint.state),
        parent or "",
        dict(checkpoint.metrics),
        checkpoint.reason,
    ]


def _outcome(event: OutcomeEvent) -> list[Any]:
    outcome = event.payload
    return [
        outcome.name,
        outcome.version,
        outcome.split,
        outcome.begun,
        str(outcome.state),
        outcome.fault or "",
        outcome.reward,
        outcome.cost,
    ]


def _gate(event: GateEvent) -> list[Any]:
    gate = event.payload
    return [
        gate.name,
        gate.phase,
        gate.version or "",
        gate.evidence,
        gate.needed,
        gate.per_hour,
        gate.text,
    ]


def _training(event: TrainingEvent) -> list[Any]:
    training = event.payload
    return [
        training.job,
        training.target,
        training.method,
        str(training.state),
        training.parent or "",
        training.manifest.examples,
        training.step,
        training.steps,
        dict(training.metrics),
        training.version or "",
        training.reason,
    ]


def _route(event: RouteEvent) -> list[Any]:
    route = event.payload
    return [route.name, route.kind, [target.version for target in route.targets], route.reason]


def _dead_letter(event: DeadLetterEvent) -> list[Any]:
    letter = event.payload
    return [letter.topic, letter.processor, letter.error_type, letter.error_message]


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


# Few different values: stored once each, and as numbers in the rows.
_NAME = "LowCardinality(String)"

TABLES: tuple[Table, ...] = (
    Table(
        "spans",
        SPANS,
        (
            ("trace_id", "String"),
            ("span_id", "String"),
            ("parent_span_id", "String"),
            ("name", _NAME),
            ("operation", _NAME),
            ("node", _NAME),
            ("model", _NAME),
            ("checkpoint", _NAME),
            ("start", "Int64 CODEC(Delta, ZSTD(1))"),
            ("duration_s", "Float64"),
            ("status", _NAME),
            ("input_tokens", "UInt32"),
            ("output_tokens", "UInt32"),
            ("attributes", "String CODEC(ZSTD(3))"),
        ),
        _span,
        "name, start",
        # As long as the topic keeps them. They are most of the data.
        keep="TTL toDateTime(time) + INTERVAL 90 DAY",
    ),
    Table(
        "trajectories",
        TRAJECTORIES,
        (
            ("agent", _NAME),
            ("group", _NAME),
            ("split", _NAME),
            ("task_id", "String"),
            ("state", _NAME),
            ("revision", "UInt32"),
            ("reward", "Nullable(Float64)"),
            ("turns", "Nullable(UInt32)"),
            ("decision", _NAME),
            ("expected", _NAME),
            ("error", "String"),
            ("policy_version", _NAME),
            ("spans", "UInt32"),
        ),
        _trajectory,
        "time",
    ),
    Table(
        "rewards",
        REWARDS,
        (
            ("value", "Float64"),
            ("source", _NAME),
            ("grader", _NAME),
            ("criteria", "Map(String, Float64)"),
            ("supersedes", "String"),
        ),
        _reward,
        "time",
    ),
    Table(
        "decisions",
        DECISIONS,
        (
            ("policy", _NAME),
            ("policy_version", _NAME),
            ("candidates", "UInt16"),
            ("choice", "UInt16"),
            ("chosen", _NAME),
            ("propensity", "Float64"),
        ),
        _decision,
        "policy, time",
    ),
    Table(
        "checkpoints",
        CHECKPOINTS,
        (
            ("name", _NAME),
            ("version", "String"),
            ("kind", _NAME),
            ("state", _NAME),
            ("parent", "String"),
            ("metrics", "Map(String, Float64)"),
            ("reason", "String"),
        ),
        _checkpoint,
        "name, version",
    ),
    Table(
        "outcomes",
        OUTCOMES,
        (
            ("name", _NAME),
            ("version", "String"),
            ("split", _NAME),
            ("begun", "DateTime64(3, 'UTC')"),
            ("state", _NAME),
            ("fault", _NAME),
            ("reward", "Nullable(Float64)"),
            ("cost", "Float64"),
        ),
        _outcome,
        "name, version, time",
    ),
    Table(
        "gates",
        GATES,
        (
            ("name", _NAME),
            ("phase", _NAME),
            ("version", "String"),
            ("evidence", "UInt32"),
            ("needed", "Nullable(UInt32)"),
            ("per_hour", "Nullable(Float64)"),
            ("text", "String"),
        ),
        _gate,
        "name, time",
    ),
    Table(
        "trainings",
        TRAININGS,
        (
            ("job", "String"),
            ("target", _NAME),
            ("method", _NAME),
            ("state", _NAME),
            ("parent", "String"),
            ("examples", "UInt32"),
            ("step", "UInt32"),
            ("steps", "UInt32"),
            ("metrics", "Map(String, Float64)"),
            ("version", "String"),
            ("reason", "String"),
        ),
        _training,
        "job, step",
    ),
    Table(
        "routes",
        ROUTES,
        (("name", _NAME), ("kind", _NAME), ("versions", "Array(String)"), ("reason", "String")),
        _route,
        "name, time",
    ),
    Table(
        "dead_letters",
        DEAD_LETTERS,
        (
            ("source_topic", _NAME),
            ("processor", _NAME),
            ("error_type", _NAME),
            ("error_message", "String"),
        ),
        _dead_letter,
        "source_topic, time",
    ),
)

VIEWS: dict[str, str] = {
    # The last emission of each rollout's trajectory is the one that counts.
    "rollouts": (
        "SELECT tenant, rollout_id, min(time) AS first_closed, argMax(agent, revision) AS agent,"
        " argMax(`group`, revision) AS `group`, argMax(split, revision) AS split,"
        " argMax(task_id, revision) AS task_id, argMax(state, revision) AS state,"
        # In a tuple, because argMax passes over NULL: a retracted reward would come back.
        " argMax(tuple(reward), revision).1 AS reward, argMax(tuple(turns), revision).1 AS turns,"
        " argMax(decision, revision) AS decision, argMax(expected, revision) AS expected,"
        " argMax(error, revision) AS error, argMax(policy_version, revision) AS policy_version"
        " FROM trajectories FINAL GROUP BY tenant, rollout_id"
    ),
    "node_latency": (
        "SELECT if(node = '', name, node) AS node, operation, count() AS calls,"
        " quantileExact(0.5)(duration_s) AS p50_s, quantileExact(0.95)(duration_s) AS p95_s,"
        " sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,"
        " countIf(status = 'error') AS errors"
        " FROM spans FINAL GROUP BY node, operation"
    ),
    "checkpoint_states": (
        "SELECT name, version, any(kind) AS kind, argMax(state, `offset`) AS state, min(time)"
        " AS announced,"
        " argMax(reason, `offset`) AS reason FROM checkpoints FINAL GROUP BY name, version"
    ),
}


def create_tables(client: Any) -> None:
    """Create the missing tables, and replace the views."""
    for table in TABLES:
        client.command(table.definition)
    for name, query in VIEWS.items():
        # Replaced at each start: a newer program may ask otherwise, and views hold no data.
        client.command(f"CREATE OR REPLACE VIEW {name} AS {query}")
