"""A trained model is asked before it is announced, and what is wrong with it is said."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from infra.training.checks import Examination, check_candidate, examine, refusal
from infra.training.jobs import Case
from infra.training.settings import CheckSettings
from schemas.endpoints import Endpoint
from tests.conftest import serving

PARAMETERS = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOLS = [{"type": "function", "function": {"name": "book", "parameters": PARAMETERS}}]
CASES = [
    Case(
        prompt=[{"role": "user", "content": f"book {number}"}],
        tools=TOOLS,
        expected={"name": "book", "arguments": {"n": number}},
    )
    for number in range(4)
]


def models() -> FastAPI:
    """Return a server of models that are good, and bad in ways of their own: the model's name says
    which.
    """
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        number = int(body["messages"][0]["content"].split()[1])
        # Long beside what a busy machine adds: or a good model looks slow beside another good one.
        await asyncio.sleep(0.1)
        arguments = json.dumps(
            {"n": number - 4 if number >= 4 and body["model"] == "elephant" else number}
        )
        match body["model"]:
            case "broken":
                arguments = '{"n": '
            case "wrong":
                arguments = json.dumps({"n": number + 50})
            case "collapsed":
                arguments = '{"n": 77}'
            case "failing" if number == 2:
                return JSONResponse({"error": {"message": "out of memory"}}, 500)
            case "gibberish":
                return Response(b"<html>", media_type="text/html")
            case "slow":
                await asyncio.sleep(1.0)
        call = {"id": "c", "type": "function", "function": {"name": "book", "arguments": arguments}}
        message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
        if body["model"] == "unreadable":
            message = {"role": "assistant", "content": "<tool_call>{</tool_call>"}
        if body["model"] == "wordy":
            message["content"] = f"<think>{'well, ' * 100}</think>"
        usage = {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15}
        return JSONResponse({"choices": [{"index": 0, "message": message}], "usage": usage})

    return app


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(models()) as running:
        yield running


def asked(url: str, model: str) -> Examination:
    return examine(Endpoint(base_url=f"{url}/v1", model=model), CASES, timeout_s=20)


def test_what_answers_as_well_may_be_announced(url: str) -> None:
    found = asked(url, "good")
    assert (found.prompts, found.failed, found.agreement, found.valid, found.distinct) == (
        4,
        0,
        1.0,
        1.0,
        1.0,
    )
    assert refusal(found, None, CheckSettings()) is None
    assert refusal(found, asked(url, "wrong"), CheckSettings()) is None


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("broken", "only 0% of its tool calls are valid"),
        ("unreadable", "only 0% of its tool calls are valid"),
        ("failing", "1 of 4 held-out prompts were not answered"),
        ("gibberish", "4 of 4 held-out prompts were not answered"),
        ("wrong", "agrees with 0.200"),
        ("collapsed", "says the same to different prompts: 25% of the answers"),
        ("slow", "takes 1."),
        ("wordy", "answers with 6"),
    ],
)
def test_what_is_worse_is_refused_with_the_reason(url: str, model: str, said: str) -> None:
    champion = asked(url, "good")
    assert said in str(refusal(asked(url, model), champion, CheckSettings()))


EARLIER = [
    case.model_copy(update={"prompt": [{"role": "user", "content": f"book {n + 4}"}]})
    for n, case in enumerate(CASES)
]
"""Prompts whose right answer is four less than they say: only who learned that knows."""


def test_what_is_forgotten_of_earlier_runs_is_refused(url: str) -> None:
    def at(model: str) -> Endpoint:
        return Endpoint(base_url=f"{url}/v1", model=model)

    settings = CheckSettings()
    metrics, reason = check_candidate(
        at("good"), at("elephant"), CASES, EARLIER, settings, timeout_s=20
    )
    assert str(reason).startswith(
        "forgot: agrees with 0.200 of the expected answers to prompts of earlier runs"
    )
    assert (metrics["held_out_agreement"], metrics["champion_earlier_agreement"]) == (1.0, 1.0)
    assert (
        check_candidate(at("elephant"), at("good"), CASES, EARLIER, settings, timeout_s=20)[1]
        is None
    )
    assert check_candidate(at("good"), None, CASES, EARLIER, settings, timeout_s=20)[1] is None
    assert check_candidate(at("good"), at("elephant"), [], [], settings, timeout_s=20) == ({}, None)


def test_what_nobody_serves_is_not_answered() -> None:
    found = examine(Endpoint(base_url="http://127.0.0.1:9/v1", model="gone"), CASES, timeout_s=2)
    assert (found.failed, found.agreement) == (4, 0.0)
    assert "4 of 4" in str(refusal(found, None, CheckSettings()))
    better = Examination(
        prompts=4, failed=0, agreement=0.1, valid=1.0, distinct=1.0, latency_s=1.0, length=5.0
    )
    assert refusal(better, found, CheckSettings()) is None, (
        "anything is better than what does not answer"
    )
