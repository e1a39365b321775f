"""Datasets: the rows that trainers read, made from examples, each with the events it came from.

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

# Without a floor, a chance difference would look like an outlier where all tenants are alike.
LEAST_DEVIATION = 0.01
"""Least standard deviation of the tenants' mean rewards, in units of reward."""


class DatasetConfig(BaseModel):
    """Which examples become rows.

    Attributes:
        nodes: nodes of the agent whose examples are used; None for all.
        tenants: tenants whose examples are used; None for all.
        least_reward: least reward of a conversation that is imitated, in [0, 1].
        valid_calls: whether to leave out a conversation that calls a missing tool, or a tool with
            arguments that its schema does not allow.
        margin: least difference of two rewards that makes one answer better than another, in (0,
            1].
        pairs: most preference pairs of one prompt.
        stale_after: an example is left out if it is older than the newest one by more than this;
            None keeps all.
        outliers: a tenant is left out if its mean reward is further from the median of all tenants
            than this many standard deviations. The standard deviation is estimated from the median
            deviation (the modified z-score of Iglewicz & Hoaglin, 1993, who take 3.5). The feedback
            of such a tenant is poisoned, or means something else. Needs at least 4 tenants with 20
            examples each; None keeps all.
        held_out: share of tasks that are never trained on, in [0, 1).
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
        task: id of the task, or a hash of the prompt if the rollout had none. All rows of a task
            are held out, or none.
        held_out: whether the row is for evaluation only.
        event_ids: ids of the examples, and of the events they were made from.
    """

    tenant: str
    node: str
    task: str
    held_out: bool
    event_ids: tuple[str, ...]


@dataclass(frozen=True)
class SftRow:
    """A conversation to imitate, in OpenAI's chat format. It ends with the assistant."""

    messages: Messages
    tools: list[dict[str, Any]]
    reward: float
    origin: Origin


@dataclass(frozen=True)
class PreferenceRow:
    """Two answers to one prompt; `chosen` has the greater reward."""

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
        response_logprobs: natural logarithms, one for each response token.
        group: the same for all answers to one prompt.
        checkpoint: version that sampled the answer.
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
    """A prompt for new answers that will be graded.

    Attributes:
        expected: the label of the task; without one, the answer with the greatest reward, if that
            is at least `least_reward`; else None.
    """

    prompt: Messages
    tools: list[dict[str, Any]]
    expected: Any
    origin: Origin


@dataclass(frozen=True)
class _Answer:
    """An answer in an example, the same for every kind of example."""

    event: ExampleEvent
    prompt: Messages
    response: dict[str, Any]
    tools: list[dict[str, Any]]
    origin: Origin


def sft_rows(examples: Iterable[ExampleEvent], config: DatasetConfig) -> list[SftRow]:
    """Return the conversations with a high enough reward.

    A conversation that occurs several times becomes one row, with the events of all.
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
        # The tenant is part of the name: a row must not say that another tenant's events made it.
        name = _hash([answer.origin.tenant, messages, answer.tools])
        known = rows.get(name)
        if known is None:
            rows[name] = SftRow(messages, answer.tools, reward, answer.origin)
            continue
        ids = tuple(dict.fromkeys((*known.origin.event_ids, *answer.origin.event_ids)))
        origin = replace(
            # Held out if any of its examples is: a model must not train on what it is checked by.
            known.origin,
            event_ids=ids,
            held_out=known.origin.held_out or answer.origin.held_out,
        )
        rows[name] = replace(known, reward=max(known.reward, reward), origin=origin)
    return list(rows.values())


def preference_rows(examples: Iterable[ExampleEvent], config: DatasetConfig) -> list[PreferenceRow]:
    """Return pairs of different answers to one prompt whose rewards differ enough.

    The pairs of a prompt are sorted by their difference, the greatest first.
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
        # The sort is stable, so pairs of one margin keep the order of the log.
        found.sort(key=lambda row: -row.margin)
        rows += found[: config.pairs]
    return rows


def rl_rows(examples: Iterable[ExampleEvent], config: DatasetConfig) -> list[RlRow]:
    """Return the sampled answers that have tokens and log-probabilities.

    Importance weights need both. Some servers do not report them.
    """
    rows = []
    for answer in _answers(examples, config):
        body = answer.event.payload.body
        if not isinstance(body, RlExample) or not body.prompt_token_ids:
            continue
        # A server may cut log-probabilities off. A row with a part of them would be weighed
        # wrongly.
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
        # The label of the task is surer than the best answer that was given.
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
    """Return which rows share a sequence of at most `budget` tokens: first fit decreasing (Johnson,
    1973).

    Args:
        lengths: tokens of each row; a row longer than the budget is left out.

    Returns:
        Indices of rows, one list for each sequence. There are at most 11/9 times as many lists as
            the fewest possible, plus one.
    """
    bins: list[tuple[int, list[int]]] = []
    # The longest first: short rows then fill the gaps. Ties by index, so that the result is the
    # same each time.
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
    """Return the answers in the examples after all corrections and retractions, in order, as the
    configuration selects.
    """
    newest: dict[tuple[str, str], ExampleEvent] = {}
    for event in examples:
        if isinstance(event.payload.body, SftExample | RlExample):
            # A correction repeats an example with the same last source, and replaces the earlier
            # one.
            newest[event.payload.body.head, event.payload.source_event_ids[-1]] = event
    newest = {name: event for name, event in newest.items() if not event.payload.retracted}
    # Age counts from the newest example, not from a clock: the same manifest gives the same rows.
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
        tenant_wanted = config.tenants is None or event.tenant in config.tenants
        if wanted and tenant_wanted and not stale:
            found.append(_answer(event, node, config))
    if config.outliers is None:
        return found
    strange = _outlying_tenants(found, config.outliers)
    return [answer for answer in found if answer.origin.tenant not in strange]


def _outlying_tenants(answers: Iterable[_Answer], limit: float) -> set[str]:
    """Return the tenants whose rewards are unlike those of all others."""
    rewards: dict[str, list[float]] = {}
    for answer in answers:
        rewards.setdefault(answer.origin.tenant, []).append(answer.event.payload.reward)
    # Means of few examples lie far apart by chance.
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
    # Without a task, equal prompts are one task, so that none is in both parts.
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
    """Return a number in [0, 1) that depends on the task alone."""
    # A person of its own: this share must not depend on what others draw from the same id.
    digest = blake2b(task.encode(), digest_size=8, person=b"everloop-rows").digest()
    return int.from_bytes(digest) / 2**64
