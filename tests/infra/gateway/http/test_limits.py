"""What keys have used is added up over gateways, each gateway's part once."""

import pytest

from infra.gateway.http.limits import Limits
from infra.gateway.http.problems import ProblemError
from schemas.clock import now
from schemas.keys import ApiKey

KEY = "0123456789ab"


def key(name: str = KEY, **limits: float) -> ApiKey:
    return ApiKey.model_validate({"id": name, "sha256": "0" * 64, "scopes": ["agent"], **limits})


def test_a_gateway_does_not_add_its_own_usage_a_second_time_when_it_reads_it_back() -> None:
    limits = Limits()
    limits.add_usage(key(), 3, 2, 0.25)
    for event in limits.take_changes():
        limits.apply(event.payload)
    assert limits.cost(KEY) == 0.25


def test_what_other_gateways_counted_is_added_and_a_newer_sum_replaces_the_older() -> None:
    here, there, third = Limits(), Limits(), Limits()
    here.add_usage(key(), 1, 1, 0.5)
    third.add_usage(key(), 1, 1, 4.0)
    for _ in range(2):
        there.add_usage(key(), 1, 1, 0.25)
        for event in there.take_changes():
            here.apply(event.payload)
    for event in third.take_changes():
        here.apply(event.payload)
    assert here.cost(KEY) == 0.5 + 2 * 0.25 + 4.0
    assert here.cost("another") == 0.0


def test_usage_is_told_once_with_the_sums_so_far() -> None:
    limits = Limits()
    limits.add_usage(key(), 3, 2, 0.25)
    limits.add_usage(key(), 10, 20, 0.5)
    (event,) = limits.take_changes()
    usage = event.payload
    assert (usage.requests, usage.input_tokens, usage.output_tokens) == (2, 13, 22)
    assert usage.cost == 0.75
    assert limits.take_changes() == []
    limits.add_usage(key(), 1, 0, 0.0)
    assert [event.payload.requests for event in limits.take_changes()] == [3]


def test_a_key_is_refused_when_its_cost_reaches_its_budget_and_not_before() -> None:
    limits, budgeted = Limits(), key(budget=1.0)
    limits.add_usage(budgeted, 1, 1, 0.75)
    limits.check(budgeted)
    limits.add_usage(budgeted, 1, 1, 0.25)
    with pytest.raises(ProblemError) as refused:
        limits.check(budgeted)
    assert refused.value.status_code == 402
    assert refused.value.title == "Budget used up"
    assert refused.value.detail == (
        f"key {KEY} has cost 1.0000 of 1.0 this month; raise its budget"
    )


def test_a_key_is_refused_beyond_its_requests_and_told_when_to_try_again() -> None:
    limits, limited = Limits(), key(requests_per_minute=2)
    limits.check(limited)
    limits.check(limited)
    with pytest.raises(ProblemError) as refused:
        limits.check(limited)
    assert refused.value.status_code == 429
    headers = refused.value.headers or {}
    wait = headers["retry-after"]
    assert 1 <= int(wait) <= 120
    assert refused.value.title == "Rate limit reached"
    assert refused.value.detail == (f"key {KEY} may use 2 requests a minute; try again in {wait} s")


def test_a_key_is_refused_when_its_tokens_are_used_up_also_by_one_large_call() -> None:
    limits, limited = Limits(), key(tokens_per_minute=10)
    limits.add_usage(limited, 4, 5, 0.0)
    limits.check(limited)
    limits.add_usage(limited, 100, 100, 0.0)
    with pytest.raises(ProblemError) as refused:
        limits.check(limited)
    assert refused.value.status_code == 429
    assert "10 tokens a minute" in str(refused.value.detail)


def test_a_key_of_one_token_a_minute_is_used_up_by_one_token_and_not_by_none() -> None:
    limits, limited = Limits(), key(tokens_per_minute=1)
    limits.add_usage(limited, 0, 0, 0.0)
    limits.check(limited)
    limits.add_usage(limited, 0, 1, 0.0)
    with pytest.raises(ProblemError):
        limits.check(limited)


def test_what_one_key_uses_takes_nothing_from_another() -> None:
    limits = Limits()
    first, second = (
        key(name, requests_per_minute=1, tokens_per_minute=10) for name in (KEY, "ba9876543210")
    )
    limits.check(first)
    limits.add_usage(first, 10, 0, 1.0)
    limits.check(second)


def test_usage_is_of_the_month_in_which_it_was_counted() -> None:
    before, limits = now().date(), Limits()
    limits.add_usage(key(), 1, 1, 0.25)
    (event,) = limits.take_changes()
    assert event.payload.month in {day.isoformat()[:7] for day in (before, now().date())}


def test_without_a_key_nothing_is_limited_or_counted() -> None:
    limits = Limits()
    limits.check(None)
    limits.add_usage(None, 1, 1, 1.0)
    assert limits.take_changes() == []
