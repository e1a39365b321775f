"""The policies that can be served: the uniform baseline, and those loaded from artifacts by media
type.
"""

from collections.abc import Callable, Sequence

from learners.bandit import MEDIA_TYPE, BanditPolicy
from learners.contract import Policy
from schemas.decisions import Candidate

UNIFORM_VERSION = "uniform"
"""Version name of the built-in baseline."""


class UniformPolicy:
    """The baseline that serves before anything was learned: every candidate alike."""

    feature_version = 0

    def probabilities(
        self,
        context: str,  # noqa: ARG002
        candidates: Sequence[Candidate],
        tenant: str = "",  # noqa: ARG002
    ) -> list[float]:
        """Return 1 / K for each of the K candidates."""
        return [1.0 / len(candidates)] * len(candidates)


_LOADERS: dict[str, Callable[[bytes], Policy]] = {MEDIA_TYPE: BanditPolicy.from_bytes}


def load_policy(content: bytes, media_type: str) -> Policy:
    """Return the policy in an artifact.

    Raises:
        ValueError: nothing here reads this media type, or the bytes are damaged.
    """
    if media_type not in _LOADERS:
        raise ValueError(f"no policy reads {media_type!r}; known: {', '.join(_LOADERS)}")
    return _LOADERS[media_type](content)
