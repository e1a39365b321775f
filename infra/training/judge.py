"""A model as a grader (`judge@1`): asked over OpenAI's API how good each answer is."""

import os
from typing import Any

import httpx
import orjson
from pydantic import BaseModel
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from infra.training.settings import GradingModelSettings
from learners.graders import GradedAnswer
from learners.training.errors import TrainingError
from schemas.envelope import UnitInterval

NAME = "judge@1"
FORM = (
    'Answer with one JSON object and nothing else: {"score": S},'
    " S from 0 (worthless) to 1 (could not be better)."
)


class _Score(BaseModel):
    score: UnitInterval


class _AwayError(Exception):
    """The model cannot be asked now."""


class GradingModel:
    """A grader that asks a model."""

    def __init__(self, settings: GradingModelSettings) -> None:
        key = os.environ.get(settings.api_key_env or "")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._settings = settings
        self._http = httpx.Client(
            base_url=settings.base_url, timeout=settings.timeout_s, headers=headers
        )

    def __call__(self, answer: GradedAnswer) -> float:
        """Return the model's score.

        Raises:
            TrainingError: it gave none, three times asked. A failed judge is no reward; a made-up
                one would be learned.
        """
        try:
            return self._score(answer)
        except _AwayError as error:
            asked = f"{self._settings.model} at {self._settings.base_url}"
            raise TrainingError(f"{NAME}: {asked} gave no score: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @retry(
        retry=retry_if_exception_type(_AwayError),
        stop=stop_after_attempt(3),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        reraise=True,
    )
    def _score(self, answer: GradedAnswer) -> float:
        messages = _messages(self._settings.rubric, answer)
        body = {"model": self._settings.model, "messages": messages, "temperature": 0.0}
        try:
            said = self._http.post("/chat/completions", json=body).raise_for_status().json()
            return _Score.model_validate_json(said["choices"][0]["message"]["content"]).score
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise _AwayError(" ".join(str(error).split())[:300]) from error


def _messages(rubric: str, answer: GradedAnswer) -> list[dict[str, str]]:
    given: dict[str, Any] = {"conversation": answer.prompt, "answer": answer.text}
    if answer.expected is not None:
        given["expected"] = answer.expected
    if answer.tools:
        given["tools"] = answer.tools
    return [
        {"role": "system", "content": f"{rubric}\n{FORM}"},
        {"role": "user", "content": orjson.dumps(given).decode()},
    ]
