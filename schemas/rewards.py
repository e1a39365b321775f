"""Rewards: how good a rollout, or one span of it, was. They may come late and may be corrected."""

from enum import StrEnum
from typing import Literal

from pydantic import JsonValue

from schemas.envelope import Event, EventData, EventId, Name, SpanId, UnitInterval


class RewardSource(StrEnum):
    """Who gave the reward."""

    HUMAN = "human"
    JUDGE = "judge"
    ENVIRONMENT = "environment"
    RULE = "rule"


PRECEDENCE = (RewardSource.HUMAN, RewardSource.JUDGE, RewardSource.ENVIRONMENT, RewardSource.RULE)
"""Which reward of a rollout counts: that of the first of these sources; within a source, the
latest.
"""


class Reward(EventData):
    """A score in [0, 1].

    Attributes:
        value: the reward.
        criteria: scores per criterion, each in [0, 1].
        grader: who or what graded, with its version, such as `measured@1`.
        target_span_id: the span it is about; None means the whole rollout.
        supersedes: event id of the reward that it corrects.
        comment: free text from the grader.
        edit: a better answer than that of `target_span_id`: a text, or a message of the assistant.
            It is a demonstration.
        retracted: whether it takes back the reward that it supersedes, without giving another.
    """

    value: UnitInterval
    criteria: dict[str, UnitInterval] = {}
    source: RewardSource
    grader: Name = "unnamed"
    target_span_id: SpanId | None = None
    supersedes: EventId | None = None
    comment: str = ""
    edit: JsonValue = None
    retracted: bool = False


class RewardEvent(Event[Reward]):
    """A rollout was rewarded. Key: rollout_id."""

    type: Literal["reward"] = "reward"
    rollout_id: Name
