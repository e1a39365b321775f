"""The policies that can be served: the uniform baseline, and policies loaded from artifacts."""

from collections.abc import Iterable, Sequence

from learners.bandit import BanditPolicy
from learners.contract import Policy, PolicyType
from schemas.decisions import Candidate

UNIFORM_VERSION = "uniform"
"""Version name of the built-in baseline."""


class UniformPolicy:
    """The baseline, which serves before anything was learned: all candidates have the same
    probability.
    """

    feature_version = 0

    def probabilities(
        self,
        context: str,  # noqa: ARG002
        candidates: Sequence[Candidate],
        tenant: str = "",  # noqa: ARG002
    ) -> list[float]:
        """Return 1 / K for each of the K candidates."""
        return [1.0 / len(candidates)] * len(candidates)


class PolicyLoader:
    """Loads policies from artifacts, by media type.

    Args:
        types: what reads them besides the bandit's.

    Raises:
        ValueError: two different types read one media type.
    """

    def __init__(self, types: Iterable[PolicyType] = ()) -> None:
        self._types: dict[str, PolicyType] = {}
        both: list[PolicyType] = [BanditPolicy, *types]
        for one in both:
            # The same type may come twice: a learner with several targets.
            known = self._types.setdefault(one.media_type, one)
            if known is not one:
                raise ValueError(f"{known!r} and {one!r} both read {one.media_type}")

    def load(self, content: bytes, media_type: str) -> Policy:
        """Return the policy in an artifact.

        Raises:
            ValueError: no type reads this media type, or the type could not read the bytes.
        """
        if media_type not in self._types:
            known = ", ".join(self._types)
            raise ValueError(f"no policy reads {media_type!r}; known: {known}")
        try:
            return self._types[media_type].load(content)
        except ValueError:
            raise
        except Exception as error:  # the type may be somebody else's code
            raise ValueError(
                f"no {media_type}: loading it raised {type(error).__name__}: {error}"
            ) from error


BUILT_IN = PolicyLoader()
"""Loads the policies that come with Everloop."""


def load_policy(content: bytes, media_type: str) -> Policy:
    """Return the policy in an artifact of a learner that comes with Everloop.

    Raises:
        ValueError: see `PolicyLoader.load`.
    """
    return BUILT_IN.load(content, media_type)
