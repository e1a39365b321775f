"""The placement of a model call: the rollout it belongs to, and what serves it."""

from dataclasses import dataclass

from infra.gateway.calls.choices import Chosen, chosen, with_option
from infra.gateway.calls.formats import Api
from infra.gateway.calls.requests import Asked
from infra.gateway.calls.rollouts import assign
from infra.gateway.http.context import CallContext
from infra.gateway.http.documents import Document
from infra.gateway.routes.targets import LoadedRoute, Target
from infra.gateway.state.conversations import AGENT, Conversation
from infra.gateway.state.services import Services
from schemas.topics import DECISIONS


@dataclass(frozen=True)
class Placement:
    """Where a call belongs and where it goes.

    Attributes:
        conversation: the rollout's conversation; None if the caller named the rollout.
        asked: name of the model in the request; if a policy chose among models, the one it chose.
        model: the logical name behind it, such as a tenant's own.
        document: the request; if a policy chose, as the chosen option changes it.
        target: what is asked first.
        route: the route of the target.
        taken: the option that a policy chose; None if there was no choice.
    """

    rollout_id: str
    conversation: Conversation | None
    asked: str
    model: str
    document: Document
    target: Target
    route: LoadedRoute
    taken: Chosen | None = None


async def place_call(
    services: Services,
    api: Api,
    call: CallContext,
    document: Document,
    asked: Asked,
    resolved: tuple[Target, LoadedRoute] | None,
) -> Placement:
    """Place a call. If the caller names no rollout, the call joins a conversation.

    Args:
        document: the request.
        asked: what it says.
        resolved: what serves the call. None: the routes say it.

    Raises:
        ProblemError: there is no such model or policy.
    """
    request = document, asked, resolved
    if asked.transcript is None:
        assert call.rollout_id is not None  # noqa: S101 - see `Asked.transcript`
        return await _served_by(services, api, call, *request, call.rollout_id, None)
    trace_id = call.trace_id if call.traced else None
    continues = asked.transcript.continues
    conversation = services.conversations.join(call.caller.tenant, trace_id, continues)
    rollout_id = conversation.rollout_id
    try:
        return await _served_by(services, api, call, *request, rollout_id, conversation)
    except BaseException:  # also a caller who hung up: the conversation would be busy for ever
        services.conversations.withdraw_call(conversation)
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


async def _served_by(
    services: Services,
    api: Api,
    call: CallContext,
    document: Document,
    asked: Asked,
    resolved: tuple[Target, LoadedRoute] | None,
    rollout_id: str,
    conversation: Conversation | None,
) -> Placement:
    model = asked.model
    if resolved is not None:
        return Placement(rollout_id, conversation, model, model, document, *resolved)
    taken: Chosen | None = None
    choice = services.routing.choice(model)
    if choice is not None:
        taken = await chosen(services, call, rollout_id, choice, asked.context)
        model = taken.option.model
        document = await document.changed(with_option, api, taken.option)
    # After the choice: the chosen model may have a version of the tenant's own.
    own = services.routing.own(model, call.caller.tenant)
    target, route = services.routing.resolve(own, "model", call.key(rollout_id))
    return Placement(rollout_id, conversation, model, own, document, target, route, taken)
