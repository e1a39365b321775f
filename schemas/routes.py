"""Routes: what the gateway serves under a logical name now. The topic is compacted: the last
counts.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.checkpoints import Artifact
from schemas.endpoints import Endpoint
from schemas.envelope import Event, EventData, Name


class RouteTarget(EventData):
    """One version that gets traffic. A model has an endpoint, a policy an artifact, a built-in
    neither.

    Attributes:
        weight: share of rollouts, relative to the other targets' weights.
    """

    version: Name
    weight: float = Field(default=1.0, ge=0.0)
    endpoint: Endpoint | None = None
    artifact: Artifact | None = None


class Option(EventData):
    """One way to answer a model call.

    Attributes:
        name: name of the option, such as `small` or `terse-2`.
        model: logical model that answers.
        instructions: text put before the caller's messages.
        text, numbers: features that the policy reads; without a text it reads the name.
        cost: cost of a call, if known beforehand, in the unit of the endpoints' prices. Without it,
            the policy learns from the measured costs.
    """

    name: Name
    model: Name
    instructions: str | None = None
    text: str = ""
    numbers: dict[str, float] = {}
    cost: float | None = Field(default=None, ge=0)


class Choice(EventData):
    """A policy chooses one of several options for each call, by the last message of the user."""

    policy: Name
    options: list[Option] = Field(min_length=1, max_length=100)


class Route(EventData):
    """The route of a logical name.

    Attributes:
        targets: each rollout is pinned to one of them, drawn by weight. A target with weight 0 gets
            no new rollouts.
        choice: options of a route of kind `choice`. Its one target names only the version of the
            options.
        fallbacks: tried in this order if the pinned target does not answer.
        shadows: each gets a copy of a share `weight` of the calls, in [0, 1]. Their answers are
            recorded and never served.
        held: whether a person decides what is served; the gate then promotes nothing here.
    """

    name: Name
    kind: Literal["model", "policy", "choice"]
    targets: list[RouteTarget] = Field(min_length=1)
    choice: Choice | None = None
    fallbacks: list[RouteTarget] = []
    shadows: list[RouteTarget] = []
    held: bool = False
    reason: str = ""

    @model_validator(mode="after")
    def _choosing(self) -> Self:
        if (self.kind == "choice") != (self.choice is not None):
            raise ValueError(
                f"route {self.name} has kind {self.kind}; a route of kind choice must have"
                " options to choose among, and no other route may have them"
            )
        return self


class RouteEvent(Event[Route]):
    """A route changed. Key: logical name."""

    type: Literal["route"] = "route"
