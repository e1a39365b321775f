"""Examples: what a head of the trace adapter makes of a trajectory, addressed to a learner."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, JsonValue

from schemas.decisions import Decision
from schemas.envelope import Event, EventData, EventId, Name, UnitInterval
from schemas.rollouts import Split


class SftExample(EventData):
    """A conversation in the OpenAI chat format that ends with the assistant's answer.

    Attributes:
        checkpoint: version of the target that answered, if no RL example has it; empty if another
            model answered.
    """

    head: Literal["sft"] = "sft"
    node: str
    messages: list[dict[str, Any]] = Field(min_length=2)
    tools: list[dict[str, Any]] = []
    checkpoint: str = ""


class RlExample(EventData):
    """A prompt and a sampled response with what importance weighting needs.

    Attributes:
        prompt_token_ids, response_token_ids: token ids from the server; empty if it did not report
            them.
        response_logprobs: natural logarithms, one for each response token; empty if the server did
            not report them.
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
    """A logged decision to learn from."""

    head: Literal["bandit"] = "bandit"
    decision_id: EventId
    decision: Decision


class Replaced(EventData):
    """What a correction replaces: the example as it was sent last.

    Attributes:
        reward, criteria, cost: as they were sent.
        retracted: whether it was taken back.
        first: time of the event that sent the example first.
    """

    reward: UnitInterval
    criteria: dict[str, UnitInterval] = {}
    cost: float = Field(default=0.0, ge=0.0)
    retracted: bool = False
    first: AwareDatetime


class Example(EventData):
    """One example.

    Attributes:
        target: logical name of the learner's target; also the key of the record.
        reward: the rollout's reward.
        reward_revision: 1 for the first reward; higher for a correction of an earlier example.
        retracted: whether the example has no reward any more. It counts as never given, and
            `reward` is the one that it had. It may be rewarded again, with a higher revision.
        replaces: of a correction, what it replaces. None where that is not known: the example was
            sent first by a version that did not note it.
        criteria: the scores that the reward was made of, by criterion.
        expected: label of the task, if there is one.
        cost: cost of the model calls in its span and below it, in the unit of the endpoints'
            prices; of all calls of the rollout if there are none.
        source_event_ids: the events it was made from (trajectory first).
    """

    target: Name
    task_id: Name | None = None
    split: Split = "train"
    group: Name = "default"
    reward: UnitInterval
    reward_revision: int = Field(ge=1)
    retracted: bool = False
    replaces: Replaced | None = None
    criteria: dict[str, UnitInterval] = {}
    expected: JsonValue = None
    cost: float = Field(default=0.0, ge=0.0)
    source_event_ids: list[EventId] = Field(min_length=1)
    body: Annotated[SftExample | RlExample | BanditExample, Field(discriminator="head")]


class ExampleEvent(Event[Example]):
    """An example is ready. Key: the logical name of what learns from it."""

    type: Literal["example"] = "example"
    rollout_id: Name
