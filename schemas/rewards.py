"""Rewards: how good a rollout, or one span of it, was; by whom; possibly days late, possibly
corrected.
"""

from enum import StrEnum
from typing import Literal

from pydantic import JsonValue

from schemas.envelope import Event, EventData, EventId, Name, SpanId, UnitInterval


class RewardSource(StrEnum):
    """Who judged."""

    HUMAN = "human"
    JUDGE = "judge"
    ENVIRONMENT = "environment"
    RULE = "rule"


PRECEDENCE = (RewardSource.HUMAN, RewardSource.JUDGE, RewardSource.ENVIRONMENT, RewardSource.RULE)
"""Whose word counts when several judged one rollout: the first of these; within one source, the
latest.
"""


class Reward(EventData):
    """A score in [0, 1].

    Attributes:
        value: the reward.
        criteria: scores per criterion, each in [0, 1].
        grader: who or what graded, with its version, such as `measured@1`.
        target_span_id: the span it is about; None for the whole rollout.
        supersedes: event id of the reward this one corrects.
        comment: free text from the grader.
        edit: how the answer of `target_span_id` should have been: its text, or an assistant
            message. A demonstration.
        retracted: whether the event only takes back what it supersedes, and is no reward itself.
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
