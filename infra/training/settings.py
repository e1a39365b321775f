"""Which models are trained, how, and how they are checked."""

from pathlib import Path

from pydantic import Field

from infra.runtime.section import Section
from infra.serving.settings import ServingSettings
from learners.training.config import AnyConfig


class CheckSettings(Section):
    """The check of a trained model before it is announced. It is compared with what serves now.

    Attributes:
        prompts: most held-out prompts of its run that both are asked; 0 asks none.
        earlier: most held-out prompts of earlier runs that both are asked. A model that learns
            from new traffic may forget the old.
        tolerance: by how much its agreement with the expected answers may be lower, in [0, 1].
        least_valid: least share of its tool calls that their schemas allow, in [0, 1].
        least_distinct: least number of different answers, as a share of the different expected
            answers. A model that has collapsed always says the same.
        most_latency: most time of its answers, as a ratio to what serves now.
        most_length: most length of its answers, as a ratio to what serves now. A model that is
            rewarded for words alone writes ever more.
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
        base_url: of an OpenAI-compatible server, up to and including `/v1`. With the gateway's
            URL, its answers are on the log.
        api_key_env: environment variable with its key.
        rubric: what it is told to look for.
        timeout_s: most seconds for one answer.
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
        models: logical name to the configurations of its methods, the cheapest first. A command
            may name the method. Else a batch takes the first method that suits its examples and
            has not failed on what serves now. A method fails if its run fails, or if its version
            is rejected or rolled back.
        python: interpreter that has the extra `learn`; None is the trainer's own.
        concurrency: most runs at one time.
        track: experiment trackers that get each step: `tensorboard`, `mlflow`, `wandb`.
        judge: the model behind the grader `judge@1`; None if that grader is not used.
        attempts: how often a run is started that ends without a reason. It goes on from its last
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
