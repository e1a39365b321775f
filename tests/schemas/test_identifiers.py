"""Identifiers are what their specifications say."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.identifiers import derived_event_id, new_event_id, new_span_id, new_trace_id
from tests.events import at


def test_fresh_event_ids_are_version_7_and_sort_by_time() -> None:
    ids = [new_event_id() for _ in range(100)]
    assert {uuid.UUID(value).version for value in ids} == {7}
    assert ids == sorted(ids)


@given(
    st.lists(
        st.tuples(st.text("abc:.", max_size=8), st.integers(0, 2**40)),
        unique=True,
        min_size=2,
        max_size=20,
    )
)
def test_different_sources_give_different_ids_and_the_same_source_the_same(
    sources: list[tuple[str, int]],
) -> None:
    ids = [derived_event_id(at(0), *source) for source in sources]
    assert len(set(ids)) == len(ids)
    assert ids == [derived_event_id(at(0), *source) for source in sources]
    assert {uuid.UUID(value).version for value in ids} == {7}
    assert {uuid.UUID(value).variant for value in ids} == {uuid.RFC_4122}


def test_derived_ids_sort_by_the_time_of_their_source() -> None:
    assert derived_event_id(at(0), "z") < derived_event_id(at(1), "a")


def test_parts_cannot_be_shifted_into_one_another() -> None:
    assert derived_event_id(at(0), "a", "bc") != derived_event_id(at(0), "ab", "c")
    with pytest.raises(ValueError, match="separator"):
        derived_event_id(at(0), "a\x1fb")


def test_trace_and_span_ids_have_w3c_lengths() -> None:
    assert (len(new_trace_id()), len(new_span_id())) == (32, 16)
