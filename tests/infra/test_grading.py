"""The judge's model is asked over HTTP; when it fails it is asked later, and nonsense is no
reward.
"""

from collections.abc import Iterator
from contextlib import closing

import orjson
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from research_society.rewards import JUDGE_WEIGHTS

from infra.config.settings import Settings
from infra.gateway.settings import ModelSettings
from infra.installation.judges import configured_grader, configured_reader
from infra.judges.graders import (
    JudgeModel,
    MeasuredGrader,
    ModelGrader,
    ModelReader,
)
from infra.judges.settings import JudgeSettings
from schemas.rewards import RewardSource
from schemas.trajectories import Trajectory
from streams.processors.implicit import ImplicitConfig
from streams.storage.errors import RejectedRecordError, TransientError
from tests.agents.test_rewards import finished
from tests.conftest import serving
from tests.infra.upstream import completion

SCORES = orjson.dumps(dict.fromkeys(JUDGE_WEIGHTS, 0.5) | {"justification": "fair"}).decode()
TRAJECTORY = Trajectory(rollout=finished(), revision=1)


class JudgeServer:
    """Answers with what it was given."""

    def __init__(self) -> None:
        self.response: Response = JSONResponse(completion(SCORES))
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self._answer)

    async def _answer(self) -> Response:
        return self.response


@pytest.fixture
def server() -> JudgeServer:
    return JudgeServer()


@pytest.fixture
def grader(server: JudgeServer) -> Iterator[ModelGrader]:
    with serving(server.app) as url, closing(JudgeModel("judge_llm", url, timeout_s=5)) as model:
        yield ModelGrader(model)


def test_the_six_criteria_are_weighted_as_the_article_does(grader: ModelGrader) -> None:
    grade = grader.grade(TRAJECTORY)
    assert grade is not None
    assert grade.value == pytest.approx(0.5)
    assert set(grade.criteria) == set(JUDGE_WEIGHTS)
    assert grade.comment == "fair"


@pytest.mark.parametrize(
    "response",
    [
        JSONResponse(completion("I would rather not say.")),
        JSONResponse(completion(SCORES.replace("0.5", "7"))),
        JSONResponse({"choices": []}),
        Response(b"<html>"),
        JSONResponse({"error": "no"}, 400),
    ],
)
def test_a_judge_that_gives_no_scores_gives_no_reward(
    grader: ModelGrader, server: JudgeServer, response: Response
) -> None:
    server.response = response
    with pytest.raises(RejectedRecordError):
        grader.grade(TRAJECTORY)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_judge_that_is_not_there_now_is_asked_again_later(
    grader: ModelGrader, server: JudgeServer, status: int
) -> None:
    server.response = JSONResponse({}, status)
    with pytest.raises(TransientError):
        grader.grade(TRAJECTORY)


def test_no_server_at_all_is_a_judge_to_be_asked_later() -> None:
    with (
        closing(JudgeModel("judge_llm", "http://127.0.0.1:9")) as model,
        pytest.raises(TransientError),
    ):
        grader = ModelGrader(model)
        grader.grade(TRAJECTORY)


def test_other_agents_rollouts_are_not_graded(grader: ModelGrader) -> None:
    other = Trajectory(rollout=finished(agent="somebody"), revision=1)
    assert grader.grade(other) is None
    assert MeasuredGrader().grade(other) is None


def test_the_configuration_says_whether_a_model_judges() -> None:
    measuring = configured_grader(Settings())
    judging = configured_grader(Settings(judge=JudgeSettings(model="judge_llm")))
    assert (measuring.source, judging.source) == (RewardSource.RULE, RewardSource.JUDGE)
    assert judging.name == "judge:judge_llm@1"
    grade = measuring.grade(TRAJECTORY)
    assert grade is not None
    assert grade.value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ('{"value": 0.75}', 0.75),
        ('Sure: {"value": null} it does not tell', None),
        ('{"value": 1}', 1.0),
    ],
)
def test_a_model_reads_what_was_said_to_an_answer(
    server: JudgeServer, said: str, value: float | None
) -> None:
    server.response = JSONResponse(completion(said))
    with serving(server.app) as url, closing(JudgeModel("judge_llm", url, timeout_s=5)) as model:
        reader = ModelReader(model)
        assert reader.read("use sorted", [("user", "that did it")]) == value
    assert (reader.name, reader.source) == ("implicit:judge_llm@1", RewardSource.JUDGE)


@pytest.mark.parametrize("said", ["I cannot tell", '{"value": 7}', '{"score": 1}'])
def test_what_is_no_reward_is_none(server: JudgeServer, said: str) -> None:
    server.response = JSONResponse(completion(said))
    with (
        serving(server.app) as url,
        closing(JudgeModel("judge_llm", url, timeout_s=5)) as model,
        pytest.raises(RejectedRecordError, match="gave no reward"),
    ):
        ModelReader(model).read("x", [("user", "y")])


def test_the_configuration_says_who_reads() -> None:
    assert configured_reader(Settings()).name == "implicit@1"
    reading = ImplicitConfig(enabled=True, model="reader")
    models = {"reader": ModelSettings(base_url="http://127.0.0.1:9/v1", model="m")}
    assert configured_reader(Settings(implicit=reading, models=models)).name == "implicit:reader@1"
    with pytest.raises(ValidationError, match=r"models\.reader"):
        Settings(implicit=reading)
