"""Rows of the tables whose columns are no fields of the event's payload."""

from typing import Any

import orjson

from schemas.decisions import DecisionEvent
from schemas.spans import Attribute, SpanEvent
from schemas.trajectories import TrajectoryEvent


def span_row(event: SpanEvent) -> list[Any]:
    """Return the row of a span."""
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


def trajectory_row(event: TrajectoryEvent) -> list[Any]:
    """Return the row of a trajectory."""
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


def decision_row(event: DecisionEvent) -> list[Any]:
    """Return the row of a decision."""
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


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


# Few different values: stored once each, and as numbers in the rows.
