"""Decisions that agents ask for: read, made and encoded, by a reader where they are large."""

from typing import NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.gateway.calls.choices import make_decision
from infra.gateway.http.context import CallContext
from infra.gateway.http.documents import Body, Document, Elsewhere
from infra.gateway.http.problems import unprocessable
from infra.gateway.records.redaction import Redactor
from infra.gateway.routes.targets import Target
from schemas.decisions import Candidate
from schemas.envelope import Name
from schemas.serialization import encode


class NewDecision(BaseModel):
    """A choice to be made."""

    model_config = ConfigDict(extra="forbid")

    rollout_id: Name
    policy: Name
    context: str = ""
    candidates: list[Candidate] = Field(min_length=1)


class MadeDecision(NamedTuple):
    """A decision: the id and the bytes of its event, and the answer for the agent."""

    event_id: str
    value: bytes
    answer: bytes


class _Asker(BaseModel):
    """What must be known before a decision can be made."""

    rollout_id: Name
    policy: Name


def asker_of(body: Body) -> tuple[str, str]:
    """Return the rollout and the policy of a request for a decision.

    Raises:
        ProblemError: 422, it names none.
    """
    try:
        asker = _Asker.model_validate(body)
    except ValidationError as error:
        raise unprocessable(error) from error
    return asker.rollout_id, asker.policy


async def decide(
    document: Document, redactor: Redactor, target: Target, call: CallContext
) -> MadeDecision:
    """Make a decision.

    Args:
        document: a `NewDecision`.
        target: the version of its policy that the rollout is pinned to.

    Raises:
        ProblemError: 422, it is no `NewDecision`.
    """
    if isinstance(document, Elsewhere) and not target.portable:
        document = await document.here()
    return MadeDecision(*await document.apply(_decide, redactor, target, call))


def _decide(
    body: Body, redactor: Redactor, target: Target, call: CallContext
) -> tuple[str, bytes, bytes]:
    try:
        new = NewDecision.model_validate(body)
    except ValidationError as error:
        raise unprocessable(error) from error
    event = make_decision(
        redactor, target, call, new.rollout_id, new.policy, new.context, new.candidates
    )
    made = event.payload
    answer = {
        "decision_id": event.event_id,
        "choice": made.choice,
        "propensity": made.propensity,
        "probabilities": made.probabilities,
        "policy_version": made.policy_version,
    }
    return event.event_id, encode(event), orjson.dumps(answer)
