"""Which models are trained, how, and how they are checked."""

from pathlib import Path

from pydantic import Field

from infra.runtime.section import Section
from infra.serving.settings import ServingSettings
from learners.training.config import AnyConfig


class CheckSettings(Section):
    """What a trained model must do before it is announced.

    Attributes:
        prompts: most held-out prompts that it and what serves now are asked; 0 asks none.
        earlier: most held-out prompts of earlier runs, drawn from all of them, that both are asked:
            who learns from new traffic may forget the old.
        tolerance: how much less it may agree with the expected answers, as a share of the prompts.
        least_valid: share of its tool calls that their schemas must allow.
        least_distinct: share of its answers that must differ, of those that the expected ones let
            differ; a model that has collapsed says one thing only.
        most_latency: how much longer its answers may take, as a ratio to what serves now.
        most_length: how much longer they may be, as a ratio; what is rewarded for words alone
            grows.
    """

    prompts: int = Field(default=50, ge=0)
    earlier: int = Field(default=50, ge=0)
    tolerance: float = Field(default=0.05, ge=0.0, le=1.0)
    least_valid: float = Field(default=0.95, ge=0.0, le=1.0)
    least_distinct: float = Field(default=0.3, ge=0.0, le=1.0)
    most_latency: float = Field(default=3.0, gt=0.0)
    most_length: float = Field(default=3.0, gt=0.0)


class GradingModelSettings(Section):
    """The model behind the grader `judge@1`.

    Attributes:
        base_url: of an OpenAI-compatible server, `/v1` included; the gateway's, so that what it
            says is on the log.
        api_key_env: environment variable with its key.
        rubric: what it is told to look for.
        timeout_s: for one answer.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    rubric: str = (
        "You grade an assistant's answer to a conversation."
        " Look at what is right, complete and to the point."
    )
    timeout_s: float = Field(default=60.0, gt=0.0)


class TrainingSettings(Section):
    """Models that are trained.

    Attributes:
        models: logical name to how it learns, the cheapest way first. A batch is learned by the
            first way that suits its examples and did not fail on what serves now (a way fails where
            its run does, or what it made was refused or rolled back), or by the method that the
            command names.
        python: interpreter that has the extra `learn`; None is the trainer's own.
        concurrency: runs at once.
        track: experiment trackers that are told each step: `tensorboard`, `mlflow`, `wandb`.
        judge: the model behind the grader `judge@1`; None where nobody grades so.
        attempts: how often a run is begun that ends without saying why; it goes on from its last
            saved state.
    """

    models: dict[str, tuple[AnyConfig, ...]] = {}
    python: Path | None = None
    concurrency: int = Field(default=1, ge=1)
    attempts: int = Field(default=2, ge=1)
    track: tuple[str, ...] = ()
    judge: GradingModelSettings | None = None
    serving: ServingSettings = ServingSettings()
    check: CheckSettings = CheckSettings()
