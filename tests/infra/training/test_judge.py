"""A model grades by what it says, and one that says nothing of use grades nothing."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from infra.training.judge import GradingModel
from infra.training.settings import GradingModelSettings
from learners.graders import GradedAnswer
from learners.training.errors import TrainingError
from tests.conftest import serving

ANSWER = GradedAnswer(
    "Rome.", prompt=[{"role": "user", "content": "The capital of Italy?"}], expected="Rome"
)


class Model:
    """A judge that says what it was told to say, one thing after another."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self._answer)

    async def _answer(self, request: Request) -> JSONResponse:
        self.asked.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        said = self.said.pop(0) if self.said else "no idea"
        if isinstance(said, int):
            return JSONResponse({"error": {"message": "busy"}}, said)
        return JSONResponse(
            {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}}]}
        )


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def judge(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[GradingModel]:
    monkeypatch.setenv("TEST_JUDGE_KEY", "k")
    with serving(model.app) as url:
        settings = GradingModelSettings(
            base_url=f"{url}/v1", model="m", api_key_env="TEST_JUDGE_KEY", rubric="Be strict."
        )
        asking = GradingModel(settings)
        yield asking
        asking.close()


def test_the_score_is_the_reward(model: Model, judge: GradingModel) -> None:
    model.said = ['{"score": 0.75}']
    assert judge(ANSWER) == 0.75
    (asked,) = model.asked
    assert asked["model"] == "m"
    assert asked["messages"][0]["content"].startswith("Be strict.\nAnswer with one JSON object")
    assert json.loads(asked["messages"][1]["content"]) == {
        "conversation": ANSWER.prompt,
        "answer": "Rome.",
        "expected": "Rome",
    }
    assert model.keys == ["Bearer k"]


def test_it_is_asked_again_where_it_says_nothing_of_use(model: Model, judge: GradingModel) -> None:
    model.said = [503, '{"score": 7}', '{"score": 1}']
    assert judge(ANSWER) == 1.0
    assert len(model.asked) == 3


def test_a_judge_that_fails_gives_no_reward(model: Model, judge: GradingModel) -> None:
    with pytest.raises(TrainingError, match=r"judge@1: m at http://.* gave no score"):
        judge(ANSWER)
    assert len(model.asked) == 3
