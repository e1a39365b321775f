"""The contract of a learner: a deterministic fold over examples. At times it has a checkpoint to
announce.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum, isfinite
from typing import Literal, Protocol, TypeVar

from schemas.checkpoints import Kind
from schemas.decisions import Candidate, Decision
from schemas.examples import ExampleEvent

S = TypeVar("S")

Corrections = Literal["exact", "approximate", "none"]
"""How a learner takes back what a corrected or retracted reward taught: to the last bit, nearly, or
not at all.
"""

SUM_TOLERANCE = 1e-6
"""How far probabilities may be from summing to 1. Sums of floats are not exact."""


@dataclass(frozen=True)
class NewCheckpoint:
    """A checkpoint that a learner wants to announce.

    Attributes:
        version: unique within the name; equal states give equal versions.
        artifact: the bytes to be served.
        examples: how many examples changed it.
        metrics: measured numbers, by name.
        uncorrected: how many corrections and retractions came that the learner could not follow.
    """

    name: str
    version: str
    kind: Kind
    artifact: bytes
    media_type: str
    examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    uncorrected: int = 0


class Learner(Protocol[S]):
    """Events in, checkpoints out: no clock, no randomness that is not seeded, no input but the
    events.

    Folding the same events from the same state gives the same state, bit for bit: live, in replay
    and after a crash.

    Attributes:
        identity: learner and version, such as `bandit@1`; changes when its arithmetic does.
        target: the logical name it learns.
        config_sha256: of its configuration.
        policy_type: what reads the artifacts of its policies; most simply the policy's class.
        corrections: how it takes back what a corrected reward taught. Each checkpoint says it. A
            learner without this attribute is taken to do it exactly.
    """

    identity: str
    target: str
    config_sha256: str

    @property
    def policy_type(self) -> "PolicyType":
        """What reads the artifacts of its policies."""
        ...

    @property
    def corrections(self) -> Corrections:
        """How it takes back what a corrected reward taught."""
        ...

    def initial(self) -> S:
        """Return the state before the first example."""
        ...

    def fold(self, state: S, event: ExampleEvent) -> S:
        """Return the state after an example. May change `state` in place; after an exception it
        must be read anew.
        """
        ...

    def examples(self, state: S) -> int:
        """Return the number of examples in the state, retracted ones not counted."""
        ...

    def checkpoint(self, state: S) -> NewCheckpoint | None:
        """Return a checkpoint when it is time to announce one, else None."""
        ...

    def encode(self, state: S) -> bytes:
        """Return the state as bytes; equal states give equal bytes."""
        ...

    def decode(self, value: bytes) -> S:
        """Return the state that `encode` wrote."""
        ...


class Policy(Protocol):
    """Chooses among candidates.

    Attributes:
        feature_version: version of the function from text to features; 0 for a policy that reads
            no features. Each decision is logged with it.
    """

    @property
    def feature_version(self) -> int:
        """Version of the function from text to features."""
        ...

    def probabilities(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[float]:
        """Return the probability of each candidate, in their order; each greater than 0, summing to
        1.

        Args:
            tenant: for whom; policies may differ for tenants.
        """
        ...


class PolicyType(Protocol):
    """Reads the artifacts of one kind of policy.

    Attributes:
        media_type: of the artifacts that it reads; equal to that of the learner's checkpoints.
    """

    @property
    def media_type(self) -> str:
        """Media type of the artifacts that it reads."""
        ...

    def load(self, content: bytes) -> Policy:
        """Return the policy in an artifact. May raise any exception when the bytes are damaged."""
        ...


class PolicyError(ValueError):
    """A policy raised, or returned probabilities that are not a distribution."""


def chances(
    policy: Policy, context: str, candidates: Sequence[Candidate], tenant: str
) -> list[float]:
    """Return the probabilities of a policy, checked.

    Raises:
        PolicyError: the policy raised, or did not return one probability for each candidate,
            with sum 1. A probability of 0 is allowed: off-policy evaluation compares with policies
            that never explore.
    """
    try:
        found = [float(one) for one in policy.probabilities(context, candidates, tenant)]
    except Exception as error:  # the policy may be somebody else's code
        raise PolicyError(f"the policy raised {type(error).__name__}: {error}") from error
    if len(found) != len(candidates):
        raise PolicyError(
            f"the policy returned {len(found)} probabilities for {len(candidates)} candidates"
        )
    # NaN compares false with everything, so it must be asked for.
    if not all(isfinite(one) and one >= 0.0 for one in found) or (
        abs(fsum(found) - 1.0) > SUM_TOLERANCE
    ):
        raise PolicyError(
            f"the policy returned {str(found)[:200]}; they must be 0 or more and sum to 1"
        )
    return found


def distribution(policy: Policy, decision: Decision) -> list[float]:
    """Return the probabilities that a policy would have given the candidates of a logged
    decision.

    Raises:
        PolicyError: see `chances`.
    """
    return chances(policy, decision.context, decision.candidates, decision.tenant)
