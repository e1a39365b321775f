"""The graders behind the judge: measured criteria, or a judge's model asked through the gateway."""

from collections.abc import Sequence

import httpx
import orjson
from pydantic import BaseModel, ValidationError
from research_society.rewards import (
    AGENT,
    JUDGE_WEIGHTS,
    MEASURED_WEIGHTS,
    UnusableScorecardError,
    judged,
    measured,
    weighted,
)

from schemas.envelope import UnitInterval
from schemas.rewards import RewardSource
from schemas.serialization import readable
from schemas.trajectories import Trajectory
from streams.processors.implicit import Reply
from streams.processors.judge import Grade
from streams.storage.errors import RejectedRecordError, TransientError


class MeasuredGrader:
    """Scores what can be measured without a model. Grades only the research society's labelled
    tasks.
    """

    name = "measured@1"
    source = RewardSource.RULE

    def grade(self, trajectory: Trajectory) -> Grade | None:
        """Return the measured criteria and their weighted sum."""
        criteria = measured(trajectory.rollout)
        if criteria is None:
            return None
        return Grade(
            weighted(criteria, MEASURED_WEIGHTS),
            criteria,
            "measured criteria, no judge's model configured",
        )


class JudgeModel:
    """A judge's model, asked through the gateway.

    Args:
        model: its logical name.
        gateway_url: where it is called.
        api_key: shown to the gateway.
    """

    def __init__(
        self, model: str, gateway_url: str, timeout_s: float = 120.0, api_key: str | None = None
    ) -> None:
        self.name = model
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=gateway_url, timeout=timeout_s, headers=headers)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, messages: list[dict[str, str]]) -> str:
        """Return what the model says.

        Raises:
            TransientError: it cannot be asked now.
            RejectedRecordError: it refuses, or gives no completion.
        """
        try:
            answer = self._http.post(
                "/v1/chat/completions",
                json={"model": self.name, "messages": messages, "temperature": 0},
            )
        except httpx.HTTPError as error:
            raise TransientError(f"the judge's model cannot be asked: {error!r}") from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise TransientError(
                f"the judge's model answered {answer.status_code}: {answer.text[:200]}"
            )
        if not answer.is_success:
            raise RejectedRecordError(
                f"the judge's model refused: {answer.status_code} {answer.text[:200]}"
            )
        try:
            return str(answer.json()["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise RejectedRecordError(
                f"the judge's model gave no completion: {answer.text[:200]}"
            ) from error


class ModelGrader:
    """Has the six criteria scored by a model. Grades only the research society's rollouts."""

    source = RewardSource.JUDGE

    def __init__(self, model: JudgeModel) -> None:
        self.name = f"judge:{model.name}@1"
        self._model = model

    def grade(self, trajectory: Trajectory) -> Grade | None:
        """Return the judge's scores and their weighted sum."""
        if trajectory.rollout.agent != AGENT:
            return None
        try:
            card = judged(trajectory.rollout, self._model.ask)
        except UnusableScorecardError as error:
            raise RejectedRecordError(str(error)) from error
        scores = card.model_dump(include=set(JUDGE_WEIGHTS))
        return Grade(weighted(scores, JUDGE_WEIGHTS), scores, card.justification)


class ModelReader:
    """Has a model read how good an answer was from what was said to it."""

    source = RewardSource.JUDGE
    PROMPT = (
        "An assistant gave an answer, and this is what came back. Say from the reply alone how"
        " good the answer was:"
        ' {"value": 1.0} it was accepted or praised, {"value": 0.0} it was wrong, refused or'
        " failed, anything between"
        ' for less; {"value": null} if the reply does not tell. Answer with the JSON object alone.'
    )

    def __init__(self, model: JudgeModel) -> None:
        self.name = f"implicit:{model.name}@1"
        self._model = model

    def read(self, answer: str, replies: Sequence[Reply]) -> float | None:
        """Return what the model read; None where it could not tell."""
        said = orjson.dumps(
            {"answer": answer, "replies": [{"role": role, "text": text} for role, text in replies]}
        )
        found = self._model.ask(
            [{"role": "system", "content": self.PROMPT}, {"role": "user", "content": said.decode()}]
        )
        try:
            return _Read.model_validate_json(found[found.find("{") : found.rfind("}") + 1]).value
        except ValidationError as error:
            raise RejectedRecordError(
                f"the reader's model gave no reward: {readable(error)}"
            ) from error


class _Read(BaseModel):
    value: UnitInterval | None
