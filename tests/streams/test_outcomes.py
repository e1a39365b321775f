"""What a rollout came to is told for each name that it used, whenever what counts has changed."""

from typing import Any

from schemas.envelope import AnyEvent
from schemas.outcomes import OutcomeEvent, RolloutOutcome
from schemas.rewards import RewardSource
from schemas.rollouts import RolloutEvent, RolloutState
from schemas.spans import Attribute, SpanEvent
from streams.processors.trajectories import TrajectoryJoin
from streams.storage.records import Outgoing
from tests import events

ONE, TWO = "00f067aa0ba902b1", "00f067aa0ba902b2"


def began(name: str = "writer", **more: Any) -> RolloutEvent:
    """Return the beginning of a rollout that is assigned `v2` of a name."""
    return events.rollout("r", RolloutState.STARTED, assigned={name: "v2"}, **more)


def answer(
    model: str = "writer", version: str = "v2", cost: float = 0.0, span_id: str = ONE
) -> SpanEvent:
    """Return a model call that a version answered."""
    span = events.model_span("r", "node", "yes", span_id)
    span.payload.attributes[Attribute.REQUEST_MODEL.value] = model
    span.payload.attributes[Attribute.CHECKPOINT.value] = version
    span.payload.attributes[Attribute.COST.value] = cost
    return span


def outputs(*sequence: AnyEvent) -> list[Outgoing]:
    """Return the outcomes that the join writes; its state goes through bytes between events."""
    join, state, found = TrajectoryJoin(), None, []
    for offset, event in enumerate(sequence):
        outcome = join.handle(state, event, events.record(event, offset))
        assert outcome.state is not None
        state = join.decode_state(join.encode_state(outcome.state))
        found += [one for one in outcome.records if isinstance(one.event, OutcomeEvent)]
    return found


def told(*sequence: AnyEvent) -> list[RolloutOutcome]:
    """Return what is told."""
    return [output.event.payload for output in outputs(*sequence)]


def test_an_outcome_belongs_to_the_rollout_and_lies_under_its_name() -> None:
    start = began(split="test").model_copy(update={"tenant": "acme", "time": events.at(3)})
    (output,) = outputs(start)
    event = output.event
    assert output.key == event.payload.name == "writer"
    assert (event.tenant, event.rollout_id, event.trace_id, event.time) == (
        "acme",
        "r",
        events.TRACE,
        events.at(3),
    )
    assert (event.payload.split, event.payload.begun) == ("test", events.at(3))


def test_a_reward_is_told_with_its_time_and_its_criteria() -> None:
    reward = events.reward("r", 0.5, criteria={"clarity": 0.25}, time=events.at(9))
    _, rewarded = told(began(), reward)
    assert (rewarded.reward, rewarded.rewarded) == (0.5, events.at(9))
    assert rewarded.criteria == {"clarity": 0.25}


def test_the_same_reward_for_another_reason_is_told_and_a_repeat_is_not() -> None:
    rule = events.reward("r", 0.5, RewardSource.RULE, criteria={"length": 1.0})
    human = events.reward("r", 0.5, RewardSource.HUMAN, criteria={"clarity": 0.5})
    weaker = events.reward("r", 0.1, RewardSource.RULE)
    assert [o.criteria for o in told(began(), rule, human, weaker)] == [
        {},
        {"length": 1.0},
        {"clarity": 0.5},
    ]


def test_where_only_parts_were_rewarded_their_mean_counts_as_of_the_latest() -> None:
    late = events.reward("r", 0.25, target_span_id=ONE, time=events.at(8), criteria={"late": 1.0})
    early = events.reward("r", 0.75, target_span_id=TWO, time=events.at(4))
    *_, last = told(began(), late, early)
    assert (last.reward, last.rewarded, last.criteria) == (0.5, events.at(8), {"late": 1.0})


def test_a_reward_of_the_whole_counts_before_those_of_its_parts() -> None:
    part = events.reward("r", 0.25, target_span_id=ONE, time=events.at(8))
    whole = events.reward("r", 0.75, time=events.at(4))
    *_, last = told(began(), part, whole)
    assert (last.reward, last.rewarded) == (0.75, events.at(4))


def test_a_failure_is_told_with_whose_it_was() -> None:
    end = events.rollout("r", RolloutState.FAILED, fault="limit")
    assert [(o.state, o.fault) for o in told(began(), end)] == [
        (RolloutState.STARTED, None),
        (RolloutState.FAILED, "limit"),
    ]


def test_what_an_open_rollout_costs_is_told_with_the_next_change_and_of_an_ended_one_at_once() -> (
    None
):
    sequence: list[AnyEvent] = [
        began(),
        answer(cost=0.25),
        began(),
        events.succeeded("r"),
        answer(cost=0.5, span_id=TWO),
        events.reward("r", 1.0),
    ]
    assert [(o.cost, o.reward) for o in told(*sequence)] == [
        (0.0, None),
        (0.25, None),
        (0.75, None),
        (0.75, 1.0),
    ]


def test_the_assigned_version_that_answers_itself_is_not_replaced() -> None:
    *_, last = told(began(), answer(), events.succeeded("r"))
    assert not last.replaced


def test_a_tenants_own_version_is_replaced_where_the_model_is_answered_by_another() -> None:
    *_, last = told(began("writer@acme"), answer(version="v1"), events.succeeded("r"))
    assert last.replaced


def test_outcomes_have_the_same_ids_when_they_are_made_again_and_others_have_others() -> None:
    sequence: list[AnyEvent] = [
        began(),
        began("router"),
        events.reward("r", 0.5),
        events.succeeded("r"),
    ]
    ids = [output.event_id for output in outputs(*sequence)]
    assert ids == [output.event_id for output in outputs(*sequence)]
    assert len(set(ids)) == len(ids) == 6
    other = [event.model_copy(update={"rollout_id": "other"}) for event in sequence]
    assert not set(ids) & {output.event_id for output in outputs(*other)}
