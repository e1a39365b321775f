"""Targets: the versions that a route sends rollouts to, ready to be used."""

import pickle
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any

import structlog

from learners.contract import Policy
from learners.policies import PolicyLoader
from schemas.checkpoints import Artifact
from schemas.endpoints import Endpoint
from schemas.routes import Choice
from streams.storage.artifacts import ArtifactReader

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class PolicySource:
    """Where a policy is loaded from, also in another process."""

    artifact: Artifact
    artifacts: ArtifactReader = field(compare=False)
    policies: PolicyLoader = field(compare=False)

    def load(self) -> Policy:
        """Return the policy.

        Raises:
            ValueError, RejectedRecordError: its artifact is not there, or cannot be read.
        """
        return self.policies.load(self.artifacts.get(self.artifact), self.artifact.media_type)

    @cached_property
    def portable(self) -> bool:
        """Whether another process can be told of it: its classes belong to modules."""
        try:
            pickle.dumps(self)
        except (AttributeError, TypeError, pickle.PicklingError):
            return False
        return True


@lru_cache(maxsize=8)
def _load_policy(source: PolicySource) -> Policy:
    return source.load()


@dataclass(frozen=True)
class Target:
    """One version that can serve: an endpoint for models, a policy for policies.

    Attributes:
        source: where the policy comes from; None for the baseline.
    """

    version: str
    weight: float
    endpoint: Endpoint | None = None
    policy: Policy | None = None
    source: PolicySource | None = field(default=None, compare=False)

    @property
    def chooser(self) -> Policy:
        """The policy of a route of kind policy; another process loads it when it first needs it.

        Raises:
            ValueError, RejectedRecordError: see `PolicySource.load`.
        """
        if self.policy is not None:
            return self.policy
        assert self.source is not None  # noqa: S101 - only pickling leaves the policy behind
        return _load_policy(self.source)

    @property
    def portable(self) -> bool:
        """Whether another process can choose with it."""
        return self.source is None or self.source.portable

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind a policy that can be loaded."""
        return {**self.__dict__, "policy": self.policy if self.source is None else None}


@dataclass(frozen=True)
class LoadedRoute:
    """A route with its policies in memory.

    Each of `shadows` gets a copy of a share `weight` of the calls. `control` gets a share `weight`
    of all new rollouts.
    """

    name: str
    kind: str
    targets: tuple[Target, ...]
    fallbacks: tuple[Target, ...] = ()
    shadows: tuple[Target, ...] = ()
    held: bool = False
    choice: Choice | None = None
    control: Target | None = None

    def target_for(self, rollout: str) -> Target:
        """Return the target of a rollout, drawn by weight. One rollout always gets the same."""
        # A hash and not a random number: every gateway process draws the same for a rollout.
        draw = unit_draw(self.name, rollout)
        if self.control is not None:
            draw -= self.control.weight
            if draw < 0:
                return self.control
            # What is left is stretched to [0, 1) again, so that the targets share it by their
            # weights.
            draw /= 1.0 - self.control.weight
        draw *= sum(target.weight for target in self.targets)
        for target in self.targets:
            draw -= target.weight
            if draw < 0:
                return target
        # Rounding may leave a rest.
        return self.targets[-1]


def unit_draw(*parts: str) -> float:
    """Return a number in [0, 1) that these parts always give, uniform over different parts."""
    digest = blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
