"""The audit trail: who changed what by hand, when and why."""

import getpass
import socket

from pydantic import BaseModel

from schemas.audit import Audit, AuditEvent
from schemas.topics import AUDIT
from streams.storage.records import NewRecord, Outgoing


class ControlError(Exception):
    """A change cannot be made; the message says why and what to do."""


def local_actor() -> str:
    """Return who works at the command line, as `user@host`."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def audit_record(
    actor: str,
    action: str,
    subject: str,
    reason: str,
    before: BaseModel | None,
    after: BaseModel | None,
) -> NewRecord:
    """Return the record of a change, to be appended together with the change itself."""
    # Before and after are written whole: routes are compacted, so the log may lose them.
    payload = Audit(
        actor=actor,
        action=action,
        subject=subject,
        reason=reason,
        before=before.model_dump(mode="json") if before else None,
        after=after.model_dump(mode="json") if after else None,
    )
    return Outgoing.of(AUDIT, subject, AuditEvent(payload=payload)).record()
