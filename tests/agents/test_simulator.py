"""The simulator plays the roles from the task's text over the real protocol, and never sees a
label.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from openai import OpenAI
from research_society.roles import ROLES
from research_society.simulator.app import create_app
from research_society.simulator.reading import finding_of, part_of
from research_society.simulator.roles import JUNIORS, part_read_by

from tests.conftest import serving

PAPER: dict[str, Any] = {
    "id": "7",
    "sections": [
        {"label": "BACKGROUND", "text": "Ward rounds are old."},
        {"label": "METHODS", "text": "We asked 40 patients."},
        {"label": "RESULTS", "text": "Stay was significantly shorter on the ward."},
    ],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "pubmed_search", "parameters": {"type": "object"}}}
]


def messages(role: str, given: dict[str, Any], *more: dict[str, Any]) -> Any:
    system = f"You are the {role} of a biomedical research society."
    user = "Input:\n" + orjson.dumps(given).decode()
    return [{"role": "system", "content": system}, {"role": "user", "content": user}, *more]


@pytest.fixture
def client() -> Iterator[OpenAI]:
    with serving(create_app()) as url, OpenAI(base_url=f"{url}/v1", api_key="x") as opened:
        yield opened


def asked(client: OpenAI, *arguments: Any, **more: Any) -> Any:
    answer = client.chat.completions.create(model="any", messages=messages(*arguments), **more)
    return answer.choices[0].message


def test_a_junior_searches_first_and_then_quotes_its_part_of_the_paper(client: OpenAI) -> None:
    goal = "Is stay shorter on the ward?"
    given = {"research_goal": goal}
    (call,) = asked(client, "Geneticist", given, tools=TOOLS).tool_calls
    assert orjson.loads(call.function.arguments) == {"query": goal}
    found = {"role": "tool", "tool_call_id": call.id, "content": orjson.dumps([PAPER]).decode()}
    parts = {part_of(section["label"]): section["text"] for section in PAPER["sections"]}
    for role in JUNIORS:
        proposal = orjson.loads(asked(client, role, given, found, tools=TOOLS).content)
        assert parts[part_read_by(role, goal)] in proposal["hypothesis"]
        assert proposal["supporting_papers"] == ["7"]
    assert {part_read_by(role, goal) for role in JUNIORS} == {"background", "methods", "results"}


def test_no_junior_is_always_the_one_that_reads_the_results() -> None:
    readers = {
        role
        for number in range(30)
        for role in JUNIORS
        if part_read_by(role, f"goal {number}") == "results"
    }
    assert readers == set(JUNIORS)


@pytest.mark.parametrize(
    ("hypothesis", "decision"),
    [
        ("Stay was significantly shorter.", "GO"),
        ("There was no significant difference.", "NO-GO"),
        ("We asked patients.", "NO-GO"),
    ],
)
def test_the_decision_follows_from_what_the_evidence_says(
    client: OpenAI, hypothesis: str, decision: str
) -> None:
    given = {"refined_hypothesis": hypothesis, "protocol": {"title": "t"}}
    assert (
        orjson.loads(asked(client, "Principal Investigator", given).content)["final_decision"]
        == decision
    )


def test_every_role_of_the_society_is_played(client: OpenAI) -> None:
    given = {
        "research_goal": "g",
        "hypotheses": [{"hypothesis": "h"}],
        "chosen_index": 0,
        "selected_hypothesis": "h",
        "refined_hypothesis": "h",
        "protocol": {"title": "t", "steps": ["s"], "safety_concerns": "none", "budget_usd": 1},
    }
    for role in ROLES.values():
        answer = asked(client, role.title, given)
        role.output.model_validate_json(answer.content)


def test_a_stream_says_the_same_as_a_body(client: OpenAI) -> None:
    given = {"refined_hypothesis": "Stay was significantly shorter.", "protocol": {"title": "t"}}
    whole = asked(client, "Principal Investigator", given).content
    stream = client.chat.completions.create(
        model="any", messages=messages("Principal Investigator", given), stream=True
    )
    chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"messages": [{"role": "user", "content": "Hello"}]}',
        orjson.dumps({"messages": messages("Astrologer", {})}),
        orjson.dumps({"messages": messages("Supervisor", {"chosen_index": 3})}),
        orjson.dumps({"messages": messages("Supervisor", {"chosen_index": 3, "hypotheses": []})}),
        orjson.dumps(
            {"messages": [messages("Supervisor", {})[0], {"role": "user", "content": "Input:\n{"}]}
        ),
    ],
)
def test_what_it_cannot_play_it_refuses(client: OpenAI, body: bytes) -> None:
    answer = httpx.post(f"{client.base_url}chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "cannot_simulate"


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("Mortality was higher (P < .01).", "positive"),
        ("There was no difference.", "negative"),
        ("It did not improve.", "negative"),
        ("Patients were asked.", "none"),
        ("Scores were similar. Pain was reduced.", "positive"),
    ],
)
def test_findings_are_read_from_the_words_of_a_sentence(text: str, finding: str) -> None:
    assert finding_of(text) == finding
