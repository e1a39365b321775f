"""Examples: what each head of the trace adapter made of a trajectory, addressed to the artifact
that learns from it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from schemas.decisions import Decision
from schemas.envelope import Event, EventData, EventId, Name, UnitInterval
from schemas.rollouts import Split


class SftExample(EventData):
    """A conversation in the OpenAI chat format that ends with the assistant's answer.

    Attributes:
        checkpoint: version of the target itself that answered, where no RL example says so; empty
            where another model did.
    """

    head: Literal["sft"] = "sft"
    node: str
    messages: list[dict[str, Any]] = Field(min_length=2)
    tools: list[dict[str, Any]] = []
    checkpoint: str = ""


class RlExample(EventData):
    """A prompt and a sampled response with what importance weighting needs.

    Attributes:
        prompt_token_ids, response_token_ids: as the server counted them; empty where it did not
            say.
        response_logprobs: natural logarithms, one a response token; empty where the server did not
            say.
        checkpoint: version of the model that sampled.
    """

    head: Literal["rl"] = "rl"
    node: str
    prompt: list[dict[str, Any]] = Field(min_length=1)
    response: dict[str, Any]
    tools: list[dict[str, Any]] = []
    prompt_token_ids: list[int] = []
    response_token_ids: list[int] = []
    response_logprobs: list[float] = []
    checkpoint: str = ""


class BanditExample(EventData):
    """A logged decision, to be learned from its reward."""

    head: Literal["bandit"] = "bandit"
    decision_id: EventId
    decision: Decision


class Example(EventData):
    """One example.

    Attributes:
        target: logical name of what learns from it, which is the record's key.
        reward: the rollout's reward.
        reward_revision: 1 for the first reward; higher for a correction of an example given before.
        criteria: the scores that the reward was made of, by criterion.
        expected: the task's label, where one is known.
        cost: of the model call it is about, or of all the rollout's, in the unit of the endpoints'
            prices.
        source_event_ids: the events it was made from (trajectory first).
    """

    target: Name
    task_id: Name | None = None
    split: Split = "train"
    group: Name = "default"
    reward: UnitInterval
    reward_revision: int = Field(ge=1)
    criteria: dict[str, UnitInterval] = {}
    expected: JsonValue = None
    cost: float = Field(default=0.0, ge=0.0)
    source_event_ids: list[EventId] = Field(min_length=1)
    body: Annotated[SftExample | RlExample | BanditExample, Field(discriminator="head")]


class ExampleEvent(Event[Example]):
    """An example is ready. Key: the logical name of what learns from it."""

    type: Literal["example"] = "example"
    rollout_id: Name
