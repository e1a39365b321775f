"""Settings of the judge."""

from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from infra.runtime.section import Section

Weight = Annotated[float, Field(gt=0.0)]

JUSTIFICATION = "justification"
"""What a judge's model says beside its scores."""


class JudgeSettings(Section):
    """The judge: what grades trajectories. Without `model` and without `grader` nothing does.

    Attributes:
        grader: `module:function`. It takes a `schemas.trajectories.Trajectory`, and returns a
            reward in [0, 1], or a mapping with `value`, `criteria` and `comment`, the last two
            optional, or None where there is nothing to grade.
        model: logical model that grades instead. It reads the rubric, the task and the output, and
            the last conversation where the agent did not report both.
        rubric: what the model judges by, in your words.
        criteria: names of the scores that the model gives, each in [0, 1], with their weights. The
            reward is the weighted mean. Without criteria the model gives one score.
        agents: whose rollouts are graded, as the rollouts name them; all where it is empty.
        api_key: of the gateway, where it asks for one; needs the scope `agent`.
    """

    grader: str | None = None
    model: str | None = None
    rubric: str = "Judge how well the output does what the task asks for."
    criteria: dict[str, Weight] = {}
    agents: tuple[str, ...] = ()
    api_key: SecretStr | None = None

    @field_validator("criteria")
    @classmethod
    def _names(cls, criteria: dict[str, float]) -> dict[str, float]:
        if JUSTIFICATION in criteria:
            raise ValueError(
                f"no criterion can be called {JUSTIFICATION!r}: the model's explanation is"
            )
        return criteria
