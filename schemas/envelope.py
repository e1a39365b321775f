"""The envelope that every event shares, and the base of every payload."""

from typing import Annotated, Any, Generic, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from schemas.clock import now
from schemas.identifiers import new_event_id

EventId = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"),
]
TraceId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
SpanId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
# No `|`, which separates tenant and rollout in keys; no spaces and no control characters, since
# names stand in headers, URLs and logs.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,199}$")]
DEFAULT_TENANT = "default"
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]


class EventData(BaseModel):
    """Base of everything in an event.

    It is frozen, because an event is a fact. It keeps unknown fields, because an older reader must
    pass on the fields of a newer writer. It refuses NaN and infinities, because JSON cannot write
    them.
    """

    model_config = ConfigDict(
        extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def with_present_names(document: Any, **names: str) -> Any:
    """Return a payload of an older version with the present names of its fields.

    Args:
        names: old name to present name.
    """
    # Nearly every document is new. So it is not copied.
    if not isinstance(document, dict) or not names.keys() & document.keys():
        return document
    return {names.get(name, name): value for name, value in document.items()}


Payload = TypeVar("Payload", bound=EventData)


class Event(EventData, Generic[Payload]):
    """One fact on the log.

    Attributes:
        event_id: UUIDv7. Repeats of one event carry the same id.
        type: the event's type, one per topic.
        schema_version: raised when a change is incompatible with older readers.
        time: when it happened (not when it was written), timezone-aware.
        tenant: whose event it is.
        rollout_id: the rollout it belongs to, where it belongs to one.
        trace_id: W3C trace id, 32 hexadecimal digits.
        span_id: W3C span id, 16 hexadecimal digits.
    """

    event_id: EventId = Field(default_factory=new_event_id)
    type: str
    schema_version: int = Field(default=1, ge=1)
    time: AwareDatetime = Field(default_factory=now)
    tenant: Name = DEFAULT_TENANT
    rollout_id: Name | None = None
    trace_id: TraceId | None = None
    span_id: SpanId | None = None
    payload: Payload

    @property
    def rollout_key(self) -> str:
        """Key of the records of its rollout."""
        return rollout_key(self.tenant, self.rollout_id or "")


def rollout_key(tenant: str, rollout_id: str) -> str:
    """Return the key of a rollout's records.

    Two tenants may use the same rollout id. Their keys differ, so their records are never joined.
    No name contains the separator, so two keys are never equal by chance.
    """
    return rollout_id if tenant == DEFAULT_TENANT else f"{tenant}|{rollout_id}"


AnyEvent = Event[Any]
