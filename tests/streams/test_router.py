"""Each reward of an example is routed once, with what it replaces."""

from datetime import timedelta

from schemas.examples import Example, ExampleEvent
from schemas.spans import Attribute
from schemas.trajectories import TrajectoryEvent
from streams.processing.processor import Outcome
from streams.processors.adapter import AdapterConfig
from streams.processors.router import ExampleRouter, Routed
from tests import events
from tests.streams.test_adapter import trajectory

ROUTER = ExampleRouter(AdapterConfig(), timedelta(days=1))
DECISION = events.decision("r", ["a", "b"], 0)


def of_reward(
    reward: float | None, seconds: float, criteria: dict[str, float] | None = None
) -> TrajectoryEvent:
    """Return a trajectory of one decision that was emitted at this time, with this reward."""
    given = [] if reward is None else [events.reward("r", reward, criteria=criteria or {})]
    return trajectory(DECISION, *given).model_copy(update={"time": events.at(seconds)})


def routed(*sequence: TrajectoryEvent) -> list[Outcome[Routed]]:
    """Route trajectories; between two of them the state goes through its bytes."""
    state, outcomes = None, []
    for offset, event in enumerate(sequence):
        outcomes.append(ROUTER.handle(state, event, events.record(event, offset)))
        assert outcomes[-1].state is not None
        state = ROUTER.decode_state(ROUTER.encode_state(outcomes[-1].state))
    return outcomes


def sent(*sequence: TrajectoryEvent) -> list[Example]:
    """Return the examples that were routed."""
    found = [output.event for outcome in routed(*sequence) for output in outcome.records]
    return [event.payload for event in found if isinstance(event, ExampleEvent)]


def test_a_correction_says_what_it_replaces_and_when_that_was_sent_first() -> None:
    first, second, third = sent(
        of_reward(0.25, 1, {"clarity": 0.5}), of_reward(0.5, 2), of_reward(0.75, 3)
    )
    assert first.replaces is None
    assert second.replaces is not None
    assert (second.replaces.reward, second.replaces.criteria) == (0.25, {"clarity": 0.5})
    assert (second.replaces.retracted, second.replaces.first) == (False, events.at(1))
    assert third.replaces is not None
    assert (third.replaces.reward, third.replaces.first) == (0.5, events.at(1))


def test_a_retraction_keeps_the_reward_it_takes_back_and_the_next_reward_says_so() -> None:
    _, gone, again = sent(of_reward(0.25, 1), of_reward(None, 2), of_reward(0.75, 3))
    assert (gone.retracted, gone.reward, gone.reward_revision) == (True, 0.25, 2)
    assert again.replaces is not None
    assert (again.replaces.retracted, again.replaces.reward) == (True, 0.25)


def test_what_is_replaced_is_told_with_its_cost() -> None:
    before, after = of_reward(0.25, 1), of_reward(0.5, 2)
    span = events.model_span("r", "assistant", "yes")
    span.payload.attributes[Attribute.COST.value] = 0.125
    paid = before.payload.model_copy(update={"spans": [span]})
    _, correction = sent(before.model_copy(update={"payload": paid}), after)
    assert correction.replaces is not None
    assert correction.replaces.cost == 0.125


def test_an_example_is_of_the_time_of_its_trajectory_and_a_repeat_has_its_id() -> None:
    event = of_reward(0.25, 7)
    (once,) = routed(event)[0].records
    (twice,) = routed(event)[0].records
    assert once.event.time == events.at(7)
    assert once.event_id == twice.event_id


def test_the_same_examples_are_kept_as_the_same_bytes_in_whatever_order_they_came() -> None:
    state = routed(of_reward(0.25, 1))[0].state or {}
    other = {"router rl x": next(iter(state.values()))}
    assert ROUTER.encode_state(state | other) == ROUTER.encode_state(other | state)


def test_a_state_of_the_first_release_is_read_and_says_nothing_of_what_it_did_not_note() -> None:
    state = ROUTER.decode_state(b'{"a": [1, 0.5], "b": [2, null]}')
    assert [(s.times, s.reward, s.worth, s.replaced()) for s in state.values()] == [
        (1, 0.5, 0.5, None),
        (2, None, 0.0, None),
    ]
