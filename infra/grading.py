"""The graders behind the judge: measured criteria, or a judge's model asked through the gateway."""

import httpx

from agents.rewards import (
    AGENT,
    JUDGE_WEIGHTS,
    MEASURED_WEIGHTS,
    UnusableScorecardError,
    judged,
    measured,
    weighted,
)
from infra.config import Settings
from schemas.rewards import RewardSource
from schemas.trajectories import Trajectory
from streams.errors import RejectedRecordError, TransientError
from streams.judging import Grade, Grader


class MeasuredGrader:
    """Scores what can be measured without a model. Grades only the research society's labelled tasks."""

    name = "measured@1"
    source = RewardSource.RULE

    def grade(self, trajectory: Trajectory) -> Grade | None:
        """Return the measured criteria and their weighted sum."""
        criteria = measured(trajectory.rollout)
        if criteria is None:
            return None
        return Grade(weighted(criteria, MEASURED_WEIGHTS), criteria, "measured criteria, no judge's model configured")


class ModelGrader:
    """Has the six criteria scored by a model. Grades only the research society's rollouts.

    Args:
        model: logical name of the judge's model.
        gateway_url: where it is called.
        api_key: shown to the gateway.
    """

    source = RewardSource.JUDGE

    def __init__(self, model: str, gateway_url: str, timeout_s: float = 120.0, api_key: str | None = None) -> None:
        self.name = f"judge:{model}@1"
        self._model = model
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=gateway_url, timeout=timeout_s, headers=headers)

    def grade(self, trajectory: Trajectory) -> Grade | None:
        """Return the judge's scores and their weighted sum."""
        if trajectory.rollout.agent != AGENT:
            return None
        try:
            card = judged(trajectory.rollout, self._ask)
        except UnusableScorecardError as error:
            raise RejectedRecordError(str(error)) from error
        scores = card.model_dump(include=set(JUDGE_WEIGHTS))
        return Grade(weighted(scores, JUDGE_WEIGHTS), scores, card.justification)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, messages: list[dict[str, str]]) -> str:
        try:
            answer = self._http.post(
                "/v1/chat/completions", json={"model": self._model, "messages": messages, "temperature": 0}
            )
        except httpx.HTTPError as error:
            raise TransientError(f"the judge's model cannot be asked: {error!r}") from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise TransientError(f"the judge's model answered {answer.status_code}: {answer.text[:200]}")
        if not answer.is_success:
            raise RejectedRecordError(f"the judge's model refused: {answer.status_code} {answer.text[:200]}")
        try:
            return str(answer.json()["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise RejectedRecordError(f"the judge's model gave no completion: {answer.text[:200]}") from error


def configured_grader(settings: Settings) -> Grader:
    """Return the grader that the configuration asks for."""
    if settings.judge.model is None:
        return MeasuredGrader()
    url = f"http://{settings.gateway.host}:{settings.gateway.port}"
    api_key = settings.judge.api_key.get_secret_value() if settings.judge.api_key else None
    return ModelGrader(settings.judge.model, url, api_key=api_key)
