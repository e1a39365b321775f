"""What Agent Lightning's API shows: rollouts, their events, its model servers; a fold over the
`lightning` topic.

Its models and rules are those of agentlightning 1.0.2 (`agentlightning.schemas`,
`agentlightning.server.routes`), so that its client, controller and trainer find here what they find
there.
"""

import asyncio
import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.gateway.http.problems import ProblemError
from schemas.envelope import Name
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
MODEL_REQUEST = "model_request"
REWARD = "reward"


class LightningRolloutState(StrEnum):
    """Where a rollout stands, in its words."""

    QUEUING = "queuing"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


TRANSITIONS: dict[str, frozenset[str]] = {
    LightningRolloutState.QUEUING: frozenset(
        {LightningRolloutState.RUNNING, LightningRolloutState.FAILED}
    ),
    LightningRolloutState.RUNNING: frozenset(
        {LightningRolloutState.SUCCEEDED, LightningRolloutState.FAILED}
    ),
    LightningRolloutState.SUCCEEDED: frozenset(),
    LightningRolloutState.FAILED: frozenset(),
}
"""Legal next states."""


class LocalConfig(BaseModel):
    """How a rollout is run on its controller's machine."""

    agent_class: str | None = None
    env_map: dict[str, str] = {}


class K8sConfig(BaseModel):
    """How a rollout is run on Kubernetes."""

    job_template: str | None = None


class RunConfig(BaseModel):
    """What the controller reads of a rollout."""

    timeout_seconds: int = 3600
    local: LocalConfig | None = None
    k8s: K8sConfig | None = None


class Metadata(BaseModel):
    """What the algorithm keeps with a rollout."""

    model_config = ConfigDict(extra="allow")

    batch_idx: int | None = None
    sample_idx_in_batch: int | None = None


class NewLightningRollout(BaseModel):
    """A rollout to enqueue. With an id, enqueuing it twice is enqueuing it once."""

    input: Any
    is_train: bool = True
    config: RunConfig | None = None
    metadata: Metadata | None = None
    rollout_id: Name | None = None


class Status(BaseModel):
    """A rollout's lifecycle. Times are seconds since the unix epoch."""

    state: LightningRolloutState = LightningRolloutState.QUEUING
    k8s_job_name: str | None = None
    last_attempt_id: str | None = None
    error_message: str | None = None
    version: int = 1
    created_at: float
    updated_at: float


class StatusPatch(BaseModel):
    """A change of a rollout's status."""

    model_config = ConfigDict(extra="forbid")

    state: LightningRolloutState | None = None
    k8s_job_name: str | None = None
    last_attempt_id: str | None = None
    error_message: str | None = None


class RolloutPatch(BaseModel):
    """A change of a rollout."""

    status: StatusPatch | None = None


class LightningRollout(BaseModel):
    """A rollout."""

    rollout_id: str
    input: Any
    is_train: bool = True
    config: RunConfig
    metadata: Metadata = Metadata()
    status: Status


class AttemptEvent(BaseModel):
    """Something that happened in an attempt of a rollout."""

    event_type: str
    rollout_id: str
    attempt_id: str
    timestamp: float
    data: dict[str, Any]


class ModelServer(BaseModel):
    """A model server; known by model and endpoint."""

    model: str = Field(min_length=1)
    endpoint: str
    version: int = 0


class PauseState(BaseModel):
    """Whether the proxy refuses calls, and how many are under way."""

    paused: bool = False
    retry_after_seconds: int = Field(default=5, ge=0)
    reason: str | None = None
    inflight: int = 0


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
                _leave_out_superseded(events, appended)
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


def triplets(events: list[AttemptEvent]) -> list[AttemptEvent]:
    """Return events as a trainer reads them: token ids and log-probabilities of calls, values of
    rewards.

    Of calls with the same prompt tokens only the last is kept; others are kept as they are.
    """
    trimmed = [_trimmed(event) for event in events]
    last: dict[tuple[int, ...], int] = {}
    for index, event in enumerate(trimmed):
        if (prompt := _prompt_of(event)) is not None:
            last[prompt] = index
    return [
        e for index, e in enumerate(trimmed) if (p := _prompt_of(e)) is None or last[p] == index
    ]


def without_experts(event: AttemptEvent) -> AttemptEvent:
    """Return an event without the tensor of routed experts."""
    if event.event_type != MODEL_REQUEST or "routed_experts" not in event.data:
        return event
    data = {name: value for name, value in event.data.items() if name != "routed_experts"}
    return event.model_copy(update={"data": data})


def _prompt_of(event: AttemptEvent) -> tuple[int, ...] | None:
    ids = event.data.get("prompt_token_ids") if event.event_type == MODEL_REQUEST else None
    # Not `isinstance`: True and False are ints, too.
    if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
        return None
    return tuple(ids)


def _trimmed(event: AttemptEvent) -> AttemptEvent:
    data = event.data
    if event.event_type == REWARD:
        kept = {"value": data.get("value")} | {
            name: data[name] for name in ("source", "reason") if name in data
        }
        return event.model_copy(update={"data": kept})
    return (
        event.model_copy(update={"data": _tokens(data)})
        if event.event_type == MODEL_REQUEST
        else event
    )


def _tokens(data: dict[str, Any]) -> dict[str, Any]:
    response = data.get("response")
    response = response if isinstance(response, dict) else {}
    choices = response.get("choices")
    choice = (
        choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    )
    server = data.get("server")
    server = server if isinstance(server, dict) else {}
    found = {
        "prompt_token_ids": response.get("prompt_token_ids")
        or choice.get("prompt_token_ids")
        or [],
        "response_token_ids": choice.get("token_ids") or [],
        "response_log_probs": _log_probs(choice.get("logprobs")),
        "server": {"model": server.get("model"), "version": server.get("version")},
    }
    found |= {
        name: data[name]
        for name in ("routed_experts", "http_status", "status")
        if data.get(name) is not None
    }
    return found | ({"error": response["error"]} if "error" in response else {})


def _log_probs(logprobs: Any) -> list[float] | None:
    """Return one log-probability a token. None if one is missing or is no number: then the others
    cannot be matched with tokens.
    """
    if not isinstance(logprobs, dict):
        return None
    content, plain = logprobs.get("content"), logprobs.get("token_logprobs")
    values = (
        [item.get("logprob") if isinstance(item, dict) else None for item in content]
        if content
        else plain
    )
    if not isinstance(values, list):
        return [] if content == [] else None
    usable = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    return [float(value) for value in values] if usable else None


def _leave_out_superseded(events: list[AttemptEvent], appended: Appended) -> None:
    """Keep the tensor of routed experts only of the last call of a growing conversation. It
    contains those of the earlier calls.
    """
    if appended.event_type != MODEL_REQUEST or appended.data.get("routed_experts") is None:
        return
    prompt = _tokens(appended.data)["prompt_token_ids"]
    for index in range(len(events) - 1, -1, -1):
        if events[index].event_type == MODEL_REQUEST:
            known = _tokens(events[index].data)
            context = known["prompt_token_ids"] + known["response_token_ids"]
            if prompt == known["prompt_token_ids"] or prompt[: len(context)] == context:
                events[index] = without_experts(events[index])
            return
