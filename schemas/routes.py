"""Routes: what the gateway serves under a logical name now (compacted: the last one counts)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.checkpoints import Artifact
from schemas.endpoints import Endpoint
from schemas.envelope import Event, EventData, Name


class RouteTarget(EventData):
    """One version to send traffic to: an endpoint for models, an artifact for policies, neither for
    built-ins.

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
        name: of the option, such as `small` or `terse-2`.
        model: logical model that answers.
        instructions: put before everything the caller says.
        text, numbers: what the policy reads of it; the name where there is no text.
        cost: what a call costs, where that is known beforehand, in the unit of the endpoints'
            prices. Elsewhere the policy learns from what calls turned out to cost.
    """

    name: Name
    model: Name
    instructions: str | None = None
    text: str = ""
    numbers: dict[str, float] = {}
    cost: float | None = Field(default=None, ge=0)


class Choice(EventData):
    """A policy chooses among options, for each call by what its last user said."""

    policy: Name
    options: list[Option] = Field(min_length=1, max_length=100)


class Route(EventData):
    """Where a logical name leads.

    Attributes:
        choice: what a name of kind `choice` chooses among; its one target only names the version of
            the options.
        targets: each rollout is pinned to one of them, by weight; with weight 0 one is drained.
        fallbacks: tried in this order where the pinned target does not answer.
        shadows: get a copy of calls, a share `weight` in [0, 1] of them; their answers are
            recorded, never served.
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
                f"{self.name} is a {self.kind}; exactly those of kind choice have options to"
                " choose among"
            )
        return self


class RouteEvent(Event[Route]):
    """A route changed. Key: logical name."""

    type: Literal["route"] = "route"
