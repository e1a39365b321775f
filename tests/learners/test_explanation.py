"""A decision is explained by what made it: contributions add up to what was believed."""

import pytest

from learners.bandit import BanditConfig, BanditLearner
from learners.bandit.explanation import importance, reasons
from schemas.decisions import Decision
from tests import events

TEXTS = ["a significant effect", "no effect"]


@pytest.mark.parametrize(
    "config", [BanditConfig(), BanditConfig(exploration="thompson"), BanditConfig(tenant_share=0.5)]
)
def test_contributions_add_up_to_the_belief_and_name_the_words_that_matter(
    config: BanditConfig,
) -> None:
    learner = BanditLearner("p", config)
    state = learner.initial()
    for number in range(100):
        state = learner.fold(state, events.example(TEXTS, number % 2, float(number % 2 == 0)))
    policy = learner.policy(state)
    decision = events.decision_of(TEXTS, 0)
    good, bad = reasons(policy, decision)
    mean = (good.believed + bad.believed) / 2
    for of in (good, bad):
        assert sum(of.contributions.values()) == pytest.approx(of.believed - mean)
    assert good.believed > 0.9 > 0.1 > bad.believed
    assert (
        good.probability
        == policy.probabilities(decision.context, decision.candidates, decision.tenant)[0]
    )
    first = next(iter(good.contributions))
    assert first.endswith(("word no", "word significant"))
    assert good.contributions["word significant"] > 0.0 > bad.contributions["word no"]
    assert abs(good.contributions["word effect"]) < good.contributions["word significant"] / 5
    assert list(good.contributions.values()) == sorted(
        good.contributions.values(), key=abs, reverse=True
    )
    assert not any(name.startswith("feature") for name in good.contributions)
    ranked = importance(policy, [decision, decision])
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)


def test_what_all_candidates_share_explains_nothing() -> None:
    learner = BanditLearner("p")
    state = learner.fold(learner.initial(), events.example(["same", "same"], 0, 1.0))
    decision: Decision = events.decision_of(["same", "same"], 0)
    assert all(of.contributions == {} for of in reasons(learner.policy(state), decision))


def test_a_stated_cost_lowers_the_belief() -> None:
    learner = BanditLearner("p", BanditConfig(cost_weight=0.5))
    state = learner.fold(learner.initial(), events.example(TEXTS, 0, 1.0))
    decision = events.decision_of(TEXTS, 0)
    dear = decision.model_copy(
        update={"candidates": [c.model_copy(update={"cost": 1.0}) for c in decision.candidates]}
    )
    policy = learner.policy(state)
    for cheap, costly in zip(reasons(policy, decision), reasons(policy, dear), strict=True):
        assert costly.believed == pytest.approx(cheap.believed - 0.5)
