"""Personal data and secrets are taken out before anything is written; what joins is left alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.config.settings import Settings, load_settings
from infra.gateway.records.redaction import RedactionConfig, Redactor, Rule
from infra.gateway.settings import GatewaySettings
from infra.runtime.errors import ConfigError
from schemas.spans import Attribute, SpanEvent
from schemas.topics import SPANS
from streams.processors.promotion_state import baseline_route
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.upstream import Upstream

EVERYTHING = RedactionConfig(
    builtin=("email", "phone", "credit_card", "ip_address", "secret"),
    rules=(Rule(pattern=r"(?i)project \w+", replacement="[PROJECT]"),),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ada.lovelace+x@example.co.uk now", "write to [EMAIL] now"),
        ("call +49 30 123 4567 or (030) nobody", "call [PHONE] or (030) nobody"),
        ("card 4111 1111 1111 1111.", "card [CARD]."),
        ("order 1234567890123456 is no card", "order 1234567890123456 is no card"),
        ("from 192.168.1.20:80", "from [IP]:80"),
        ("key sk-abcdefghijklmnop1234 leaked", "key [SECRET] leaked"),
        ("evl_0123456789ab_abcdefghijklmnop", "[SECRET]"),
        ("sk_live_abcdefghijklmnop1234", "[SECRET]"),
        ("(AKIAIOSFODNN7EXAMPLE)", "([SECRET])"),
        ("task_description_length", "task_description_length"),
        ("risk-adjusted-return-model2", "risk-adjusted-return-model2"),
        ("skateboarding-competition", "skateboarding-competition"),
        ("pk_of_the_table_of_customers", "pk_of_the_table_of_customers"),
        ("disk_usage_percentage_2026", "disk_usage_percentage_2026"),
        ("about Project Aurora", "about [PROJECT]"),
        ("version 1.2.3, 42 apples, 2026-01-01", "version 1.2.3, 42 apples, 2026-01-01"),
    ],
)
def test_each_rule_takes_out_what_it_is_for(text: str, expected: str) -> None:
    assert Redactor(EVERYTHING).text(text) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.sampled_from(["ada@example.org", "4111111111111111", "10.1.2.3"]))
def test_nothing_that_a_rule_matches_is_left_wherever_it_stood(value: Any, secret: str) -> None:
    redactor = Redactor(EVERYTHING)
    found = redactor.value({"a": [value, {"b": f"x {secret} y"}], f" {secret} ": 1})
    assert secret not in str(found["a"][1:])
    assert all(secret not in key for key in found)


@given(JSON)
def test_without_rules_nothing_changes(value: Any) -> None:
    assert Redactor(RedactionConfig()).value(value) == value


@pytest.fixture
def redacting(tmp_path: Path, upstream_url: str) -> Iterator[Gateway]:
    settings = Settings(
        data_dir=tmp_path / "data",
        gateway=GatewaySettings(redaction=EVERYTHING, conversation_idle_s=0.3),
    )
    publish(
        settings.log_path,
        model_route("detailed", upstream_url),
        baseline_route("supervisor-policy"),
    )
    with running_gateway(settings) as gateway:
        yield gateway


def test_nothing_of_it_reaches_the_disk_and_the_model_gets_it_all(
    redacting: Gateway, upstream: Upstream
) -> None:
    secret = "ada@example.org"
    named = {"x-everloop-rollout-id": "r1"}
    http = redacting.http
    http.post(
        "/everloop/v1/rollouts",
        json={
            "rollout_id": "r1",
            "task": {"id": "t", "input": {"who": secret}, "expected": secret},
        },
    )
    redacting.chat(
        "detailed", messages=[{"role": "user", "content": f"I am {secret}"}], headers=named
    )
    http.post(
        "/everloop/v1/rewards", json={"rollout_id": "r1", "value": 1, "comment": f"by {secret}"}
    )
    decision = {
        "rollout_id": "r1",
        "policy": "supervisor-policy",
        "context": secret,
        "candidates": [{"text": secret}],
    }
    assert http.post("/everloop/v1/decisions", json=decision).is_success
    http.post("/api/rollouts", json=[{"rollout_id": "r2", "input": secret}])
    http.post(
        "/api/rollouts/r2/attempt/0/events", json={"event_type": "note", "data": {"said": [secret]}}
    )
    http.post(
        "/everloop/v1/rollouts/r1/end",
        json={"state": "failed", "error": secret, "output": [secret]},
    )
    (span,) = redacting.soon(SPANS, SpanEvent)
    assert upstream.asked[0]["messages"][0]["content"] == f"I am {secret}"
    assert span.rollout_id == "r1"
    assert span.payload.attributes[Attribute.INPUT_MESSAGES] == [
        {"role": "user", "parts": [{"type": "text", "content": "I am [EMAIL]"}]}
    ]
    # token ids are the text in other words
    assert Attribute.PROMPT_TOKEN_IDS not in span.payload.attributes
    assert span.payload.attributes[Attribute.RESPONSE_LOGPROBS] == [-0.5, -0.25]
    for file in redacting.settings.data_dir.rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes(), file


def test_a_span_without_anything_to_take_out_keeps_its_tokens(redacting: Gateway) -> None:
    redacting.chat("detailed")
    (span,) = redacting.soon(SPANS, SpanEvent)
    assert span.payload.attributes[Attribute.PROMPT_TOKEN_IDS] == [5, 6]


def test_a_rule_that_is_no_regular_expression_is_an_error_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        RedactionConfig(rules=(Rule(pattern="("),))
    file = tmp_path / "everloop.toml"
    file.write_text('[[gateway.redaction.rules]]\npattern = "("\n')
    monkeypatch.setenv("EVERLOOP_CONFIG", str(file))
    with pytest.raises(ConfigError, match="no regular expression"):
        load_settings()
