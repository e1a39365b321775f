"""What a request says about where it belongs: rollout, node and enclosing span."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import TypeAdapter, ValidationError

from infra.gateway.problems import ProblemError
from schemas.envelope import Name
from schemas.identifiers import new_event_id, new_span_id, new_trace_id

ROLLOUT_HEADER = "x-everloop-rollout-id"
NODE_HEADER = "x-everloop-node"
CHECKPOINT_HEADER = "x-everloop-checkpoint"

_names: TypeAdapter[str] = TypeAdapter(Name)
_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True)
class CallContext:
    """Where a call belongs.

    Attributes:
        rollout_id: from the header; a new one where the caller named none.
        named: whether the caller named the rollout.
        node: which part of the agent calls, if it says so.
        trace_id, parent_span_id: from `traceparent`; a new trace where there is none.
        span_id: of the span that this call will be.
    """

    rollout_id: str
    named: bool
    node: str | None
    trace_id: str
    parent_span_id: str | None
    span_id: str


async def call_context(request: Request) -> CallContext:
    """Return where a request belongs.

    Raises:
        ProblemError: 400, a header has a value it cannot have.
    """
    rollout_id = _named(request.headers, ROLLOUT_HEADER)
    parent = get_current_span(_propagator.extract(request.headers)).get_span_context()
    return CallContext(
        rollout_id=rollout_id or new_event_id(),
        named=rollout_id is not None,
        node=_named(request.headers, NODE_HEADER),
        trace_id=f"{parent.trace_id:032x}" if parent.is_valid else new_trace_id(),
        parent_span_id=f"{parent.span_id:016x}" if parent.is_valid else None,
        span_id=new_span_id(),
    )


def _named(headers: Mapping[str, str], header: str) -> str | None:
    value = headers.get(header)
    if value is None:
        return None
    try:
        return _names.validate_python(value)
    except ValidationError as error:
        raise ProblemError(
            400,
            "Invalid header",
            f"{header} is {value[:80]!r}; it must be 1 to 200 letters, digits or . _ : @ / -, not a mark first",
        ) from error


Call = Annotated[CallContext, Depends(call_context)]
