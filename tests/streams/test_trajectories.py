"""The join makes one trajectory of everything with one rollout id, in whatever order it comes."""

import itertools
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.envelope import AnyEvent
from schemas.outcomes import OutcomeEvent
from schemas.rewards import RewardSource
from schemas.rollouts import Recorded, RolloutState
from schemas.serialization import decode
from schemas.spans import Attribute
from schemas.topics import DEAD_LETTERS, SPANS, TRAJECTORIES
from schemas.trajectories import Trajectory, TrajectoryEvent
from streams.processing.dead_letters import dead_letters
from streams.processing.processor import process
from streams.processors.counted_rewards import rewards_that_count
from streams.processors.evidence import failed
from streams.processors.join_state import JoinState
from streams.processors.outcomes import cost_of
from streams.processors.trajectories import JoinConfig, TrajectoryJoin
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.errors import RejectedRecordError
from streams.storage.log import read_all
from streams.storage.records import Outgoing, Record, share_records
from tests import events


def join(
    *sequence: AnyEvent, through_bytes: bool = True
) -> tuple[JoinState | None, list[Outgoing]]:
    """Run events through the join; between two of them the state goes through its bytes."""
    processor = TrajectoryJoin()
    state: JoinState | None = None
    outputs: list[Outgoing] = []
    for offset, event in enumerate(sequence):
        outcome = processor.handle(state, event, events.record(event, offset))
        outputs.extend(outcome.records)
        state = outcome.state
        if state is not None and through_bytes:
            state = processor.decode_state(processor.encode_state(state))
    return state, outputs


def trajectories(*sequence: AnyEvent) -> list[Trajectory]:
    return [output.event.payload for output in join(*sequence)[1] if output.topic is TRAJECTORIES]


def test_a_rollout_that_ends_gives_its_trajectory_with_what_earlier_events_said() -> None:
    span = events.model_span("r", "geneticist", "yes")
    decision = events.decision("r", ["a", "b"], 1)
    (found,) = trajectories(
        events.started("r", "validation"), span, decision, events.succeeded("r", output={"x": 1})
    )
    assert (found.spans, found.decisions, found.reward, found.revision) == (
        [span],
        [decision],
        None,
        1,
    )
    assert found.rollout.task is not None
    assert found.rollout.task.id == "task-r"
    assert (found.rollout.split, found.rollout.agent, found.rollout.output) == (
        "validation",
        "test-agent",
        {"x": 1},
    )


def test_an_end_waits_for_what_was_recorded_before_it() -> None:
    """Topics are read apart: the end and the reward may come before the decision that they are
    about.
    """
    processor = TrajectoryJoin()
    end = events.rollout("r", RolloutState.SUCCEEDED, recorded=Recorded(spans=1, decisions=1))
    before: list[AnyEvent] = [
        events.started("r"),
        end,
        events.reward("r", 0.5),
        events.model_span("r", "geneticist", "yes"),
    ]
    state, outputs = join(*before)
    assert outputs == []
    (found,) = trajectories(*before, events.decision("r", ["a", "b"], 1))
    assert (len(found.spans), len(found.decisions), found.reward, found.reward_revision) == (
        1,
        1,
        0.5,
        1,
    )
    assert state is not None
    given_up = processor.expire(state, "r", events.START + timedelta(hours=1))
    assert [output.event.payload.reward for output in given_up.records] == [0.5]
    assert processor.handle(state, end, events.record(end, 9)).records == ()


def test_a_late_reward_emits_the_trajectory_again() -> None:
    first, second = trajectories(
        events.started("r"), events.succeeded("r"), events.reward("r", 0.5)
    )
    assert (first.reward, first.reward_revision) == (None, 0)
    assert (second.reward, second.revision, second.reward_revision) == (0.5, 2, 1)


def test_a_reward_that_changes_nothing_is_no_new_reward() -> None:
    human = events.reward("r", 0.5, RewardSource.HUMAN)
    found = trajectories(events.started("r"), events.succeeded("r"), human, events.reward("r", 0.1))
    assert [trajectory.reward for trajectory in found] == [None, 0.5, 0.5]
    assert [trajectory.reward_revision for trajectory in found] == [0, 1, 1]


def test_a_repeated_event_is_ignored() -> None:
    reward, end = events.reward("r", 0.5), events.succeeded("r")
    assert len(trajectories(events.started("r"), end, end, reward, reward)) == 2


@given(st.permutations([1, 2, 3]), st.integers(0, 3))
def test_what_comes_before_its_rollout_waits_for_it(order: list[int], place: int) -> None:
    early: list[Any] = [
        events.reward("r", 0.5),
        events.decision("r", ["a"], 0),
        events.model_span("r", "n", "x"),
    ]
    sequence = [early[index - 1] for index in order]
    sequence.insert(place, events.started("r"))
    state, outputs = join(*sequence, events.succeeded("r"))
    trajectory = outputs[-1].event.payload
    assert (len(trajectory.rewards), len(trajectory.decisions), len(trajectory.spans)) == (1, 1, 1)
    assert state is not None
    assert not state.waiting
    assert trajectory.reward == 0.5


def test_a_span_after_the_end_is_not_lost() -> None:
    found = trajectories(
        events.started("r"), events.succeeded("r"), events.model_span("r", "n", "late")
    )
    assert [len(trajectory.spans) for trajectory in found] == [0, 1]


@pytest.mark.parametrize(
    ("before", "after"), list(itertools.product(["succeeded", "failed"], repeat=2))
)
def test_a_rollout_ends_once(before: str, after: str) -> None:
    with pytest.raises(RejectedRecordError, match=f"cannot go from {before} to {after}"):
        join(
            events.started("r"),
            events.rollout("r", RolloutState(before)),
            events.rollout("r", RolloutState(after)),
        )


def test_several_gateways_may_say_that_a_rollout_started() -> None:
    assert len(trajectories(events.started("r"), events.started("r"), events.succeeded("r"))) == 1


def test_events_of_an_unknown_rollout_become_dead_letters_after_the_limit() -> None:
    processor = TrajectoryJoin(JoinConfig(orphan_limit=timedelta(minutes=5)))
    reward = events.reward("nobody", 0.5)
    source = events.record(reward, 7, time=events.at(0))
    outcome = processor.handle(None, reward, source)
    assert outcome.deadline == events.at(300)
    assert outcome.state is not None
    expired = processor.expire(outcome.state, "nobody", events.at(301))
    (letter,) = expired.records
    assert letter.topic is DEAD_LETTERS
    assert letter.event.payload.value == source.value
    assert (letter.event.payload.offset, letter.key) == (7, "everloop.rewards")
    assert "'nobody' was announced within 0:05:00" in letter.event.payload.error_message
    assert expired.state is None


def test_a_second_orphan_does_not_put_the_limit_off() -> None:
    processor = TrajectoryJoin(JoinConfig(orphan_limit=timedelta(minutes=5)))
    first = events.reward("nobody", 0.5)
    state = processor.handle(None, first, events.record(first, time=events.at(0))).state
    second = events.reward("nobody", 0.6)
    assert processor.handle(
        state, second, events.record(second, 1, time=events.at(200))
    ).deadline == events.at(300)


def test_a_rollout_that_falls_silent_is_closed_as_failed_and_then_forgotten() -> None:
    state, _ = join(events.started("r"))
    assert state is not None
    processor = TrajectoryJoin()
    closed = processor.expire(state, "r", events.at(10**6))
    (output,) = closed.records
    assert output.event.payload.rollout.state == RolloutState.FAILED
    assert "nothing was heard" in output.event.payload.rollout.error
    assert closed.state is not None
    assert closed.deadline == events.at(10**6) + processor.config.late_reward_window
    assert processor.expire(closed.state, "r", events.at(10**7)).state is None


def test_a_rollout_closed_for_silence_keeps_who_it_belongs_to_and_says_how_long_it_was_silent() -> (
    None
):
    processor = TrajectoryJoin(JoinConfig(idle_limit=timedelta(minutes=5)))
    started = events.started("r").model_copy(update={"tenant": "acme"})
    state = processor.handle(None, started, events.record(started)).state
    assert state is not None
    kept = processor.encode_state(state)
    now = events.at(10**6)
    first, again, other = (
        processor.expire(processor.decode_state(kept), key, now).records[0]
        for key in ("r", "r", "another")
    )
    event = first.event
    assert (event.tenant, event.rollout_id, event.trace_id, event.time) == (
        "acme",
        "r",
        events.TRACE,
        now,
    )
    assert event.payload.rollout.error == "nothing was heard of it for 0:05:00"
    assert event.payload.revision == 1
    assert event.event_id == again.event.event_id, "a repeat has the same id"
    assert event.event_id != other.event.event_id


def test_an_end_that_is_told_takes_the_place_of_one_that_was_assumed() -> None:
    processor = TrajectoryJoin()
    started, ended = events.started("r"), events.succeeded("r")
    state = processor.handle(None, started, events.record(started)).state
    assert state is not None
    closed = processor.expire(state, "r", events.at(10**6)).state
    outcome = processor.handle(closed, ended, events.record(ended, 1))
    assert outcome.records[-1].event.payload.rollout.state == "succeeded"
    failed = events.rollout("r", RolloutState.FAILED)
    with pytest.raises(RejectedRecordError, match="cannot go from succeeded to failed"):
        processor.handle(outcome.state, failed, events.record(failed, 2))


def test_a_rewarded_rollout_that_says_nothing_more_closes_as_succeeded() -> None:
    processor = TrajectoryJoin()
    started, reward = events.started("r"), events.reward("r", 0.7)
    state = processor.handle(None, started, events.record(started)).state
    outcome = processor.handle(state, reward, events.record(reward, 1))
    assert outcome.deadline == events.START + processor.config.rewarded_silence
    assert outcome.state is not None
    closed = processor.expire(outcome.state, "r", events.at(60))
    trajectory = closed.records[0].event.payload
    assert (trajectory.rollout.state, trajectory.reward) == ("succeeded", 0.7)


def test_a_split_that_the_agent_names_wins_also_when_it_comes_later() -> None:
    processor = TrajectoryJoin()
    drawn = events.rollout("r", RolloutState.STARTED, split="validation")
    named = events.rollout("r", RolloutState.STARTED, split="train", split_chosen=True)
    again = events.rollout("r", RolloutState.STARTED, split="validation", agent="other")
    state = None
    for number, event in enumerate([drawn, named, again]):
        event = event.model_copy(update={"event_id": f"{number}"})
        state = processor.handle(state, event, events.record(event, number)).state
    assert state is not None
    assert state.rollout is not None
    assert (state.rollout.payload.split, state.rollout.payload.agent) == ("train", "other")


def told(sequence: list[AnyEvent]) -> list[tuple[str, str, RolloutState, float | None]]:
    """Return name, version, state and reward of every outcome that the join tells."""
    processor, state, found = TrajectoryJoin(), None, []
    for number, event in enumerate(sequence):
        outcome = processor.handle(state, event, events.record(event, number))
        state = outcome.state and processor.decode_state(processor.encode_state(outcome.state))
        found += [
            (
                o.event.payload.name,
                o.event.payload.version,
                o.event.payload.state,
                o.event.payload.reward,
            )
            for o in outcome.records
            if isinstance(o.event, OutcomeEvent)
        ]
    return found


def test_outcomes_are_told_by_assignment_when_they_begin_are_rewarded_and_end() -> None:
    began = events.rollout("r", RolloutState.STARTED, assigned={"writer": "v2"})
    more = events.rollout("r", RolloutState.STARTED, assigned={"writer": "v3", "router": "p1"})
    assert told(
        [
            began,
            more,
            events.model_span("r", "writer", "an answer"),
            events.reward("r", 0.5),
            events.succeeded("r"),
        ]
    ) == [
        ("writer", "v2", "started", None),
        ("router", "p1", "started", None),
        ("writer", "v2", "started", 0.5),
        ("router", "p1", "started", 0.5),
        ("writer", "v2", "succeeded", 0.5),
        ("router", "p1", "succeeded", 0.5),
    ], "the first assignment stands"


def test_the_outcome_of_a_held_out_rollout_has_the_decisions_of_its_policy() -> None:
    processor, state = TrajectoryJoin(), None
    began = events.rollout(
        "r", RolloutState.STARTED, split="validation", assigned={"supervisor-policy": "uniform"}
    )
    sequence: list[AnyEvent] = [began, events.decision("r", ["a", "b"], 1), events.reward("r", 1.0)]
    for number, event in enumerate([*sequence, events.succeeded("r")]):
        outcome = processor.handle(state, event, events.record(event, number))
        state = outcome.state
    last = outcome.records[-1].event
    assert isinstance(last, OutcomeEvent)
    assert [decision.choice for decision in last.payload.decisions] == [1]


def test_the_rewards_that_count_is_the_latest_of_the_best_source() -> None:
    rule = events.reward("r", 0.1, RewardSource.RULE, time=events.at(9))
    judge = events.reward("r", 0.2, RewardSource.JUDGE, time=events.at(1))
    later = events.reward("r", 0.3, RewardSource.JUDGE, time=events.at(2))
    of_span = events.reward("r", 0.9, RewardSource.HUMAN, target_span_id="00f067aa0ba902b7")
    about_span = {"00f067aa0ba902b7": (of_span.event_id, 0.9)}
    assert rewards_that_count([rule, judge, later, of_span]) == {
        "": (later.event_id, 0.3),
        **about_span,
    }
    human = events.reward("r", 0.4, RewardSource.HUMAN)
    corrected = events.reward(
        "r", 0.6, RewardSource.HUMAN, supersedes=human.event_id, time=events.at(-5)
    )
    assert rewards_that_count([rule, human, corrected]) == {"": (corrected.event_id, 0.6)}
    taken_back = events.reward(
        "r", 0.0, RewardSource.HUMAN, supersedes=corrected.event_id, retracted=True
    )
    assert rewards_that_count([rule, human, corrected, taken_back]) == {"": (rule.event_id, 0.1)}
    assert rewards_that_count([of_span]) == about_span


def test_a_reward_of_a_span_changes_the_trajectory_too() -> None:
    of_span = events.reward("r", 0.9, target_span_id="00f067aa0ba902b7")
    first, second = trajectories(events.started("r"), events.succeeded("r"), of_span)
    assert (first.span_rewards, second.span_rewards) == ({}, {"00f067aa0ba902b7": 0.9})
    assert (second.reward, second.reward_revision) == (None, 1)


def test_outputs_carry_ids_that_their_source_always_gives() -> None:
    sequence: list[AnyEvent] = [events.started("r"), events.succeeded("r"), events.reward("r", 0.5)]
    ids = [output.event.event_id for output in join(*sequence)[1]]
    assert ids == [output.event.event_id for output in join(*sequence, through_bytes=False)[1]]
    assert len(set(ids)) == 2


def test_a_rollout_that_grows_too_large_keeps_what_it_has_and_ends(log: EmbeddedLog) -> None:
    spans = [
        events.model_span("r", "geneticist", "x" * 200, f"{number:016x}") for number in range(10)
    ]
    happened: list[AnyEvent] = [events.started("r"), *spans, events.succeeded("r")]
    log.append([events.new_record(event) for event in happened])
    runner = EmbeddedRunner(log, TrajectoryJoin(JoinConfig(max_bytes=4000)), "test")
    while runner.run_once():
        pass
    (found,) = [
        decode(TrajectoryEvent, record.value).payload for record in read_all(log, TRAJECTORIES.name)
    ]
    letters = [letter.payload for _, letter in dead_letters(log)]
    assert found.spans == spans[: len(found.spans)]
    assert 0 < len(found.spans) == 10 - len(letters) < 10
    assert all("join.max_bytes" in letter.error_message for letter in letters)


def test_a_record_with_several_spans_changes_the_trajectory_once() -> None:
    state, _ = join(events.started("r"), events.succeeded("r"))
    spans = [events.model_span("r", "geneticist", "x", f"{number:016x}") for number in range(5)]
    (record,) = share_records(Outgoing.of(SPANS, "r", span) for span in spans)
    source = Record(record.topic, 0, 9, 0, record.key, record.value)
    outcome = process(TrajectoryJoin(), state, source)
    (trajectory,) = (output.event.payload for output in outcome.records)
    assert trajectory.spans == spans
    assert trajectory.revision == 2
    assert process(TrajectoryJoin(), outcome.state, source).records == ()


@pytest.mark.parametrize("cost", [-1.0, True, "much", 1e300, float("inf")])
def test_a_cost_that_is_none_counts_nothing(cost: object) -> None:
    span = events.model_span("r", "writer", "an answer")
    span.payload.attributes[Attribute.COST.value] = cost  # type: ignore[assignment]  # on purpose
    assert cost_of(span) == 0.0


def test_an_outcome_is_told_with_the_cost_of_spans_that_come_after_the_end() -> None:
    processor, state, told = TrajectoryJoin(), None, []
    began = events.rollout("r", RolloutState.STARTED, assigned={"writer": "v2"})
    ended = events.succeeded("r", recorded=Recorded(spans=1))
    span = events.model_span("r", "writer", "an answer")
    span.payload.attributes[Attribute.COST.value] = 0.4
    sequence: list[AnyEvent] = [began, events.reward("r", 1.0), ended, span]
    for number, event in enumerate(sequence):
        outcome = processor.handle(state, event, events.record(event, number))
        state = outcome.state
        told += [r.event.payload for r in outcome.records if isinstance(r.event, OutcomeEvent)]
    assert [(o.state, o.cost) for o in told][-1] == (RolloutState.SUCCEEDED, 0.4)
    assert [o.corrected for o in told] == [False, False, True]


def test_an_answer_by_another_version_is_a_failure_of_the_assigned_one() -> None:
    processor, state, told = TrajectoryJoin(), None, []
    began = events.rollout("r", RolloutState.STARTED, assigned={"writer": "v2"})
    span = events.model_span("r", "writer", "an answer")
    span.payload.attributes[Attribute.REQUEST_MODEL.value] = "writer"
    span.payload.attributes[Attribute.CHECKPOINT.value] = "v1"
    sequence: list[AnyEvent] = [began, span, events.reward("r", 1.0), events.succeeded("r")]
    for number, event in enumerate(sequence):
        outcome = processor.handle(state, event, events.record(event, number))
        state = outcome.state and processor.decode_state(processor.encode_state(outcome.state))
        told += [r.event.payload for r in outcome.records if isinstance(r.event, OutcomeEvent)]
    assert [(o.replaced, failed(o)) for o in told] == [(False, False), (True, True), (True, True)]
    assert told[-1].reward == 1.0, "what the fallback earned stays"
