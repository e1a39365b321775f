"""The contract of a learner: a deterministic fold over examples that now and then has a checkpoint
to announce.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from schemas.checkpoints import Kind
from schemas.decisions import Candidate, Decision
from schemas.examples import ExampleEvent

S = TypeVar("S")


@dataclass(frozen=True)
class NewCheckpoint:
    """What a learner has to announce.

    Attributes:
        version: unique within the name; equal states give equal versions.
        artifact: the bytes to be served.
        examples: how many examples changed it.
        metrics: measured numbers, by name.
    """

    name: str
    version: str
    kind: Kind
    artifact: bytes
    media_type: str
    examples: int
    metrics: dict[str, float] = field(default_factory=dict)


class Learner(Protocol[S]):
    """Events in, checkpoints out: no clock, no randomness that is not seeded, no input but the
    events.

    Folding the same events from the same state gives the same state, bit for bit: live, in replay
    and after a crash.

    Attributes:
        identity: learner and version, such as `bandit@1`; changes when its arithmetic does.
        target: the logical name it learns.
        config_sha256: of its configuration.
    """

    identity: str
    target: str
    config_sha256: str

    def initial(self) -> S:
        """Return the state before the first example."""
        ...

    def fold(self, state: S, event: ExampleEvent) -> S:
        """Return the state after an example. May change `state` in place; after an exception it
        must be read anew.
        """
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
            none.
    """

    feature_version: int

    def probabilities(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[float]:
        """Return the probability of each candidate, in their order; each greater than 0, summing to
        1.

        Args:
            tenant: for whom; policies may differ for tenants.
        """
        ...


def distribution(policy: Policy, decision: Decision) -> list[float]:
    """Return the probabilities that a policy would have given the candidates of a logged
    decision.
    """
    return policy.probabilities(decision.context, decision.candidates, decision.tenant)
