"""Choices: a policy picks one of several candidates, for an agent that asks, or to route a model
call.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from infra.gateway.calls.formats import Api
from infra.gateway.http.context import CallContext
from infra.gateway.http.documents import Body
from infra.gateway.records.redaction import Redactor
from infra.gateway.routes.targets import Target, unit_draw
from infra.gateway.state.services import Services
from learners.contract import PolicyError, chances
from learners.policies import UNIFORM_VERSION, UniformPolicy
from schemas.decisions import Candidate, Decision, DecisionEvent
from schemas.routes import Choice, Option
from streams.storage.errors import RejectedRecordError

CONTEXT_CHARACTERS = 4000
AT_ONCE = 16_384
"""Size of a decision, in characters, up to which the event loop makes it: it takes about 2 ms."""

logger = structlog.get_logger(__name__)


async def decide(
    services: Services,
    call: CallContext,
    rollout_id: str,
    policy: str,
    context: str,
    candidates: Sequence[Candidate],
) -> DecisionEvent:
    """Choose a candidate with the policy the rollout is pinned to; the event is not recorded yet.

    A policy that raises or returns no distribution is replaced by the uniform baseline.
    The draw depends on rollout, policy and context only: asked again, the same policy chooses the
    same. A large decision is made in a thread; an agent may ask for any size.

    Raises:
        ProblemError: 404, there is no such policy.
    """
    # The routes belong to the event loop, so they are read here.
    target, _ = services.routing.resolve(policy, "policy", call.key(rollout_id))
    asked = services.redactor, target, call, rollout_id, policy, context, candidates
    if _size(context, candidates) <= AT_ONCE:
        return make_decision(*asked)
    return await asyncio.to_thread(make_decision, *asked)


def _size(context: str, candidates: Sequence[Candidate]) -> int:
    return len(context) + sum(len(one.text) + 16 * (1 + len(one.numbers)) for one in candidates)


def make_decision(
    redactor: Redactor,
    target: Target,
    call: CallContext,
    rollout_id: str,
    policy: str,
    context: str,
    candidates: Sequence[Candidate],
) -> DecisionEvent:
    """Choose with a policy; any thread or process may do this."""
    tenant, key = call.caller.tenant, call.key(rollout_id)
    # Redacted before the policy reads it: the log must hold what the policy read.
    context, shown = redactor.text(context), redactor.candidates(list(candidates))
    version = target.version
    try:
        chooser = target.chooser
        feature_version = chooser.feature_version
        probabilities = chances(chooser, context, shown, tenant)
    except (PolicyError, ValueError, RejectedRecordError) as error:
        # The agent needs a choice now. The baseline makes it and is logged as its maker, so that
        # the propensity is right.
        logger.error("baseline chose", policy=policy, version=version, error=str(error))
        version, feature_version = UNIFORM_VERSION, UniformPolicy.feature_version
        probabilities = UniformPolicy().probabilities(context, shown, tenant)
    choice = _drawn(probabilities, unit_draw(policy, key, context))
    payload = Decision(
        policy=policy,
        policy_version=version,
        feature_version=feature_version,
        tenant=tenant,
        context=context,
        candidates=shown,
        probabilities=probabilities,
        choice=choice,
        propensity=probabilities[choice],
    )
    return DecisionEvent(
        tenant=tenant,
        rollout_id=rollout_id,
        trace_id=call.trace_id,
        span_id=call.parent_span_id,
        payload=payload,
    )


@dataclass(frozen=True)
class Chosen:
    """An option that a model call takes."""

    option: Option
    decision: DecisionEvent


async def chosen(
    services: Services, call: CallContext, rollout_id: str, choice: Choice, context: str
) -> Chosen:
    """Choose how a model call is answered.

    Args:
        context: what its last user said.

    Raises:
        ProblemError: 404, there is no such policy.
    """
    candidates = [
        Candidate(
            id=option.name,
            text=option.text or option.name,
            numbers=option.numbers,
            cost=option.cost,
        )
        for option in choice.options
    ]
    decision = await decide(services, call, rollout_id, choice.policy, context, candidates)
    decision = decision.model_copy(
        update={"span_id": call.span_id}
    )  # whose reward and cost are the decision's
    return Chosen(choice.options[decision.payload.choice], decision)


def with_option(body: Body, api: Api, option: Option) -> Body:
    """Return a request as an option sends it on."""
    sent = {**body, "model": option.model}
    return sent if option.instructions is None else api.instruct(sent, option.instructions)


def last_said(body: Body, api: Api) -> str:
    """Return the beginning of what the last user of a request said."""
    said = [m.get("content") for m in api.messages(body) or () if m.get("role") == "user"]
    content = said[-1] if said else ""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = " ".join(text for text in texts if isinstance(text, str))
    return content[:CONTEXT_CHARACTERS] if isinstance(content, str) else ""


def _drawn(probabilities: list[float], draw: float) -> int:
    """Return the index into which a number in [0, 1) falls."""
    for index, probability in enumerate(probabilities):
        draw -= probability
        if draw < 0:
            return index
    # Rounding may leave a rest. The likeliest one, whose propensity is surely not 0.
    return max(range(len(probabilities)), key=probabilities.__getitem__)
