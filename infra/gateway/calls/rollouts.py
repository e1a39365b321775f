"""Rollouts that the gateway begins and ends itself, for agents that name no rollout."""

import asyncio

from infra.gateway.state.conversations import Conversation
from infra.gateway.state.services import Services
from schemas.rollouts import Rollout, RolloutEvent, RolloutState
from schemas.topics import ROLLOUTS


def announce(services: Services, began: RolloutEvent) -> None:
    """Record the beginning of a rollout that its agent did not announce."""
    services.routing.begin(began.rollout_key)
    services.record(ROLLOUTS, began)


async def end_conversations(services: Services, every_s: float) -> None:
    """End idle rollouts that the gateway began. Never returns.

    Args:
        every_s: seconds between two looks.
    """
    while True:
        await asyncio.sleep(every_s)
        for conversation in services.conversations.ended():
            end_conversation(services, conversation)


def end_conversation(services: Services, conversation: Conversation) -> None:
    """End a rollout that the gateway began. It failed if its last call failed."""
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
