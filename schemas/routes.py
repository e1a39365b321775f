"""Routes: what the gateway serves under a logical name now. The topic is compacted: the last
counts.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.checkpoints import Artifact
from schemas.endpoints import Endpoint
from schemas.envelope import Event, EventData, Name

STAND_IN = "stand-in"
"""Version of what answers while no model is configured. Nothing learns from what it says."""

HISTORY = 20
"""Entries of a route's history. A route is one record, which every gateway keeps in memory."""


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


class Served(EventData):
    """What a route served at one time.

    Attributes:
        targets: those that new rollouts were pinned to.
        fallbacks: what answered where the pinned target did not.
    """

    targets: list[RouteTarget] = Field(min_length=1)
    fallbacks: list[RouteTarget] = []

    @property
    def versions(self) -> frozenset[str]:
        """The versions that new rollouts were pinned to."""
        return frozenset(target.version for target in self.targets if target.weight > 0)


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
        control: what the target replaced. It keeps a share `weight` of new rollouts, in [0, 1),
            while the target is watched, so that both are seen at the same time.
        held: whether a person decides what is served; the gate then promotes nothing here.
        history: what was served before, the latest last; at most `HISTORY` entries. It is a stack:
            the last entry is what a rollback serves.
    """

    name: Name
    kind: Literal["model", "policy", "choice"]
    targets: list[RouteTarget] = Field(min_length=1)
    choice: Choice | None = None
    fallbacks: list[RouteTarget] = []
    shadows: list[RouteTarget] = []
    control: RouteTarget | None = None
    held: bool = False
    reason: str = ""
    history: list[Served] = []

    @property
    def served(self) -> Served:
        """What the route serves."""
        return Served(targets=self.targets, fallbacks=self.fallbacks)

    @property
    def all_targets(self) -> list[RouteTarget]:
        """Everything that calls can lead to."""
        control = [self.control] if self.control is not None else []
        return [*self.targets, *control, *self.fallbacks, *self.shadows]

    def with_history_after(self, before: "Route | None") -> "Route":
        """Return this route with the history it has when it follows `before` on the log.

        What `before` served is added to its history, with three exceptions:

        - The same versions are served on, by other weights. Nothing is added.
        - This route serves what `before` would have been rolled back to. That entry is taken off.
        - `before` was a trial: it served its last entry and a candidate beside it. Nobody rolls
          back to a trial, so nothing is added.

        Args:
            before: None where this is the first route of its name that is known. The route then
                keeps the history that it carries.
        """
        if before is None:
            return self
        history, last = before.history, before.served.versions
        if last != self.served.versions:
            if history and history[-1].versions == self.served.versions:
                history = history[:-1]
            elif not (history and history[-1].versions < last):
                history = [*history, before.served][-HISTORY:]
        return self.model_copy(update={"history": history})

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if (self.kind == "choice") != (self.choice is not None):
            raise ValueError(
                f"route {self.name} has kind {self.kind}; a route of kind choice must have"
                " options to choose among, and no other route may have them"
            )
        return self


class RouteEvent(Event[Route]):
    """A route changed. Key: logical name."""

    type: Literal["route"] = "route"
