"""The audit trail: what people and operators changed, and what it was before."""

from typing import Literal

from pydantic import JsonValue

from schemas.envelope import Event, EventData


class Audit(EventData):
    """A change by hand.

    Attributes:
        actor: id of the API key, or `user@host` of the command line.
        action: such as `routes.promote` or `keys.revoke`.
        subject: logical name or key id.
        before, after: what changed; secrets are never in it.
    """

    actor: str
    action: str
    subject: str
    reason: str = ""
    before: JsonValue = None
    after: JsonValue = None


class AuditEvent(Event[Audit]):
    """Somebody changed something. Key: the subject."""

    type: Literal["audit"] = "audit"
