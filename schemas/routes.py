"""Routes: what the gateway serves under a logical name now (compacted: the last one counts)."""

from typing import Literal

from pydantic import Field

from schemas.checkpoints import Artifact
from schemas.envelope import Event, Model, Name


class Endpoint(Model):
    """An OpenAI-compatible server.

    Attributes:
        base_url: up to and including `/v1`.
        model: the name the server knows the model by.
        api_key_env: environment variable that holds the key; the key itself is never an event.
    """

    base_url: str
    model: str
    api_key_env: str | None = None


class RouteTarget(Model):
    """One version to send traffic to: an endpoint for models, an artifact for policies, neither for built-ins.

    Attributes:
        weight: share of rollouts, relative to the other targets' weights.
    """

    version: Name
    weight: float = Field(default=1.0, ge=0.0)
    endpoint: Endpoint | None = None
    artifact: Artifact | None = None


class Route(Model):
    """Where a logical name leads."""

    name: Name
    kind: Literal["model", "policy"]
    targets: list[RouteTarget] = Field(min_length=1)
    reason: str = ""


class RouteEvent(Event[Route]):
    """A route changed. Key: logical name."""

    type: Literal["route"] = "route"
