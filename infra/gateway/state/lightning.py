"""What Agent Lightning's API shows: rollouts, their events, its model servers; a fold over the
`lightning` topic.

Its models and rules are those of agentlightning 1.0.2 (`agentlightning.schemas`,
`agentlightning.server.routes`), so that its client, controller and trainer find here what they find
there.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from infra.gateway.http.problems import ProblemError
from infra.gateway.state.lightning_models import (
    TRANSITIONS,
    AttemptEvent,
    LightningRollout,
    Metadata,
    ModelServer,
    PauseState,
    RunConfig,
    Status,
    StatusPatch,
)
from infra.gateway.state.triplets import leave_out_superseded
from schemas.lightning import (
    Appended,
    Cleared,
    Created,
    Deleted,
    LightningEvent,
    Patched,
    Paused,
    Registered,
)

DEFAULT_ATTEMPT = "0"


class Store:
    """One tenant's rollouts, events and model servers.

    Attributes:
        terminal: rollout ids in the order they ended; places in it are cursors, so none is ever
            taken out.
        servers: by model and endpoint.
        changing: held from the look at what is there until the change of it is shown, so that of
            two changes that exclude one another only the first is made.
    """

    def __init__(self) -> None:
        self.changing = asyncio.Lock()
        self.rollouts: dict[str, LightningRollout] = {}
        self.attempts: dict[str, dict[str, list[AttemptEvent]]] = {}
        self.terminal: list[str] = []
        self.servers: dict[str, dict[str, ModelServer]] = {}
        self.pause = PauseState()

    def rollout(self, rollout_id: str) -> LightningRollout:
        """Return a rollout.

        Raises:
            ProblemError: 404, there is none.
        """
        try:
            return self.rollouts[rollout_id]
        except KeyError:
            raise ProblemError(
                404, "Unknown rollout", f"Rollout not found: {rollout_id[:200]}"
            ) from None

    def check(self, rollout_id: str, patch: StatusPatch) -> None:
        """Refuse a patch that is not legal.

        Raises:
            ProblemError: 404, there is no such rollout; 409, its state cannot become that.
        """
        known = self.rollout(rollout_id).status.state
        if "state" in patch.model_fields_set and patch.state not in TRANSITIONS[known]:
            raise ProblemError(
                409,
                "Illegal transition",
                f"Rollout {rollout_id}: cannot go from {known} to {patch.state}",
            )

    def attempts_of(self, rollout_id: str) -> list[str]:
        """Return the attempts of a rollout, the first to have an event first."""
        return list(self.attempts[self.rollout(rollout_id).rollout_id])

    def events(self, rollout_id: str, event_type: str | None) -> list[AttemptEvent]:
        """Return the events of a rollout's last attempt."""
        attempt = self.rollout(rollout_id).status.last_attempt_id or DEFAULT_ATTEMPT
        found = self.attempts[rollout_id].get(attempt, [])
        return [event for event in found if event_type is None or event.event_type == event_type]

    def take(self, event: LightningEvent) -> None:
        """Take in a change. A change of a rollout that was deleted has no effect."""
        rollout_id, time = event.rollout_id or "", event.time.timestamp()
        match event.payload.change:
            case Created() as created if rollout_id not in self.rollouts:
                self.rollouts[rollout_id] = LightningRollout(
                    rollout_id=rollout_id,
                    input=created.input,
                    is_train=created.is_train,
                    config=RunConfig.model_validate(created.config),
                    metadata=Metadata.model_validate(created.metadata),
                    status=Status(created_at=time, updated_at=time),
                )
                self.attempts[rollout_id] = {}
            case Patched(updates=updates) if rollout_id in self.rollouts:
                rollout = self.rollouts[rollout_id]
                changed = rollout.status.model_dump() | updates
                changed |= {"version": rollout.status.version + 1, "updated_at": time}
                status = Status.model_validate(changed)
                self.rollouts[rollout_id] = rollout.model_copy(update={"status": status})
                # Only a change of state counts: another change of an ended rollout must not list it
                # twice.
                if "state" in updates and not TRANSITIONS[status.state]:
                    self.terminal.append(rollout_id)
            case Appended() as appended if rollout_id in self.rollouts:
                events = self.attempts[rollout_id].setdefault(appended.attempt_id, [])
                leave_out_superseded(events, appended)
                events.append(
                    AttemptEvent(
                        event_type=appended.event_type,
                        rollout_id=rollout_id,
                        attempt_id=appended.attempt_id,
                        timestamp=time,
                        data=appended.data,
                    )
                )
            case Deleted():
                # Its place in `terminal` stays: cursors of other callers count places.
                self.rollouts.pop(rollout_id, None)
                self.attempts.pop(rollout_id, None)
            case Registered() as registered:
                server = ModelServer.model_validate(registered, from_attributes=True)
                self.servers.setdefault(server.model, {})[server.endpoint] = server
            case Cleared():
                self.servers.clear()
            case Paused() as paused:
                self.pause.paused = paused.paused
                self.pause.reason = paused.reason
                self.pause.retry_after_seconds = paused.retry_after_seconds


class LightningState:
    """The stores of all tenants."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}

    def store(self, tenant: str) -> Store:
        """Return a tenant's store."""
        return self._stores.setdefault(tenant, Store())

    def restore(self, events: Iterable[Any]) -> None:
        """Take in all events of the topic. Called once, before the first request."""
        for event in events:
            self.store(event.tenant).take(event)
