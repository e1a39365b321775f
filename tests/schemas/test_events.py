"""Events survive their serialiser, with fields that this program does not know."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.decisions import Decision
from schemas.rewards import RewardEvent
from schemas.rollouts import Rollout, RolloutEvent, RolloutState
from schemas.serialization import UndecodableError, decode, encode
from schemas.topics import TOPICS, topic_named
from tests import events

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,40}", fullmatch=True)
unit = st.floats(0, 1)
texts = st.text(max_size=50)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def any_event(draw: st.DrawFn) -> Any:
    """Draw an event of one of the topics that agents write."""
    rollout_id = draw(names)
    return draw(
        st.sampled_from(
            [
                events.reward(
                    rollout_id, draw(unit), criteria={draw(names): draw(unit)}, comment=draw(texts)
                ),
                events.succeeded(rollout_id, output=draw(json_values), error=draw(texts)),
                events.started(rollout_id),
                events.decision(rollout_id, draw(st.lists(texts, min_size=1, max_size=5)), 0),
                events.model_span(rollout_id, draw(names), draw(texts)),
            ]
        )
    )


@given(any_event())
def test_an_event_is_the_same_after_a_round_trip(event: Any) -> None:
    assert decode(type(event), encode(event)) == event


@given(
    any_event(),
    st.dictionaries(st.from_regex(r"newer_[a-z]{1,8}", fullmatch=True), json_values, min_size=1),
)
def test_unknown_newer_fields_survive_a_round_trip(event: Any, unknown: dict[str, Any]) -> None:
    document = orjson.loads(encode(event))
    document |= unknown
    document["payload"] |= unknown
    again = orjson.loads(encode(decode(type(event), orjson.dumps(document))))
    for name, value in unknown.items():
        assert again[name] == value
        assert again["payload"][name] == value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty value"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "an object"),
        (b'{"rollout_id":"r","payload":{"value":1.5,"source":"human"}}', "payload.value"),
        (b'{"rollout_id":"r","payload":{"value":NaN,"source":"human"}}', "finite"),
        (b'{"payload":{"value":0.5,"source":"human"}}', "rollout_id"),
        (b'{"type":"span","rollout_id":"r","payload":{"value":0.5,"source":"human"}}', "type"),
    ],
)
def test_what_is_no_reward_is_refused_with_its_reason(value: bytes | None, reason: str) -> None:
    with pytest.raises(UndecodableError, match=reason):
        decode(RewardEvent, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"probabilities": [0.5]}, "1 probabilities for 2 candidates"),
        ({"choice": 2}, "choice 2 is none of 2"),
        ({"probabilities": [0.5, 0.4]}, "sum to"),
        ({"propensity": 0.4}, "propensity must equal"),
    ],
)
def test_a_decision_that_contradicts_itself_is_refused(change: dict[str, Any], reason: str) -> None:
    valid = events.decision_of(["a", "b"], 0).model_dump()
    with pytest.raises(ValueError, match=reason):
        Decision.model_validate(valid | change)


def test_a_rollout_says_who_drew_its_split_and_whose_failure_it_was() -> None:
    change = Rollout(
        state=RolloutState.FAILED, split="validation", split_chosen=True, fault="endpoint"
    )
    event = RolloutEvent(rollout_id="r1", payload=change)
    assert decode(RolloutEvent, encode(event)) == event


def test_a_rollout_of_an_earlier_version_has_no_fault_and_a_split_that_nobody_chose() -> None:
    earlier = Rollout.model_validate({"state": "failed", "split": "validation"})
    assert (earlier.split_chosen, earlier.fault) == (False, None)


def test_a_fault_of_nobody_known_is_refused() -> None:
    with pytest.raises(ValidationError, match="'agent', 'endpoint', 'limit' or 'caller'"):
        Rollout.model_validate({"state": "failed", "fault": "weather"})


def test_topics_that_are_joined_have_the_same_number_of_partitions() -> None:
    for key in ("rollout_id", "logical name"):
        assert len({topic.partitions for topic in TOPICS.values() if topic.key == key}) == 1


def test_a_topic_is_found_by_its_short_name() -> None:
    assert topic_named("rewards") is topic_named("everloop.rewards")
    with pytest.raises(KeyError, match="there are: rollouts, spans"):
        topic_named("reward")
