"""Trajectories: a rollout that has ended, with its spans, decisions and rewards."""

from typing import Literal

from pydantic import Field

from schemas.decisions import DecisionEvent
from schemas.envelope import Event, EventData, Name, SpanId, UnitInterval
from schemas.rewards import RewardEvent
from schemas.rollouts import Rollout
from schemas.spans import SpanEvent


class Trajectory(EventData):
    """A joined rollout. The nested events keep their ids: they are its lineage.

    Attributes:
        rollout: the final state; its task and pinned checkpoints come from earlier events.
        spans: in the order they arrived.
        decisions, rewards: in the order they arrived.
        reward: the reward that counts (see `schemas.rewards.PRECEDENCE`); None if there is none.
        revision: 1 for the first emission, one more for each later one.
        span_rewards: rewards of single spans that count, by span id.
        reward_revision: 0 without a reward, 1 for the first, one more for each change of a reward
            that counts.
    """

    rollout: Rollout
    spans: list[SpanEvent] = []
    decisions: list[DecisionEvent] = []
    rewards: list[RewardEvent] = []
    reward: UnitInterval | None = None
    span_rewards: dict[SpanId, UnitInterval] = {}
    revision: int = Field(ge=1)
    reward_revision: int = Field(default=0, ge=0)


class TrajectoryEvent(Event[Trajectory]):
    """A rollout closed, or its reward changed. Key: rollout_id."""

    type: Literal["trajectory"] = "trajectory"
    rollout_id: Name
