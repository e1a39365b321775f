"""The grader and the reader that the configuration asks for."""

from infra.config.settings import Settings
from infra.judges.graders import JudgeModel, MeasuredGrader, ModelGrader, ModelReader
from streams.processors.implicit import Reader, RuleReader
from streams.processors.judge import Grader


def configured_grader(settings: Settings) -> Grader:
    """Return the grader that the configuration asks for."""
    if settings.judge.model is None:
        return MeasuredGrader()
    return ModelGrader(_judge_model(settings, settings.judge.model))


def configured_reader(settings: Settings) -> Reader:
    """Return what reads implicit feedback."""
    if settings.implicit.model is None:
        return RuleReader(settings.implicit.rules)
    return ModelReader(_judge_model(settings, settings.implicit.model))


def _judge_model(settings: Settings, model: str) -> JudgeModel:
    url = f"http://{settings.gateway.host}:{settings.gateway.port}"
    api_key = settings.judge.api_key.get_secret_value() if settings.judge.api_key else None
    return JudgeModel(model, url, api_key=api_key)
