"""The audit trail: what people and operators changed, and the value before."""

from typing import Literal

from pydantic import JsonValue

from schemas.envelope import Event, EventData


class Audit(EventData):
    """A change by hand.

    Attributes:
        actor: id of the API key, or `user@host` of the command line.
        action: such as `routes.promote` or `keys.revoke`.
        subject: logical name or key id.
        before, after: the value before and after the change; it never holds a secret.
    """

    actor: str
    action: str
    subject: str
    reason: str = ""
    before: JsonValue = None
    after: JsonValue = None


class AuditEvent(Event[Audit]):
    """A person changed something. Key: the subject."""

    type: Literal["audit"] = "audit"
