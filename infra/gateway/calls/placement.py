"""The placement of a model call: the rollout it belongs to, and what serves it."""

from dataclasses import dataclass, replace
from typing import Any

from infra.gateway.calls.choices import Chosen, chosen
from infra.gateway.calls.formats import Api
from infra.gateway.calls.rollouts import assign
from infra.gateway.http.context import CallContext
from infra.gateway.http.problems import ProblemError
from infra.gateway.routes.table import LoadedRoute, Target
from infra.gateway.state.conversations import AGENT, Conversation, Transcript
from infra.gateway.state.services import Services
from schemas.topics import DECISIONS


@dataclass(frozen=True)
class Placement:
    """Where a call belongs and where it goes.

    Attributes:
        conversation: the rollout's conversation; None if the caller named the rollout.
        model: logical name of the model; if a policy chose among models, the one it chose.
        body: the request; if a policy chose, as the chosen option changes it.
        target: what is asked first.
        route: the route of the target.
        taken: the option that a policy chose; None if there was no choice.
        transcript: what the caller said in the conversation; None if the caller named the rollout.
    """

    rollout_id: str
    conversation: Conversation | None
    model: str
    body: dict[str, Any]
    target: Target
    route: LoadedRoute
    taken: Chosen | None = None
    transcript: Transcript | None = None


def place_call(
    services: Services,
    api: Api,
    call: CallContext,
    body: dict[str, Any],
    resolved: tuple[Target, LoadedRoute] | None,
    transcript: Transcript | None,
) -> Placement:
    """Place a call. If the caller names no rollout, the call joins a conversation.

    Args:
        resolved: what serves the call. None: the routes say it.
        transcript: what the caller says in the conversation; None if the caller names a rollout.

    Raises:
        ProblemError: there is no such model or policy.
    """
    if transcript is None:
        assert call.rollout_id is not None  # noqa: S101 - see `transcript`
        return _served_by(services, api, call, body, resolved, call.rollout_id, None)
    caller = call.caller
    trace_id = call.trace_id if call.traced else None
    conversation = services.conversations.join(caller.tenant, trace_id, transcript.continues)
    rollout_id = conversation.rollout_id
    try:
        placed = _served_by(services, api, call, body, resolved, rollout_id, conversation)
        return replace(placed, transcript=transcript)
    except ProblemError:
        services.conversations.refused(conversation)
        raise


def record_placement(services: Services, call: CallContext, placement: Placement) -> None:
    """Record the rollout if nobody has announced it, the versions that it uses for the first time,
    and the choice if there was one.
    """
    rollout_id, taken = placement.rollout_id, placement.taken
    versions = {placement.model: placement.target.version}
    if taken is not None:
        # The version that the rollout is pinned to. If that policy broke, the baseline decided.
        policy = taken.decision.payload.policy
        pinned, _ = services.routing.resolve(policy, "policy", call.key(rollout_id))
        versions[policy] = pinned.version
    agent = AGENT if placement.conversation is not None else "agent"
    assign(services, call.caller.tenant, rollout_id, call.trace_id, versions, agent)
    if taken is not None:
        services.record(DECISIONS, taken.decision)


def _served_by(
    services: Services,
    api: Api,
    call: CallContext,
    body: dict[str, Any],
    resolved: tuple[Target, LoadedRoute] | None,
    rollout_id: str,
    conversation: Conversation | None,
) -> Placement:
    model: str = body["model"]
    if resolved is not None:
        return Placement(rollout_id, conversation, model, body, *resolved)
    taken: Chosen | None = None
    choice = services.routing.choice(model)
    if choice is not None:
        taken = chosen(services, api, call, rollout_id, choice, body)
        model, body = taken.option.model, taken.body
    model = services.routing.own(model, call.caller.tenant)
    target, route = services.routing.resolve(model, "model", call.key(rollout_id))
    return Placement(rollout_id, conversation, model, body, target, route, taken)
