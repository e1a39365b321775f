"""Where a request belongs, by its headers: tenant, rollout, node and enclosing span."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import TypeAdapter, ValidationError

from infra.gateway.http.access import Caller
from infra.gateway.http.problems import ProblemError
from schemas.envelope import Name, rollout_key
from schemas.identifiers import new_span_id, new_trace_id

ROLLOUT_HEADER = "x-everloop-rollout-id"
NODE_HEADER = "x-everloop-node"
CHECKPOINT_HEADER = "x-everloop-checkpoint"
SPAN_HEADER = "x-everloop-span-id"
SPLIT_HEADER = "x-everloop-split"

_names: TypeAdapter[str] = TypeAdapter(Name)
_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True)
class CallContext:
    """Where a call belongs.

    Attributes:
        rollout_id: None if the caller named none.
        node: the part of the agent that calls; None if it does not say.
        trace_id, parent_span_id: from `traceparent`; without one, a new trace and no parent.
        traced: whether the caller sent a `traceparent`.
        span_id: id of the span that will record this call.
    """

    caller: Caller
    rollout_id: str | None
    node: str | None
    trace_id: str
    parent_span_id: str | None
    traced: bool
    span_id: str

    def key(self, rollout_id: str) -> str:
        """Return the key of one of the tenant's rollouts."""
        return rollout_key(self.caller.tenant, rollout_id)


def call_context(request: Request, caller: Caller, rollout_id: str | None = None) -> CallContext:
    """Return where a request belongs.

    Args:
        rollout_id: the rollout that the path names. None: the header counts.

    Raises:
        ProblemError: 400, a header or the path has a value it cannot have.
    """
    headers = request.headers
    if "traceparent" in headers:
        parent = get_current_span(_propagator.extract(headers)).get_span_context()
        traced = parent.is_valid
    else:
        traced = False
    return CallContext(
        caller=caller,
        rollout_id=name_of("rollout id", rollout_id) or _header_name(headers, ROLLOUT_HEADER),
        node=_header_name(headers, NODE_HEADER),
        trace_id=f"{parent.trace_id:032x}" if traced else new_trace_id(),
        parent_span_id=f"{parent.span_id:016x}" if traced else None,
        traced=traced,
        span_id=new_span_id(),
    )


def name_of(what: str, value: str | None) -> str | None:
    """Return a name.

    Raises:
        ProblemError: 400, it cannot be one.
    """
    if value is None:
        return None
    try:
        return _names.validate_python(value)
    except ValidationError as error:
        raise ProblemError(
            400,
            "Invalid name",
            f"{what} is {value[:80]!r}; it must be 1 to 200 letters, digits or . _ : @ / -, not"
            " a mark first",
        ) from error


def _header_name(headers: Mapping[str, str], header: str) -> str | None:
    return name_of(header, headers.get(header))
