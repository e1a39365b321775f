"""What a corrected or retracted reward taught is undone, at any age, in the time of one example."""

from datetime import timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.bandit import BanditConfig, BanditLearner, BanditState
from learners.bandit.features import features
from learners.bandit.history import MOST_MARKS, History
from learners.bandit.regressor import BlockBayesianRegressor, Moment, RegressorConfig
from learners.bandit.vocabulary import FrequentItems, Vocabulary
from schemas.examples import ExampleEvent, Replaced
from tests import events

WORDS = ("refund", "replace", "carrier", "picture", "money", "wait", "offer", "send", "late")


def examples(count: int, arms: int = 6, seed: int = 0, context: int = 0) -> list[ExampleEvent]:
    """Return examples a second apart; each arm earns a reward of 1 with a chance of its own.

    Args:
        context: number of words in the context, of 60 that say nothing; 0 is always the same.
    """
    random = Random(seed)
    texts = [" ".join(random.sample(WORDS, 4)) for _ in range(arms)]
    worth, found = [random.random() for _ in texts], []
    for number in range(count):
        slate = random.sample(range(arms), 3)
        reward = float(random.random() < worth[slate[0]])
        event = events.example([texts[arm] for arm in slate], 0, reward)
        if context:
            said = " ".join(f"word{random.randrange(60)}" for _ in range(context))
            body = event.payload.body
            decision = body.decision.model_copy(update={"context": said})  # type: ignore[union-attr]
            event = changed(event, body=body.model_copy(update={"decision": decision}))
        found.append(event.model_copy(update={"time": events.at(number)}))
    return found


def flipped(event: ExampleEvent) -> ExampleEvent:
    """Return an example with the opposite reward."""
    return changed(event, reward=1.0 - event.payload.reward)


def changed(event: ExampleEvent, **payload: object) -> ExampleEvent:
    return event.model_copy(update={"payload": event.payload.model_copy(update=payload)})


def correction(wrong: ExampleEvent, reward: float | None) -> ExampleEvent:
    """Return what the router sends when a reward changes, or is taken back."""
    replaces = Replaced(reward=wrong.payload.reward, first=wrong.time)
    more = {"retracted": True} if reward is None else {"reward": reward}
    event = changed(wrong, reward_revision=2, replaces=replaces, **more)
    return event.model_copy(update={"time": wrong.time + timedelta(days=1)})


def folded(learner: BanditLearner, taught: list[ExampleEvent]) -> BanditState:
    state = learner.initial()
    for event in taught:
        state = learner.fold(state, event)
    return state


def believed(state: BanditState, about: list[ExampleEvent]) -> list[float]:
    found = []
    for event in about:
        decision = event.payload.body.decision  # type: ignore[union-attr]
        found += state.knowledge.regressor.predict_many(
            features(decision.context, decision.candidates, vocabulary=state.vocabulary)
        )
    return found


def distance(first: list[float], second: list[float]) -> float:
    return sum(abs(p - q) for p, q in zip(first, second, strict=True)) / len(first)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), min_size=2, max_size=30), st.data())
@settings(deadline=None, max_examples=50)
def test_without_forgetting_it_is_exact_within_a_block(
    taught: list[tuple[int, float]], data: st.DataObject
) -> None:
    """Beside a regressor that never saw the example, or saw the right target, with the same noise.

    The noise is held: it is what a wrong target did to it that stays.
    """
    number = data.draw(st.integers(0, len(taught) - 1))
    new = data.draw(st.one_of(st.none(), st.floats(0, 1)))
    config, light = RegressorConfig(forgetting=(1e-12,), noise_share=1e-9), 0.002
    revised, expected = BlockBayesianRegressor(config), BlockBayesianRegressor(config)
    arms = [{1: 1.0, 2: 1.0}, {2: 1.0, 3: -1.0}, {1: -1.0, 3: 1.0}, {1: 1.0, 3: 1.0}]
    for regressor in (revised, expected):  # the weights are met, in one block, before
        regressor.least, regressor.greatest = -9.0, 9.0  # these arms predict beyond the targets
        regressor.learn_one({1: 1.0, 2: -1.0}, 0.5).learn_one({1: 0.5, 2: 0.5, 3: 1.0}, 0.5)
    moments = []
    for place, (arm, target) in enumerate(taught):
        moments.append(revised.moment(arms[arm]))
        revised.learn_one(arms[arm], target, light)
        right = new if place == number else target
        if right is not None:
            expected.learn_one(arms[arm], right, light)
    arm, old = taught[number]
    assert revised.revise(arms[arm], moments[number], old, new, light)
    found = [regressor.predict_many(arms) for regressor in (revised, expected)]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def left_of_a_fifth(config: BanditConfig, retract: bool, context: int) -> float:
    """Return how much remains of the error in expected rewards when a fifth of 600 rewards was
    wrong, and each was corrected or retracted; as a share.
    """
    right, random = examples(600, context=context), Random(1)
    bad = set(random.sample(range(600), 120))
    learner = BanditLearner("p", config)
    wrong = [flipped(event) if n in bad else event for n, event in enumerate(right)]
    expected = folded(learner, [e for n, e in enumerate(right) if not (retract and n in bad)])
    undone = [
        correction(wrong[n], None if retract else right[n].payload.reward) for n in sorted(bad)
    ]
    after = folded(learner, [*wrong, *undone])
    assert after.examples == expected.examples
    assert (after.corrected, after.uncorrected) == (120, 0)
    assert after.knowledge.value_total == pytest.approx(expected.knowledge.value_total)
    about = right[:40]
    before = distance(believed(folded(learner, wrong), about), believed(expected, about))
    return distance(believed(after, about), believed(expected, about)) / before


@pytest.mark.parametrize("retract", [False, True])
@pytest.mark.parametrize("remembered", [4096, 64])
@pytest.mark.parametrize(("context", "most"), [(0, 0.35), (8, 0.95)])
def test_a_fifth_of_the_rewards_is_undone_nearly_as_if_they_had_been_right(
    retract: bool, remembered: int, context: int, most: float
) -> None:
    """Beside a learner that learned the right ones only. The oldest is 600 examples old.

    With words in the context, most of what they taught was overwritten or lies in several blocks.
    """
    config = BanditConfig(remembered=remembered, steps=0)
    assert left_of_a_fifth(config, retract, context) < most


def test_when_all_is_taken_back_expected_rewards_stay_near_the_range_of_rewards() -> None:
    """What is estimated of each adds up: it is the worst case."""
    learner, taught = BanditLearner("p"), examples(200)
    state = folded(learner, [*taught, *(correction(event, None) for event in taught)])
    assert state.examples == 0
    assert all(-0.6 <= value <= 1.6 for value in believed(state, taught[:20]))


def test_a_reward_after_a_retraction_is_learned_again() -> None:
    learner, taught = BanditLearner("p"), examples(50)
    again = correction(taught[30], taught[30].payload.reward)
    replaces = again.payload.replaces
    assert replaces is not None
    again = changed(again, replaces=replaces.model_copy(update={"retracted": True}))
    state = folded(learner, [*taught, correction(taught[30], None), again])
    expected = folded(learner, taught)
    assert believed(state, taught) == pytest.approx(believed(expected, taught), abs=1e-6)


@pytest.mark.parametrize("remembered", [4096, 16])
def test_what_was_never_learned_cannot_be_corrected_and_is_counted(remembered: int) -> None:
    learner, taught = BanditLearner("p", BanditConfig(remembered=remembered)), examples(60)
    state = folded(learner, taught)
    before = state.knowledge.to_bytes()
    (stranger,) = examples(1, seed=9)
    older = correction(stranger.model_copy(update={"time": events.at(-3600)}), 0.0)
    unsaid = changed(correction(taught[5], 0.0), replaces=None)
    for event in (older, unsaid):
        state = learner.fold(state, event)
    assert state.knowledge.to_bytes() == before
    assert (state.corrected, state.uncorrected) == (0, 2)
    checkpoint = learner.checkpoint(state)
    assert checkpoint is None


@pytest.mark.parametrize("retract", [False, True])
@pytest.mark.parametrize(("context", "most"), [(0, 0.1), (8, 0.25)])
def test_of_what_is_known_step_by_step_little_remains(
    retract: bool, context: int, most: float
) -> None:
    """As above, with room for all steps."""
    assert left_of_a_fifth(BanditConfig(steps=2**21), retract, context) < most


def test_the_state_has_a_bound_however_many_examples_came() -> None:
    learner = BanditLearner("p", BanditConfig(remembered=16, steps=2**15))
    sizes = [len(learner.encode(folded(learner, examples(count)))) for count in (100, 400)]
    # Marks grow to their bound; everything else has its size.
    assert sizes[1] - sizes[0] < 300 * 80


def test_steps_are_the_same_after_they_were_stored() -> None:
    learner, taught = BanditLearner("p"), examples(60, context=4)
    state = folded(learner, taught)
    stored = learner.decode(learner.encode(state))
    assert stored.knowledge.steps.to_json() == state.knowledge.steps.to_json()
    undone = [correction(taught[number], None) for number in (59, 20, 3)]
    for event in undone:
        state, stored = learner.fold(state, event), learner.fold(stored, event)
    assert learner.encode(stored) == learner.encode(state)


def test_a_learner_without_room_for_steps_estimates_all() -> None:
    state = folded(BanditLearner("p", BanditConfig(steps=0)), examples(60))
    assert not state.knowledge.steps.since(0)
    assert state.knowledge.steps.to_json()["keys"] == ""


def test_what_stood_in_all_contexts_stood_in_all_before_too() -> None:
    """A share in floating point, rounded up, made 122 of 121: its weight became 0."""
    whole = Vocabulary(180, FrequentItems({7: 180}), FrequentItems({9: 180}))
    assert whole.before(121) == Vocabulary(121, FrequentItems({7: 121}), FrequentItems({9: 121}))


def test_a_history_finds_examples_of_any_age_in_bounded_memory() -> None:
    history = History(remembered=8)
    for number in range(1, 20_001):
        history.note(number, 1000 * number, Moment(number, (number / 20_000,), (0.0,)))
    assert len(history.times) <= MOST_MARKS
    assert history.find(20_000, 0) == Moment(20_000, (1.0,), (0.0,))
    for number in (1, 777, 19_000):
        found = history.find(number, 1000 * number)
        assert found is not None
        assert found.faded is None
        assert found.example == pytest.approx(number, abs=1)
        assert found.errors[0] == pytest.approx(number / 20_000, abs=64 / 20_000)
    assert history.find(1, 999) is None
    assert History.from_json(history.to_json()).to_json() == history.to_json()


def test_a_correction_that_moves_much_is_announced_at_once() -> None:
    learner = BanditLearner("p")
    taught = examples(205)
    state = folded(learner, taught)
    assert learner.checkpoint(state) is None
    state = learner.fold(state, correction(taught[-1], 1.0 - taught[-1].payload.reward))
    while learner.checkpoint(state) is None:
        taught.pop()
        state = learner.fold(state, correction(taught[-1], 1.0 - taught[-1].payload.reward))
    assert state.corrected < 20


def test_an_arm_whose_poison_is_retracted_is_as_good_as_it_was() -> None:
    learner, taught = BanditLearner("p"), []
    for number in range(120):
        event = events.example(["good one", "bad one"], number % 2, float(number % 2 == 0))
        taught.append(event.model_copy(update={"time": events.at(number)}))
    poison = []
    for number in range(60):
        event = events.example(["good one", "bad one"], 0, 0.0)
        poison.append(event.model_copy(update={"time": events.at(200 + number)}))
    before = believed(folded(learner, taught), poison[:1])[0]
    state = folded(learner, [*taught, *poison])
    assert believed(state, poison[:1])[0] < 0.3
    for event in poison:
        state = learner.fold(state, correction(event, None))
    assert believed(state, poison[:1])[0] > before - 0.05
