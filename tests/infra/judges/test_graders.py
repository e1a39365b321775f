"""The judge's model is asked over HTTP; when it fails it is asked later, and nonsense is no
reward.
"""

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import orjson
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from research_society.rewards import AGENT

from infra.config.settings import Settings
from infra.gateway.settings import ModelSettings
from infra.installation.judges import configured_grader, configured_reader
from infra.judges.graders import (
    FunctionGrader,
    JudgeModel,
    ModelGrader,
    ModelReader,
)
from infra.judges.settings import JudgeSettings
from infra.runtime.errors import ConfigError
from schemas.rewards import RewardSource
from schemas.trajectories import Trajectory
from streams.processors.implicit import ImplicitConfig
from streams.processors.judge import Grade
from streams.storage.errors import RejectedRecordError, TransientError
from tests import events
from tests.agents.test_rewards import finished
from tests.conftest import serving
from tests.infra.upstream import completion

WEIGHTS = {
    "novelty": 0.10,
    "feasibility": 0.20,
    "impact": 0.30,
    "clarity": 0.15,
    "groundedness": 0.20,
    "efficiency": 0.05,
}
"""Those of the article."""

RUBRIC = "Judge a research society."
SCORES = orjson.dumps(dict.fromkeys(WEIGHTS, 0.5) | {"justification": "fair"}).decode()
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
        yield ModelGrader(model, RUBRIC, WEIGHTS, [AGENT])


def test_the_six_criteria_are_weighted_as_the_article_does(grader: ModelGrader) -> None:
    grade = grader.grade(TRAJECTORY)
    assert grade is not None
    assert grade.value == pytest.approx(0.5)
    assert set(grade.criteria) == set(WEIGHTS)
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
        grader = ModelGrader(model, RUBRIC)
        grader.grade(TRAJECTORY)


def test_other_agents_rollouts_are_not_graded(grader: ModelGrader) -> None:
    other = Trajectory(rollout=finished(agent="somebody"), revision=1)
    assert grader.grade(other) is None


def test_the_weighted_mean_is_the_articles(grader: ModelGrader, server: JudgeServer) -> None:
    means = {
        "novelty": 0.76,
        "feasibility": 0.85,
        "impact": 0.88,
        "clarity": 0.91,
        "groundedness": 0.89,
        "efficiency": 0.82,
    }
    server.response = JSONResponse(completion(orjson.dumps(means).decode()))
    grade = grader.grade(TRAJECTORY)
    assert grade is not None
    # What the article's own means give; it prints 0.81.
    assert grade.value == pytest.approx(0.8655)


class Answers:
    """A judge's model that gives these answers, one after another, and keeps what it was asked."""

    def __init__(self, *answers: str) -> None:
        self.name = "judge_llm"
        self.answers = list(answers)
        self.asked: list[list[dict[str, str]]] = []

    def ask(self, messages: list[dict[str, str]]) -> str:
        self.asked.append(messages)
        return self.answers.pop(0)


def grader_with(*answers: str) -> tuple[ModelGrader, Answers]:
    model = Answers(*answers)
    return ModelGrader(model, RUBRIC, WEIGHTS), model  # type: ignore[arg-type]  # speaks no HTTP


def test_scores_are_read_from_among_the_models_words() -> None:
    grader, _ = grader_with(f"Here you are:\n```json\n{SCORES}\n```")
    grade = grader.grade(TRAJECTORY)
    assert grade is not None
    assert grade.criteria["novelty"] == 0.5


def test_a_model_is_asked_again_once_with_the_reason() -> None:
    grader, model = grader_with("no idea", SCORES)
    assert grader.grade(TRAJECTORY) is not None
    assert len(model.asked) == 2
    assert "Invalid JSON" in model.asked[1][-1]["content"]


def test_braces_in_an_output_are_only_text() -> None:
    grader, model = grader_with(SCORES)
    grader.grade(Trajectory(rollout=finished(final_rationale="{not a template}"), revision=1))
    assert "{not a template}" in model.asked[0][1]["content"]


def test_the_model_judges_any_agent_by_the_users_own_rubric() -> None:
    model = Answers('{"score": 0.25, "justification": "rude"}')
    grader = ModelGrader(model, "Judge how polite it is.")  # type: ignore[arg-type]  # no HTTP
    grade = grader.grade(Trajectory(rollout=finished(agent="somebody"), revision=1))
    assert grade is not None
    assert (grade.value, grade.comment) == (0.25, "rude")
    assert "how polite" in model.asked[0][0]["content"]


def test_nothing_grades_where_nothing_is_configured() -> None:
    assert configured_grader(Settings()) is None


def test_the_model_comes_before_the_function() -> None:
    models = {"judge_llm": ModelSettings(base_url="http://127.0.0.1:9/v1", model="m")}
    judge = JudgeSettings(model="judge_llm", grader="research_society.rewards:grade")
    grader = configured_grader(Settings(judge=judge, models=models))
    assert grader is not None
    assert (grader.source, grader.name) == (RewardSource.JUDGE, "judge:judge_llm@1")


def graded_by(function: Any, *agents: str) -> Grade | None:
    return FunctionGrader("mine:grade", function, agents).grade(TRAJECTORY)


@pytest.mark.parametrize("found", [0.5, {"value": 0.5}, {"value": 0.5, "comment": "so so"}])
def test_a_function_grades_with_a_number_or_more(found: Any) -> None:
    grade = graded_by(lambda _: found)
    assert grade is not None
    assert grade.value == 0.5


def test_a_function_may_have_nothing_to_say_and_is_asked_of_its_agents_only() -> None:
    assert graded_by(lambda _: None) is None
    assert graded_by(lambda _: 1.0, "somebody") is None


@pytest.mark.parametrize("found", [2.0, "good", {"score": 1}, {"value": 0.5, "criteria": {"a": 7}}])
def test_a_function_that_gives_no_reward_is_a_dead_letter_with_the_reason(found: Any) -> None:
    with pytest.raises(RejectedRecordError, match="mine:grade gave no reward"):
        graded_by(lambda _: found)


def test_a_function_that_would_end_the_process_is_a_dead_letter() -> None:
    with pytest.raises(RejectedRecordError, match="mine:grade: SystemExit: 3"):
        graded_by(lambda _: sys.exit(3))


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("grade", "must be module:function"),
        ("research_society.nowhere:grade", "No module named"),
        ("research_society.rewards:nobody", "no attribute 'nobody'"),
        ("research_society.rewards:AGENT", "it is a value of the type str"),
        ("research_society.agent:tasks", "must take one argument"),
        ("research_society.agent:solve", "is async; it must be a plain function"),
    ],
)
def test_a_setting_that_names_no_grading_function_is_one_line(reference: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refusal:
        configured_grader(Settings(judge=JudgeSettings(grader=reference)))
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("judge.grader")


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


def test_an_agent_that_reports_nothing_is_judged_by_its_last_conversation_or_not_at_all(
    grader: ModelGrader, server: JudgeServer
) -> None:
    silent = finished().model_copy(update={"task": None, "output": None})
    assert grader.grade(Trajectory(rollout=silent, revision=1)) is None, "nothing to score"
    span = events.model_span("r", "writer", "The money is on its way.")
    assert grader.grade(Trajectory(rollout=silent, revision=1, spans=[span])) is not None


def test_a_criterion_may_not_be_called_like_what_the_model_says_beside_its_scores() -> None:
    with pytest.raises(ValidationError, match="justification"):
        JudgeSettings(model="judge_llm", criteria={"justification": 1.0})
