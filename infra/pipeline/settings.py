"""Settings of the pipeline."""

from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator

from infra.runtime.section import Section
from learners.training.config import Method
from schemas.envelope import Name


class PhaseSettings(Section):
    """One phase: rollouts with what serves now, then one learner learns.

    Attributes:
        rollouts: how many are run before it learns.
        samples: rollouts of each task, one after another. Learners that compare rollouts of one
            task need at least two.
        target: logical name of what learns. None: the phase only gathers.
        method: how it learns. `bandit` learns from every decision at once, so such a phase orders
            no run.
        trial: most rollouts that are run until the gate has decided.
    """

    name: Name
    rollouts: int = Field(ge=1)
    samples: int = Field(default=1, ge=1)
    target: Name | None = None
    method: Method | Literal["bandit"] | None = None
    trial: int = Field(default=200, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.target is None) != (self.method is None):
            raise ValueError(f"phase {self.name} needs both target and method, or neither")
        return self


class PipelineSettings(Section):
    """What a pipeline runs, and its phases in their order.

    Attributes:
        agent: `module:function`, called with a task and a rollout (`infra.pipeline.agents`).
        command: the agent as a command instead, with its arguments.
        options: arguments by name for the function.
        name: of the agent, as its rollouts say it.
        tasks: a file of JSON Lines, or `module:function` (`infra.pipeline.tasks`).
        parallel: rollouts at a time.
        rollout_s: most seconds of one rollout; one that takes longer ends as failed.
        held_out: rollouts on held-out tasks after each phase; the same tasks every time. Nothing
            learns from them.
        training_s: most seconds that a run may take, with its wait for other runs.
        api_key: of the gateway, where it asks for one; needs the scopes `agent` and `feedback`.
    """

    agent: str | None = None
    command: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    name: Name = "agent"
    tasks: str | None = None
    parallel: int = Field(default=4, ge=1)
    rollout_s: float = Field(default=3600.0, gt=0.0)
    phases: tuple[PhaseSettings, ...] = ()
    held_out: int = Field(default=20, ge=0)
    training_s: float = Field(default=24 * 3600.0, gt=0.0)
    api_key: SecretStr | None = None

    @model_validator(mode="after")
    def _one_agent(self) -> Self:
        if self.agent is not None and self.command:
            raise ValueError("pipeline has an agent and a command; keep one")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError("two phases have one name")
        return self
