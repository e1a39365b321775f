"""What promotion knows of one logical name."""

from typing import Any

from pydantic import BaseModel, Field, field_validator

from learners.online_error import OnlineError
from learners.policies import UNIFORM_VERSION
from learners.registry import IllegalTransitionError, Registry
from learners.trial import Comparison
from schemas.checkpoints import Checkpoint, CheckpointState
from schemas.routes import Route, RouteTarget
from streams.processors.evidence import Evidence
from streams.storage.errors import RejectedRecordError

FINISHED_REMEMBERED = 50


class PromotionState(BaseModel):
    """What is known of one logical name.

    Attributes:
        checkpoints: by version, in the order announced.
        evidence: the rollouts that used the name.
        comparison: the trial that is under way.
        trials, watches, screens: how many there were, which decides how sure each must be; a screen
            is the off-policy judgement before a trial.
        waiting: version of the newest candidate that has not passed the gate.
        verdict: the gate's last one on it, in words; empty before the first.
        needed: held-out rollouts that a verdict on it is likely to take.
        judged: how much evidence there was at that verdict.
        leveled, level: the bet on held-out rollouts under way, and how likely it may be wrong.
        watched: the comparison of what was promoted last with what it replaced.
        current: the newest route, with its history.
        stable: what is served, or beside a trial was served before it; None where no route is
            known.
        replaced: what was served before the version that is watched.
        own: ids of the events written here that have not come back on their topics yet.
        held: whether a person decides what is served.
        told: the status told last, in short.
    """

    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)
    evidence: Evidence = Field(default_factory=Evidence)
    comparison: Comparison | None = None
    trials: OnlineError = Field(default_factory=OnlineError)
    watches: OnlineError = Field(default_factory=OnlineError)
    screens: OnlineError = Field(default_factory=OnlineError)
    waiting: str | None = None
    verdict: str = ""
    needed: int | None = None
    judged: int = 0
    leveled: str = ""
    level: float = 0.05
    watched: Comparison | None = None
    current: Route | None = None
    stable: Route | None = None
    replaced: Route | None = None
    own: list[str] = Field(default_factory=list)
    held: bool = False
    told: str = ""

    @field_validator("comparison", "watched", mode="before")
    @classmethod
    def _drop_earlier(cls, value: Any) -> Any:
        """Drop a comparison that an earlier release began: it paired rollouts otherwise. The
        version that was on trial is rolled back, as one that nobody tries.
        """
        is_earlier = isinstance(value, dict) and "share" not in value
        return None if is_earlier else value

    @property
    def registry(self) -> Registry:
        """The checkpoints, as their lifecycle knows them; applying a change to it changes the
        state.
        """
        return Registry(self.checkpoints)


def baseline_route(name: str) -> Route:
    """Return the route of a policy before anything was promoted: the uniform baseline."""
    return Route(
        name=name,
        kind="policy",
        targets=[RouteTarget(version=UNIFORM_VERSION)],
        reason="nothing learned yet",
    )


def heaviest(route: Route) -> str:
    """Return the version that serves most."""
    return max(route.targets, key=lambda target: target.weight).version


def behind(state: PromotionState) -> list[RouteTarget]:
    """Return what answers where a model that is tried or promoted does not: what serves now, then
    what always did.
    """
    # nothing is judged before it is known what is served
    assert state.stable is not None  # noqa: S101
    # A policy needs no server, so nothing must stand in for one.
    if state.stable.kind != "model":
        return state.stable.fallbacks
    others = [
        # Fallbacks of the configuration. Those of earlier versions are replaced by what serves now.
        target
        for target in state.stable.fallbacks
        if target.version not in state.checkpoints
    ]
    return [
        *(target.model_copy(update={"weight": 1.0}) for target in state.stable.targets),
        *others,
    ]


def target_of(checkpoint: Checkpoint) -> RouteTarget:
    """Return how a checkpoint is served."""
    artifact = checkpoint.artifact if checkpoint.kind == "policy" else None
    return RouteTarget(version=checkpoint.version, artifact=artifact, endpoint=checkpoint.endpoint)


def apply(registry: Registry, change: Checkpoint) -> None:
    """Take a change into the registry.

    Raises:
        RejectedRecordError: it is not legal.
    """
    try:
        registry.apply(change)
    except IllegalTransitionError as error:
        raise RejectedRecordError(str(error)) from error


def trimmed(state: PromotionState) -> PromotionState:
    """Return the state without the oldest checkpoints that have come to an end."""
    live = {
        CheckpointState.PROMOTED,
        CheckpointState.CANARY,
        CheckpointState.CANDIDATE,
        CheckpointState.EVALUATED,
    }
    routes = [route for route in (state.stable, state.replaced) if route]
    served = {target.version for route in routes for target in (*route.targets, *route.fallbacks)}
    ended = [version for version, known in state.checkpoints.items() if known.state not in live]
    for version in ended[:-FINISHED_REMEMBERED]:
        if version not in served:
            del state.checkpoints[version]
    return state
