"""Rollouts that the gateway begins and ends itself, for agents that name no rollout."""

import asyncio
from collections.abc import Mapping

from infra.gateway.routes.targets import unit_draw
from infra.gateway.state.conversations import Conversation
from infra.gateway.state.services import Services
from schemas.envelope import rollout_key
from schemas.rollouts import Fault, Rollout, RolloutEvent, RolloutState, Split
from schemas.topics import ROLLOUTS


def drawn_split(services: Services, key: str) -> Split:
    """Return the split of a rollout whose agent names none. The same rollout has the same split.

    No logical name has a space, so the draw is independent of those of the routes.
    """
    return "validation" if unit_draw("held out", key) < services.settings.holdout else "train"


def assign(
    services: Services,
    tenant: str,
    rollout_id: str,
    trace_id: str | None,
    versions: Mapping[str, str],
    agent: str = "agent",
) -> None:
    """Record the version of each logical name that a rollout uses for the first time.

    It is recorded before anybody knows what answers. A rollout that nobody has announced begins
    with it.

    Args:
        versions: logical name to the version that the rollout is pinned to.
        agent: the agent of a rollout that begins now.
    """
    key, routing = rollout_key(tenant, rollout_id), services.routing
    begins = not routing.knows_begun(key)
    if begins:
        routing.begin(key, split=drawn_split(services, key))
    new = routing.assign(key, versions)
    if not begins and not new:
        return
    split, split_chosen = routing.split(key)
    started = Rollout(
        state=RolloutState.STARTED,
        agent=agent,
        split=split,
        split_chosen=split_chosen,
        checkpoints=new,
        assigned=new,
    )
    event = RolloutEvent(tenant=tenant, rollout_id=rollout_id, trace_id=trace_id, payload=started)
    services.record(ROLLOUTS, event)


def fault_at_end(services: Services, key: str, named: Fault | None = None) -> Fault:
    """Return whose failure a failed rollout is.

    Args:
        named: what the agent says. None: why its last call failed; if that worked, the agent.
    """
    return named or services.routing.fault(key) or "agent"


async def end_conversations(services: Services, every_s: float) -> None:
    """End idle rollouts that the gateway began. Never returns.

    Args:
        every_s: seconds between two looks.
    """
    while True:
        await asyncio.sleep(every_s)
        for conversation in services.conversations.take_ended():
            end_conversation(services, conversation)


def end_conversation(services: Services, conversation: Conversation) -> None:
    """End a rollout that the gateway began. It failed if its last call failed."""
    key = rollout_key(conversation.tenant, conversation.rollout_id)
    failed = conversation.failed
    ended = Rollout(
        state=RolloutState.FAILED if failed else RolloutState.SUCCEEDED,
        error="its last call failed" if failed else None,
        fault=fault_at_end(services, key) if failed else None,
        turns=conversation.calls or None,
        recorded=services.routing.recorded(key),
    )
    event = RolloutEvent(
        tenant=conversation.tenant,
        rollout_id=conversation.rollout_id,
        trace_id=conversation.trace_id,
        payload=ended,
    )
    services.record(ROLLOUTS, event)
    # A call that comes later begins a new rollout.
    services.routing.release(key)
