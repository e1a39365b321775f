"""Datasets: from examples to the rows that trainers read, each with the events it came from.

Everything here is a pure function of the examples, in the order of the log: the same manifest gives
the same rows. Rows of two tenants are never mixed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import blake2b, sha256
from statistics import fmean, median
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from learners.graders import valid_call
from schemas.examples import ExampleEvent, RlExample, SftExample

Messages = list[dict[str, Any]]
TENANTS_TO_TELL, EXAMPLES_TO_TELL = 4, 20
MEDIAN_OF_NORMAL = 0.6745
"""The median distance from the mean of a normal distribution, in standard deviations."""

LEAST_DEVIATION = 0.01
"""Of tenants' mean rewards: where all are alike, chance alone is no outlier."""


class DatasetConfig(BaseModel):
    """Which examples become rows.

    Attributes:
        nodes: of the agent; None for all.
        tenants: None for all.
        least_reward: of a conversation to be imitated.
        valid_calls: whether conversations are left out in which a tool is called that is not there,
            or with arguments that its schema does not allow.
        margin: least difference of two rewards that says that one answer is better than another.
        pairs: most preference pairs of one prompt.
        stale_after: examples older than the newest by more are left out; None keeps all.
        outliers: tenants are left out whose mean reward is further from the median of all tenants'
            than so many standard deviations, estimated from the median deviation (the modified
            z-score of Iglewicz & Hoaglin, 1993, who take 3.5): their feedback is poisoned, or of
            another kind. Told from 4 tenants on with 20 examples each; None keeps all.
        held_out: share of tasks that is never trained on, in [0, 1).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: frozenset[str] | None = None
    tenants: frozenset[str] | None = None
    least_reward: float = Field(default=0.8, ge=0.0, le=1.0)
    valid_calls: bool = True
    margin: float = Field(default=0.2, gt=0.0, le=1.0)
    pairs: int = Field(default=4, ge=1)
    stale_after: timedelta | None = None
    outliers: float | None = Field(default=None, gt=0.0)
    held_out: float = Field(default=0.1, ge=0.0, lt=1.0)


@dataclass(frozen=True)
class Origin:
    """Where a row comes from.

    Attributes:
        task: id of the task, or a hash of the prompt where the rollout had none; what is held out
            is so by task.
        held_out: whether the row is for evaluation only.
        event_ids: of the examples and what they were made from.
    """

    tenant: str
    node: str
    task: str
    held_out: bool
    event_ids: tuple[str, ...]


@dataclass(frozen=True)
class SftRow:
    """A conversation to be imitated, in OpenAI's chat format; it ends with the assistant."""

    messages: Messages
    tools: list[dict[str, Any]]
    reward: float
    origin: Origin


@dataclass(frozen=True)
class PreferenceRow:
    """Two answers to one prompt, of which one earned more."""

    prompt: Messages
    chosen: dict[str, Any]
    rejected: dict[str, Any]
    tools: list[dict[str, Any]]
    margin: float
    origin: Origin


@dataclass(frozen=True)
class RlRow:
    """A sampled answer with its reward.

    Attributes:
        prompt_token_ids, response_token_ids: as the server counted them.
        response_logprobs: natural logarithms, one a response token.
        group: the same for all answers to one prompt.
        checkpoint: version that sampled.
    """

    prompt_token_ids: list[int]
    response_token_ids: list[int]
    response_logprobs: list[float]
    reward: float
    group: str
    checkpoint: str
    origin: Origin


@dataclass(frozen=True)
class PromptRow:
    """A prompt to be answered anew and graded.

    Attributes:
        expected: the task's label, or else the answer that earned most, where one earned enough;
            None without either.
    """

    prompt: Messages
    tools: list[dict[str, Any]]
    expected: Any
    origin: Origin


@dataclass(frozen=True)
class _Answer:
    """What an example says of an answer, whichever head it is of."""

    event: ExampleEvent
    prompt: Messages
    response: dict[str, Any]
    tools: list[dict[str, Any]]
    origin: Origin


def sft_rows(examples: Iterable[ExampleEvent], config: DatasetConfig) -> list[SftRow]:
    """Return the conversations that earned enough; one that came several times once, with all its
    events.
    """
    rows: dict[str, SftRow] = {}
    for answer in _answers(examples, config):
        reward = answer.event.payload.reward
        if not isinstance(answer.event.payload.body, SftExample) or reward < config.least_reward:
            continue
        messages = [*answer.prompt, answer.response]
        if config.valid_calls and not all(
            _is_valid(call, answer.tools) for call in _calls(messages)
        ):
            continue
        name = _hash([answer.origin.tenant, messages, answer.tools])
        known = rows.get(name)
        if known is None:
            rows[name] = SftRow(messages, answer.tools, reward, answer.origin)
            continue
        ids = tuple(dict.fromkeys((*known.origin.event_ids, *answer.origin.event_ids)))
        origin = replace(
            known.origin, event_ids=ids, held_out=known.origin.held_out or answer.origin.held_out
        )
        rows[name] = replace(known, reward=max(known.reward, reward), origin=origin)
    return list(rows.values())


def preference_rows(examples: Iterable[ExampleEvent], config: DatasetConfig) -> list[PreferenceRow]:
    """Return pairs of different answers to the same prompt whose rewards differ enough, the
    clearest first.
    """
    by_prompt: dict[str, list[_Answer]] = {}
    for answer in _answers(examples, config):
        by_prompt.setdefault(_hash([answer.origin.tenant, answer.prompt, answer.tools]), []).append(
            answer
        )
    rows = []
    for answers in by_prompt.values():
        found = []
        for better in answers:
            for worse in answers:
                margin = better.event.payload.reward - worse.event.payload.reward
                if margin >= config.margin and better.response != worse.response:
                    found.append(_preference(better, worse, margin))
        found.sort(key=lambda row: -row.margin)
        rows += found[: config.pairs]
    return rows


def rl_rows(examples: Iterable[ExampleEvent], config: DatasetConfig) -> list[RlRow]:
    """Return the sampled answers whose server said tokens and log-probabilities; importance weights
    need them.
    """
    rows = []
    for answer in _answers(examples, config):
        body = answer.event.payload.body
        if not isinstance(body, RlExample) or not body.prompt_token_ids:
            continue
        if not 0 < len(body.response_token_ids) == len(body.response_logprobs):
            continue
        rows.append(
            RlRow(
                body.prompt_token_ids,
                body.response_token_ids,
                body.response_logprobs,
                answer.event.payload.reward,
                _hash([answer.prompt, answer.tools]),
                body.checkpoint,
                answer.origin,
            )
        )
    return rows


def prompt_rows(examples: Iterable[ExampleEvent], config: DatasetConfig) -> list[PromptRow]:
    """Return each prompt once, with what its answers are graded against."""
    by_prompt: dict[str, list[_Answer]] = {}
    for answer in _answers(examples, config):
        by_prompt.setdefault(_hash([answer.origin.tenant, answer.prompt, answer.tools]), []).append(
            answer
        )
    rows = []
    for answers in by_prompt.values():
        best = max(answers, key=lambda answer: answer.event.payload.reward)
        enough = best.event.payload.reward >= config.least_reward
        label = best.event.payload.expected
        expected = label if label is not None else best.response if enough else None
        ids = tuple(
            dict.fromkeys(event_id for answer in answers for event_id in answer.origin.event_ids)
        )
        held_out = any(answer.origin.held_out for answer in answers)
        rows.append(
            PromptRow(
                best.prompt,
                best.tools,
                expected,
                replace(best.origin, held_out=held_out, event_ids=ids),
            )
        )
    return rows


def pack_rows(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return which rows share a sequence of at most `budget` tokens, by first fit decreasing
    (Johnson, 1973).

    Args:
        lengths: tokens of each row; rows longer than the budget are left out.

    Returns:
        Indices of rows, a list a sequence; no more than 11/9 of the fewest sequences possible, and
        one.
    """
    bins: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[index] > budget:
            continue
        for place, (used, rows) in enumerate(bins):
            if used + lengths[index] <= budget:
                bins[place] = (used + lengths[index], [*rows, index])
                break
        else:
            bins.append((lengths[index], [index]))
    return [rows for _, rows in bins]


def _answers(examples: Iterable[ExampleEvent], config: DatasetConfig) -> list[_Answer]:
    """Return what the examples say after all corrections, in order, without what the
    configuration leaves out.
    """
    newest: dict[tuple[str, str], ExampleEvent] = {}
    for event in examples:
        if isinstance(event.payload.body, SftExample | RlExample):
            newest[event.payload.body.head, event.payload.source_event_ids[-1]] = event
    latest = max((event.time for event in newest.values()), default=None)
    found = []
    for event in newest.values():
        stale = (
            config.stale_after is not None
            and latest is not None
            and latest - event.time > config.stale_after
        )
        node = getattr(event.payload.body, "node", "")
        wanted = config.nodes is None or node in config.nodes
        ours = config.tenants is None or event.tenant in config.tenants
        if wanted and ours and not stale:
            found.append(_answer(event, node, config))
    if config.outliers is None:
        return found
    strange = _outlying(found, config.outliers)
    return [answer for answer in found if answer.origin.tenant not in strange]


def _outlying(answers: Iterable[_Answer], limit: float) -> set[str]:
    """Return the tenants whose rewards are unlike all others'."""
    rewards: dict[str, list[float]] = {}
    for answer in answers:
        rewards.setdefault(answer.origin.tenant, []).append(answer.event.payload.reward)
    means = {tenant: fmean(of) for tenant, of in rewards.items() if len(of) >= EXAMPLES_TO_TELL}
    if len(means) < TENANTS_TO_TELL:
        return set()
    middle = median(means.values())
    away = {tenant: abs(mean - middle) for tenant, mean in means.items()}
    deviation = max(median(away.values()) / MEDIAN_OF_NORMAL, LEAST_DEVIATION)
    return {tenant for tenant, distance in away.items() if distance > limit * deviation}


def _answer(event: ExampleEvent, node: str, config: DatasetConfig) -> _Answer:
    example, body = event.payload, event.payload.body
    if isinstance(body, SftExample):
        prompt, response = body.messages[:-1], body.messages[-1]
    else:
        assert isinstance(body, RlExample)  # noqa: S101 - decisions were left out
        prompt, response = body.prompt, body.response
    task = example.task_id or _hash([prompt])
    held_out = example.split != "train" or _unit(task) < config.held_out
    ids = (event.event_id, *example.source_event_ids)
    return _Answer(
        event, prompt, response, body.tools, Origin(event.tenant, node, task, held_out, ids)
    )


def _preference(better: _Answer, worse: _Answer, margin: float) -> PreferenceRow:
    held_out = better.origin.held_out or worse.origin.held_out
    origin = replace(
        better.origin,
        held_out=held_out,
        event_ids=(*better.origin.event_ids, *worse.origin.event_ids),
    )
    return PreferenceRow(
        better.prompt, better.response, worse.response, better.tools, margin, origin
    )


def _calls(messages: Messages) -> list[dict[str, Any]]:
    return [call for message in messages for call in message.get("tool_calls") or ()]


def _is_valid(call: dict[str, Any], tools: list[dict[str, Any]]) -> bool:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    try:
        read = orjson.loads(arguments) if isinstance(arguments, str) else arguments
    except orjson.JSONDecodeError:
        return False
    return valid_call({"name": function.get("name"), "arguments": read}, tools) is not None


def _hash(of: Any) -> str:
    return sha256(orjson.dumps(of, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def _unit(task: str) -> float:
    """Return a number in [0, 1) that a task always has."""
    digest = blake2b(task.encode(), digest_size=8, person=b"everloop-rows").digest()
    return int.from_bytes(digest) / 2**64
