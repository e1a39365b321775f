"""The checks pass for the bandit, and each finds the defect that it is for."""

import itertools
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import orjson
import pytest

from learners.bandit import BanditConfig, BanditLearner
from learners.checks import CHECKS, check_learner, checks
from learners.contract import Corrections, NewCheckpoint
from schemas.examples import BanditExample, ExampleEvent

NAMES = [check.__name__ for check in CHECKS]
CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"exploration": "epsilon"},
    {"exploration": "thompson"},
    {"exploration": "bag"},
    {"update": "importance"},
    {"update": "doubly-robust", "tenant_share": 0.3},
    {"embeddings": True},
]


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_bandit_passes(name: str, config: dict[str, Any]) -> None:
    # It has reached its size when it remembers as many examples as it may.
    learner = BanditLearner("a-policy", BanditConfig(remembered=512, **config))
    dict(checks(lambda: learner))[name]()


class MeanPolicy:
    media_type = "application/vnd.example.mean+json"
    feature_version = 0

    def __init__(self, means: dict[str, float]) -> None:
        self.means = means

    @classmethod
    def load(cls, content: bytes) -> "MeanPolicy":
        return cls(orjson.loads(content))

    def probabilities(self, context: str, candidates: Any, tenant: str = "") -> list[float]:
        best = max(range(len(candidates)), key=lambda n: self.means.get(candidates[n].id, 0.5))
        floor = 0.1 / len(candidates)
        return [floor + 0.9 * (n == best) for n in range(len(candidates))]


class Mean:
    """A right learner: the mean reward of each candidate, from what it remembers."""

    identity, config_sha256, target = "mean@1", sha256(b"").hexdigest(), "a-policy"
    policy_type: Any = MeanPolicy
    corrections: Corrections = "exact"
    remembered = 64

    def initial(self) -> Any:
        return {"totals": {}, "recent": {}}

    def fold(self, state: Any, event: ExampleEvent) -> Any:
        example = event.payload
        if not isinstance(example.body, BanditExample) or example.split != "train":
            return state
        recent, decision = state["recent"], example.body.decision
        old = recent.get(example.body.decision_id)
        if example.reward_revision > 1:
            if old is None:
                return state
            self.count(state, old[0], -old[1], -old[2])
        weight = 0 if example.retracted else 1
        # Whole numbers, so that what was added can be taken away exactly.
        value = weight * round(example.reward * 1e9)
        candidate = decision.candidates[decision.choice].id
        recent[example.body.decision_id] = [candidate, value, weight]
        self.count(state, candidate, value, weight)
        while len(recent) > self.remembered:
            del recent[next(iter(recent))]
        return state

    def count(self, state: Any, candidate: str, value: int, weight: int) -> None:
        total = state["totals"].setdefault(candidate, [0, 0])
        total[0] += value
        total[1] += weight

    def examples(self, state: Any) -> int:
        return sum(count for _, count in state["totals"].values())

    def checkpoint(self, state: Any) -> NewCheckpoint | None:
        count = self.examples(state)
        if not count or count % 10:
            return None
        totals = state["totals"].items()
        artifact = orjson.dumps(
            {name: value / n for name, (value, n) in totals if n}, option=orjson.OPT_SORT_KEYS
        )
        version = f"{count}-{sha256(artifact).hexdigest()[:12]}"
        return NewCheckpoint(self.target, version, "policy", artifact, MeanPolicy.media_type, count)

    def encode(self, state: Any) -> bytes:
        return orjson.dumps(state | {"totals": dict(sorted(state["totals"].items()))})

    def decode(self, value: bytes) -> Any:
        return orjson.loads(value)


def test_a_right_learner_passes() -> None:
    check_learner(Mean)


def test_a_learner_that_says_it_takes_nothing_back_is_not_asked_to() -> None:
    check_learner(Unchanging)


COUNTER = itertools.count()


class Random(Mean):
    def fold(self, state: Any, event: ExampleEvent) -> Any:
        state["drawn"] = next(COUNTER)
        return super().fold(state, event)


class Forgetful(Mean):
    def decode(self, value: bytes) -> Any:
        return orjson.loads(value) | {"recent": {}}


class Eager(Mean):
    """Announces by what it has seen since it started."""

    def __init__(self) -> None:
        self.seen = 0

    def fold(self, state: Any, event: ExampleEvent) -> Any:
        self.seen += 1
        return super().fold(state, event)

    def checkpoint(self, state: Any) -> NewCheckpoint | None:
        return super().checkpoint(state) if self.seen > 100 else None


class Cheating(Mean):
    def fold(self, state: Any, event: ExampleEvent) -> Any:
        payload = event.payload.model_copy(update={"split": "train"})
        return super().fold(state, event.model_copy(update={"payload": payload}))


class Stubborn(Mean):
    """Counts a correction as one more example."""

    def fold(self, state: Any, event: ExampleEvent) -> Any:
        if event.payload.retracted:
            return super().fold(state, event)
        payload = event.payload.model_copy(update={"reward_revision": 1})
        return super().fold(state, event.model_copy(update={"payload": payload}))


class Unforgiving(Mean):
    """Passes retractions over."""

    def fold(self, state: Any, event: ExampleEvent) -> Any:
        return state if event.payload.retracted else super().fold(state, event)


class Vague(Unforgiving):
    """Says that it takes back approximately, and does not."""

    corrections: Corrections = "approximate"


class Unchanging(Unforgiving):
    corrections: Corrections = "none"


class Hoarding(Mean):
    remembered = 1_000_000


class Leaking(Mean):
    """Keeps two bytes of each example."""

    def fold(self, state: Any, event: ExampleEvent) -> Any:
        folded = super().fold(state, event)
        folded["leak"] = folded.get("leak", "") + "ab"
        return folded


class Misnaming(Mean):
    def checkpoint(self, state: Any) -> NewCheckpoint | None:
        found = super().checkpoint(state)
        if found is None:
            return None
        return NewCheckpoint(
            found.name, "v1", "policy", found.artifact, found.media_type, found.examples
        )


class GreedyPolicy(MeanPolicy):
    def probabilities(self, context: str, candidates: Any, tenant: str = "") -> list[float]:
        found = super().probabilities(context, candidates, tenant)
        return [float(one == max(found)) for one in found]


class Greedy(Mean):
    policy_type = GreedyPolicy


class Narrow(Mean):
    def fold(self, state: Any, event: ExampleEvent) -> Any:
        assert isinstance(event.payload.body, BanditExample)
        return super().fold(state, event)


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (Random, "the_fold_is_deterministic"),
        (Forgetful, "the_state_survives_its_bytes_at_every_moment"),
        (Eager, "replay_equals_live"),
        (Cheating, "held_out_examples_change_nothing"),
        (Stubborn, "a_correction_undoes_the_old_reward"),
        (Unforgiving, "a_retraction_undoes_the_example"),
        (Vague, "a_retraction_undoes_the_example"),
        (Hoarding, "the_state_is_bounded"),
        (Leaking, "the_state_is_bounded"),
        (Misnaming, "checkpoints_are_what_they_say"),
        (Greedy, "policies_give_distributions"),
        (Narrow, "other_examples_are_no_error"),
    ],
)
def test_each_check_finds_the_defect_that_it_is_for(broken: Callable[[], Any], name: str) -> None:
    with pytest.raises(AssertionError):
        dict(checks(broken))[name]()
    with pytest.raises(AssertionError, match=r"^\w+: "):
        check_learner(broken)


class RaisingPolicy(MeanPolicy):
    def probabilities(self, context: str, candidates: Any, tenant: str = "") -> list[float]:
        raise KeyError(candidates[0].id)


class Raising(Mean):
    policy_type = RaisingPolicy


class Unready(Mean):
    def initial(self) -> Any:
        raise RuntimeError("no disk")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (Raising, "^policies_give_distributions: PolicyError: the policy raised KeyError"),
        (Unready, "^the_fold_is_deterministic: RuntimeError: no disk"),
    ],
)
def test_what_a_learner_raises_is_said_with_the_check(broken: Callable[[], Any], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_learner(broken)
