"""Whose failure a failed model call was."""

from schemas.rollouts import Fault

LIMITS = frozenset({402, 429})
"""Statuses with which the gateway itself says that a caller is over a rate or a budget."""

OF_ENDPOINT = frozenset({401, 402, 403, 408, 429})
"""Statuses below 500 with which a model server fails us: our key there, our quota, its time."""


def fault_of_refusal(status: int) -> Fault:
    """Return whose failure it is that the gateway refused a call with this status."""
    if status in LIMITS:
        return "limit"
    return "endpoint" if status >= 500 else "agent"


def fault_of_call(status: int | None, error: str) -> Fault:
    """Return whose failure a call is that was sent.

    Args:
        status: the model server's status; None where it gave none.
        error: what went wrong; `cancelled` where the caller hung up.
    """
    if error == "cancelled":
        return "caller"
    refused = status is not None and 400 <= status < 500 and status not in OF_ENDPOINT
    return "agent" if refused else "endpoint"
