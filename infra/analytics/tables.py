"""The tables: one for each topic, one row for each event.

ReplacingMergeTree keeps one of the rows with equal sort keys, and every sort key ends in
(partition, offset, index). So a batch that is inserted again after a crash counts once when read
with FINAL, also if it is cut differently. Partition and sort columns come from the event, which
never changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.analytics.rows import decision_row, span_row, trajectory_row
from schemas.envelope import AnyEvent
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
        order: sort key before (partition, offset, index).
        row: values of those columns, from an event. None: the fields of its payload with the
            columns' names, or what `derived` makes of the payload.
        derived: values that are no such fields, by column.
        keep: TTL clause, empty to keep for ever.
    """

    name: str
    topic: Topic
    columns: tuple[tuple[str, str], ...]
    order: str
    row: Callable[[Any], list[Any]] | None = None
    derived: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
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
        if self.row is not None:
            return common + self.row(event)
        return common + [self._value(event.payload, name, kind) for name, kind in self.columns]

    def _value(self, payload: Any, column: str, kind: str) -> Any:
        derive = self.derived.get(column)
        value = getattr(payload, column) if derive is None else derive(payload)
        # ClickHouse would keep a mask beside each nullable column; "" says the same of a name.
        return "" if value is None and not kind.startswith("Nullable") else value


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
        "name, start",
        row=span_row,
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
        "time",
        row=trajectory_row,
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
        "policy, time",
        row=decision_row,
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
        "name, version",
        derived={"parent": lambda checkpoint: checkpoint.lineage and checkpoint.lineage.parent},
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
        "job, step",
        derived={"examples": lambda training: training.manifest.examples},
    ),
    Table(
        "routes",
        ROUTES,
        (("name", _NAME), ("kind", _NAME), ("versions", "Array(String)"), ("reason", "String")),
        "name, time",
        derived={"versions": lambda route: [target.version for target in route.targets]},
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
        "source_topic, time",
        derived={"source_topic": lambda letter: letter.topic},
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
