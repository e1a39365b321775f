"""Which rewards of a rollout count."""

from collections.abc import Iterable
from datetime import datetime

from schemas.rewards import PRECEDENCE, RewardEvent

Counted = dict[str, tuple[str, float]]
"""The rewards that count: by span id, that of the rollout by "", event id and value."""


def rewards_that_count(rewards: Iterable[RewardEvent]) -> Counted:
    """Return the event id and value of each reward that counts, by what it is about."""
    counting = counting_rewards(rewards)
    return {about: (event.event_id, event.payload.value) for about, event in counting.items()}


def counting_rewards(rewards: Iterable[RewardEvent]) -> dict[str, RewardEvent]:
    """Return the reward of the rollout as a whole, under "", and of each span that has its own.

    Superseded and retracted ones do not count; among the others the first source of `PRECEDENCE`
    does, and of that source the latest.
    """
    rewards = list(rewards)
    superseded = {event.payload.supersedes for event in rewards}
    best: dict[str, RewardEvent] = {}
    for event in rewards:
        if event.event_id in superseded or event.payload.retracted:
            continue
        about = event.payload.target_span_id or ""
        if about not in best or _weight(event) > _weight(best[about]):
            best[about] = event
    return best


def _weight(event: RewardEvent) -> tuple[int, datetime, str]:
    # The id breaks ties, so that the choice does not depend on the order of arrival.
    return -PRECEDENCE.index(event.payload.source), event.time, event.event_id


def values(counted: Counted) -> dict[str, float]:
    """Return the rewards without the events that they came with."""
    return {about: value for about, (_, value) in counted.items()}
