"""Changes made through the server API of Agent Lightning 1.0 (agentlightning.server 1.0.2).

Its rollouts have an input, a configuration for their runner, and a lifecycle of their own. These
events keep all of it, so the state of the API is a fold over them. What a change means to Everloop,
such as a new rollout or a reward, is also written to the other topics.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from schemas.envelope import Event, EventData, Name


class Created(EventData):
    """A rollout was enqueued."""

    kind: Literal["created"] = "created"
    input: Any = None
    is_train: bool = True
    config: dict[str, Any] = {}
    metadata: dict[str, Any] = {}


class Patched(EventData):
    """A rollout's status changed; `updates` are members of its status."""

    kind: Literal["patched"] = "patched"
    updates: dict[str, Any]


class Appended(EventData):
    """An event was appended to an attempt."""

    kind: Literal["appended"] = "appended"
    attempt_id: str
    event_type: str
    data: dict[str, Any]


class Deleted(EventData):
    """A rollout was deleted from the API; what the log holds of it stays."""

    kind: Literal["deleted"] = "deleted"


class Registered(EventData):
    """A model server was registered."""

    kind: Literal["registered"] = "registered"
    model: str
    endpoint: str
    version: int = 0


class Cleared(EventData):
    """All model servers were removed."""

    kind: Literal["cleared"] = "cleared"


class Paused(EventData):
    """The proxy was paused, or resumed."""

    kind: Literal["paused"] = "paused"
    paused: bool
    retry_after_seconds: int = 5
    reason: str | None = None


class Lightning(EventData):
    """One change."""

    change: Annotated[
        Created | Patched | Appended | Deleted | Registered | Cleared | Paused,
        Field(discriminator="kind"),
    ]


class LightningEvent(Event[Lightning]):
    """The API's state changed. Key: the tenant, since one partition holds the order of all."""

    type: Literal["lightning"] = "lightning"
    rollout_id: Name | None = None
