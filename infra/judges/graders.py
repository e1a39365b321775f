"""Graders behind the judge: a function of the user's, or a model asked through the gateway."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import httpx
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from infra.judges.settings import JUSTIFICATION
from learners.references import one_line
from schemas.envelope import UnitInterval
from schemas.genai import to_openai
from schemas.rewards import RewardSource
from schemas.serialization import readable
from schemas.spans import Attribute, SpanEvent
from schemas.trajectories import Trajectory
from streams.processors.implicit import Reply
from streams.processors.judge import Grade
from streams.storage.errors import RejectedRecordError, TransientError


class _Graded(BaseModel):
    """A result of a grading function that is not a plain number."""

    model_config = ConfigDict(extra="forbid")

    value: UnitInterval
    criteria: dict[str, UnitInterval] = {}
    comment: str = ""


class FunctionGrader:
    """Grades by a function of the user's.

    Args:
        name: as the settings name it; the rewards say it.
        agents: whose rollouts are graded; all where it is empty.
    """

    source = RewardSource.RULE

    def __init__(
        self, name: str, grade: Callable[[Trajectory], Any], agents: Sequence[str]
    ) -> None:
        self.name = name
        self._grade = grade
        self._agents = frozenset(agents)

    def grade(self, trajectory: Trajectory) -> Grade | None:
        """Return the function's grade; None if it returns None.

        Raises:
            RejectedRecordError: it returns something that is no reward, or calls `sys.exit`.
        """
        if self._agents and trajectory.rollout.agent not in self._agents:
            return None
        try:
            found = self._grade(trajectory)
        except SystemExit as error:  # else the worker would end, and end again at this record
            raise RejectedRecordError(f"{self.name}: {one_line(error)}") from error
        if found is None:
            return None
        try:
            graded = _Graded.model_validate(
                found if isinstance(found, Mapping) else {"value": found}
            )
        except ValidationError as error:
            raise RejectedRecordError(f"{self.name} gave no reward: {readable(error)}") from error
        return Grade(graded.value, graded.criteria, graded.comment)


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
        """Return the model's answer.

        Raises:
            TransientError: the server cannot be reached, is busy or broken.
            RejectedRecordError: the server refuses the request, or its answer is no completion.
        """
        try:
            answer = self._http.post(
                "/v1/chat/completions",
                # Temperature 0: the same rollout should get the same grade.
                json={"model": self.name, "messages": messages, "temperature": 0},
            )
        except httpx.HTTPError as error:
            raise TransientError(f"the judge's model cannot be asked: {error!r}") from error
        # Busy or broken for now. Any other refusal would be the same again.
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
    """Grades by a model and a rubric.

    Args:
        rubric: what the model judges by.
        criteria: names of the scores with their weights, each > 0; without any the model gives one
            score.
        agents: whose rollouts are graded; all where it is empty.
    """

    source = RewardSource.JUDGE

    def __init__(
        self,
        model: JudgeModel,
        rubric: str,
        criteria: Mapping[str, float] | None = None,
        agents: Sequence[str] = (),
    ) -> None:
        self.name = f"judge:{model.name}@1"
        self._model = model
        self._rubric = rubric
        self._criteria = dict(criteria or {"score": 1.0})
        self._agents = frozenset(agents)
        scores: dict[str, Any] = dict.fromkeys(self._criteria, (UnitInterval, ...))
        self._card: type[BaseModel] = create_model(
            "Scorecard", **scores | {JUSTIFICATION: (str, Field(default=""))}
        )

    def grade(self, trajectory: Trajectory) -> Grade | None:
        """Return the model's scores and their weighted mean.

        None if the rollout shows nothing to score: a made-up score would be learned.

        Raises:
            TransientError: the model cannot be asked now.
            RejectedRecordError: it gives no scores, also when it is asked once more.
        """
        if self._agents and trajectory.rollout.agent not in self._agents:
            return None
        shown = _evidence(trajectory)
        if shown is None:
            return None
        card = self._scores(self._prompt(shown)).model_dump()
        justification = card.pop(JUSTIFICATION)
        total = sum(self._criteria.values())
        value = sum(weight * card[name] for name, weight in self._criteria.items()) / total
        return Grade(value, card, justification)

    def _prompt(self, shown: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return the messages. The rollout is data within them: braces in it are only text."""
        # The schema stands in the prompt: not every server can enforce one.
        system = (
            f"{self._rubric.strip()}\nScore the output of an agent from 0 to 1 by:"
            f" {', '.join(self._criteria)}. Answer with one JSON object and nothing else. It must"
            f" match this JSON Schema:\n{orjson.dumps(self._card.model_json_schema()).decode()}"
        )
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": orjson.dumps(shown).decode()},
        ]

    def _scores(self, messages: list[dict[str, str]]) -> BaseModel:
        """Return the model's scores, asking once more where the first answer cannot be read."""
        answer = self._model.ask(messages)
        try:
            return self._card.model_validate_json(_json_part(answer))
        except ValidationError as error:
            again = (
                f"That cannot be used: {readable(error)}. Answer again with the JSON object alone."
            )
        # Models often correct themselves when they are shown what was wrong.
        answer = self._model.ask(
            [
                *messages,
                {"role": "assistant", "content": answer},
                {"role": "user", "content": again},
            ]
        )
        try:
            return self._card.model_validate_json(_json_part(answer))
        except ValidationError as error:
            raise RejectedRecordError(
                f"the judge gave no usable scores: {readable(error)}"
            ) from error


def _evidence(trajectory: Trajectory) -> dict[str, Any] | None:
    """Return what a judge's model reads of a rollout: task, output and turns. If the agent did not
    report both task and output, the last conversation too. None if there is nothing to read.
    """
    rollout = trajectory.rollout
    task = rollout.task.input if rollout.task else None
    shown: dict[str, Any] = {"task": task, "output": rollout.output, "turns": rollout.turns}
    if task is not None and rollout.output is not None:
        return shown
    conversations = [
        [to_openai(message) for message in [*_messages(span, "input"), *_messages(span, "output")]]
        for span in trajectory.spans
        if _messages(span, "output")
    ]
    if conversations:
        return shown | {"conversation": conversations[-1]}
    return None if rollout.output is None else shown


def _messages(span: SpanEvent, side: Literal["input", "output"]) -> list[Any]:
    name = Attribute.INPUT_MESSAGES if side == "input" else Attribute.OUTPUT_MESSAGES
    found = span.payload.attributes.get(name)
    return found if isinstance(found, list) else []


def _json_part(text: str) -> str:
    """Return the text from its first opening to its last closing brace, which strips fences and
    chatter.
    """
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


class ModelReader:
    """Reads implicit feedback by a model: how good an answer was, from the replies to it."""

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
        """Return the reward that the model read; None if the replies do not tell."""
        said = orjson.dumps(
            {"answer": answer, "replies": [{"role": role, "text": text} for role, text in replies]}
        )
        found = self._model.ask(
            [{"role": "system", "content": self.PROMPT}, {"role": "user", "content": said.decode()}]
        )
        try:
            return _Read.model_validate_json(_json_part(found)).value
        except ValidationError as error:
            raise RejectedRecordError(
                f"the reader's model gave no reward: {readable(error)}"
            ) from error


class _Read(BaseModel):
    value: UnitInterval | None
