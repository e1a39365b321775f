"""The grader and the reader that the configuration asks for."""

import inspect
from collections.abc import Callable
from typing import Any

from infra.config.settings import Settings
from infra.judges.graders import FunctionGrader, JudgeModel, ModelGrader, ModelReader
from infra.runtime.errors import ConfigError
from learners.references import UnknownReferenceError, resolve_plain
from streams.processors.implicit import Reader, RuleReader
from streams.processors.judge import Grader


def configured_grader(settings: Settings) -> Grader | None:
    """Return the grader that the configuration asks for: the model before the function.

    Raises:
        ConfigError: `judge.grader` names no function of one argument.
    """
    judge = settings.judge
    if judge.model is not None:
        model = _judge_model(settings, judge.model)
        return ModelGrader(model, judge.rubric, judge.criteria, judge.agents)
    if judge.grader is not None:
        return FunctionGrader(judge.grader, _grading_function(judge.grader), judge.agents)
    return None


def configured_reader(settings: Settings) -> Reader:
    """Return what reads implicit feedback."""
    if settings.implicit.model is None:
        return RuleReader(settings.implicit.rules)
    return ModelReader(_judge_model(settings, settings.implicit.model))


def _grading_function(reference: str) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = resolve_plain(reference)
        inspect.signature(found).bind("trajectory")
    except UnknownReferenceError as error:
        raise ConfigError(f"judge.grader: {error}") from error
    except TypeError as error:
        raise ConfigError(
            f"judge.grader: {reference} must take one argument, the trajectory: {error}"
        ) from error
    return found


def _judge_model(settings: Settings, model: str) -> JudgeModel:
    url = f"http://{settings.gateway.host}:{settings.gateway.port}"
    api_key = settings.judge.api_key.get_secret_value() if settings.judge.api_key else None
    return JudgeModel(model, url, api_key=api_key)
