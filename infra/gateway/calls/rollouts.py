"""Rollouts that the gateway begins and ends itself, for agents that name none."""

import asyncio

from infra.gateway.state.conversations import Conversation
from infra.gateway.state.services import Services
from schemas.rollouts import Rollout, RolloutEvent, RolloutState
from schemas.topics import ROLLOUTS


def announce(services: Services, began: RolloutEvent) -> None:
    """Tell of a rollout whose agent did not."""
    services.routing.begin(began.rollout_key)
    services.record(ROLLOUTS, began)


async def end_conversations(services: Services, every_s: float) -> None:
    """End rollouts that the gateway began and that nothing has continued for a while, for ever."""
    while True:
        await asyncio.sleep(every_s)
        for conversation in services.conversations.ended():
            end_conversation(services, conversation)


def end_conversation(services: Services, conversation: Conversation) -> None:
    """End a rollout that the gateway began: it failed when its last call did."""
    event = RolloutEvent(
        tenant=conversation.tenant,
        rollout_id=conversation.rollout_id,
        trace_id=conversation.trace_id,
        payload=Rollout(
            state=RolloutState.FAILED if conversation.failed else RolloutState.SUCCEEDED,
            error="its last call failed" if conversation.failed else None,
            turns=conversation.calls or None,
        ),
    )
    recorded = services.routing.recorded(event.rollout_key)
    event = event.model_copy(
        update={"payload": event.payload.model_copy(update={"recorded": recorded})}
    )
    services.record(ROLLOUTS, event)
    services.routing.release(event.rollout_key)
