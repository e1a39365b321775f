"""Changes that Agent Lightning asks for: written to its topic, and told to learners."""

from typing import Any

import structlog

from infra.gateway.calls.rollouts import fault_at_end
from infra.gateway.http.access import Caller
from infra.gateway.state.lightning import Store
from infra.gateway.state.lightning_models import LightningRolloutState
from infra.gateway.state.services import Services
from schemas.clock import from_milliseconds
from schemas.envelope import rollout_key
from schemas.identifiers import derived_event_id
from schemas.lightning import (
    Appended,
    Cleared,
    Created,
    Deleted,
    Lightning,
    LightningEvent,
    Patched,
    Paused,
    Registered,
)
from schemas.rewards import Reward, RewardEvent, RewardSource
from schemas.rollouts import Rollout, RolloutEvent, RolloutState
from schemas.topics import LIGHTNING, REWARDS, ROLLOUTS

logger = structlog.get_logger(__name__)

Change = Created | Patched | Appended | Deleted | Registered | Cleared | Paused
_STATES = {
    LightningRolloutState.RUNNING: RolloutState.STARTED,
    LightningRolloutState.SUCCEEDED: RolloutState.SUCCEEDED,
    LightningRolloutState.FAILED: RolloutState.FAILED,
}


async def write_change(
    services: Services, caller: Caller, store: Store, rollout_id: str | None, change: Change
) -> None:
    """Write a change, then show it."""
    event = change_event(caller, rollout_id, change)
    await services.write(LIGHTNING, caller.tenant, event)
    store.take(event)


def change_event(caller: Caller, rollout_id: str | None, change: Change) -> LightningEvent:
    """Return a change as an event of the `lightning` topic."""
    return LightningEvent(
        tenant=caller.tenant, rollout_id=rollout_id, payload=Lightning(change=change)
    )


def state_event(caller: Caller, rollout_id: str, rollout: Rollout) -> RolloutEvent:
    """Return a change of state for the learners.

    It is written before the change of the API's own state, under an id that the same change always
    has: what is asked again after a crash between the two is told once.
    """
    key = rollout_key(caller.tenant, rollout_id)
    event_id = derived_event_id(from_milliseconds(0), "lightning", key, rollout.state)
    return RolloutEvent(
        event_id=event_id, tenant=caller.tenant, rollout_id=rollout_id, payload=rollout
    )


async def tell_state(
    services: Services,
    caller: Caller,
    rollout_id: str,
    state: LightningRolloutState,
    error: str | None,
) -> None:
    """Tell learners that a rollout's state has changed."""
    if state is LightningRolloutState.QUEUING:
        return
    key = rollout_key(caller.tenant, rollout_id)
    change = Rollout(state=_STATES[state], error=error)
    if state is LightningRolloutState.FAILED:
        change = change.model_copy(update={"fault": fault_at_end(services, key)})
    if state is not LightningRolloutState.RUNNING:
        change = change.model_copy(update={"recorded": services.routing.recorded(key)})
        services.routing.release(key)
    event = state_event(caller, rollout_id, change)
    await services.record_durably(ROLLOUTS, event)


async def tell_reward(
    services: Services, caller: Caller, rollout_id: str, data: dict[str, Any]
) -> None:
    """Give a reward to the rollout, in [0, 1]; what cannot be brought there is kept with the events
    only.
    """
    worst, best = services.settings.lightning_rewards
    value = data.get("value")
    scaled = (value - worst) / (best - worst) if isinstance(value, int | float) else None
    if scaled is None or not 0 <= scaled <= 1:
        logger.warning(
            "reward out of gateway.lightning_rewards, not learned from",
            rollout=rollout_id,
            value=value,
        )
        return
    reward = Reward(value=scaled, source=RewardSource.ENVIRONMENT, grader="agentlightning")
    await services.record_durably(
        REWARDS, RewardEvent(tenant=caller.tenant, rollout_id=rollout_id, payload=reward)
    )
