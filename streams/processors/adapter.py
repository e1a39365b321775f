"""The three-head trace adapter: one trajectory becomes conversations (SFT), samples (RL) and
decisions (bandit).
"""

from collections.abc import Iterator, Mapping
from math import fsum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from schemas.examples import BanditExample, Example, RlExample, SftExample
from schemas.genai import to_openai
from schemas.routes import STAND_IN
from schemas.spans import Attribute, SpanEvent
from schemas.trajectories import Trajectory, TrajectoryEvent
from streams.processors.counted_rewards import rewards_that_count
from streams.processors.model_calls import AnsweredCall, asks_model, model_calls

Body = SftExample | RlExample | BanditExample


class AdapterConfig(BaseModel):
    """Which nodes of an agent teach which logical model.

    Attributes:
        sft, rl: logical name to the names of the nodes whose model calls are its examples. A name
            `NAME@TENANT` is a tenant's own model: it learns from that tenant alone.
        sft_credit: `chosen` teaches only from the nodes whose candidates were chosen by a decision
            of the rollout (a rejected proposal did not earn the reward); `all` teaches from every
            node.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sft: Mapping[str, frozenset[str]] = {}
    rl: Mapping[str, frozenset[str]] = {}
    sft_credit: Literal["chosen", "all"] = "chosen"


def examples_of(event: TrajectoryEvent, config: AdapterConfig) -> list[Example]:
    """Return the examples in a trajectory, in a fixed order.

    A reward that was given counts whatever became of the rollout. A failed rollout without one
    teaches nothing, since nobody said what the failure was worth (docs/decisions/004).

    A span's own reward counts for its example before the rollout's. What has neither comes as
    retracted, with a reward of 0: whoever was given it with a reward must be told.
    An answer that a person corrected is one more, as it should have been. A rollout in which the
    stand-in answered teaches nothing, whatever else was chosen in it.
    """
    trajectory = event.payload
    if any(_checkpoint(span) == STAND_IN for span in trajectory.spans):
        return []  # the reward is about the one text that the stand-in has
    task, costs = trajectory.rollout.task, _Costs(trajectory.spans)
    counted = rewards_that_count(trajectory.rewards).get("")
    # Criteria belong to one grade. Those of a reward that does not count would contradict the
    # reward.
    criteria = next(
        (e.payload.criteria for e in trajectory.rewards if counted and e.event_id == counted[0]), {}
    )
    return [
        Example(
            target=target,
            task_id=task.id if task else None,
            split=trajectory.rollout.split,
            group=trajectory.rollout.group,
            reward=0.0 if reward is None else reward,
            retracted=reward is None,
            reward_revision=max(1, trajectory.reward_revision),
            criteria=criteria,
            expected=task.expected if task else None,
            cost=costs.of(span_id),
            source_event_ids=[event.event_id, source],
            body=body,
        )
        for target, source, span_id, reward, body in _bodies(event, config)
    ]


Found = tuple[str, str, str | None, float | None, Body]
"""Target, source event id, the span it is about, reward and body."""


def _bodies(event: TrajectoryEvent, config: AdapterConfig) -> Iterator[Found]:
    """Yield the examples."""
    trajectory = event.payload
    calls = model_calls(trajectory.spans)
    for target, nodes in _of_tenant(config.sft, event.tenant):
        for call in _last_by_node(calls, nodes & _credited_nodes(event, config, nodes)):
            span = call.span
            called = span.payload.text(Attribute.REQUEST_MODEL)
            own = target not in config.rl and called in (target, target.rpartition("@")[0])
            conversation = _conversation(span, _checkpoint(span) if own else "")
            yield (
                target,
                span.event_id,
                span.span_id,
                _reward(trajectory, *call.span_ids),
                conversation,
            )
        yield from _demonstrations(trajectory, target, nodes)
    for target, nodes in _of_tenant(config.rl, event.tenant):
        for call in calls:
            span = call.span
            if _node(span) in nodes:
                reward = _reward(trajectory, *call.span_ids)
                yield target, span.event_id, span.span_id, reward, _sample(span)
    for decision in trajectory.decisions:
        body = BanditExample(decision_id=decision.event_id, decision=decision.payload)
        about = decision.span_id
        reward = _reward(trajectory, about or "")
        yield decision.payload.policy, decision.event_id, about, reward, body


def _of_tenant(
    targets: Mapping[str, frozenset[str]], tenant: str
) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the targets that a tenant's trajectories teach: those of all, and its own."""
    for target, nodes in targets.items():
        _, at, whose = target.rpartition("@")
        if not at or whose == tenant:
            yield target, nodes


class _Costs:
    """What the model calls of a trajectory cost.

    A call without a known cost counts as free: old gateways noted no cost of 0.
    """

    def __init__(self, spans: list[SpanEvent]) -> None:
        self._costs: dict[str | None, float] = {}
        self._below: dict[str | None, list[str | None]] = {}
        for span in spans:
            self._below.setdefault(span.payload.parent_span_id, []).append(span.span_id)
            cost = span.payload.attributes.get(Attribute.COST)
            if isinstance(cost, int | float):
                self._costs[span.span_id] = float(cost)
            elif asks_model(span):
                self._costs[span.span_id] = 0.0
        # fsum: the sum must not depend on the order in which spans arrived.
        self._all = fsum(self._costs.values())

    def of(self, span_id: str | None) -> float:
        """Return the cost of the calls in a span and below it. If there are none, the cost of all
        calls.
        """
        if span_id is None:
            return self._all
        # With a set of what was found: spans come from anybody, and may form a circle.
        found, waiting = {span_id}, [span_id]
        while waiting:
            below = [one for one in self._below.get(waiting.pop(), ()) if one and one not in found]
            found.update(below)
            waiting += below
        own = self._costs.keys() & found
        return fsum(self._costs[one] for one in own) if own else self._all


def _reward(trajectory: Trajectory, *span_ids: str) -> float | None:
    """Return the reward of the first of these spans that has its own, else the rollout's."""
    own = (trajectory.span_rewards[one] for one in span_ids if one in trajectory.span_rewards)
    return next(own, trajectory.reward)


def _demonstrations(trajectory: Trajectory, target: str, nodes: frozenset[str]) -> Iterator[Found]:
    """Yield the answers of these nodes as people said they should have been."""
    superseded = {event.payload.supersedes for event in trajectory.rewards}
    spans = {span.span_id: span for span in trajectory.spans}
    for event in trajectory.rewards:
        edit, span = event.payload.edit, spans.get(event.payload.target_span_id or "")
        if edit is None or span is None or _node(span) not in nodes:
            continue
        withdrawn = event.payload.retracted or event.event_id in superseded
        message = edit if isinstance(edit, dict) else {"content": str(edit)}
        messages = [*_input(span), {"role": "assistant", **message}]
        body = SftExample(node=_node(span), messages=messages, tools=_tools(span))
        yield target, event.event_id, span.span_id, None if withdrawn else 1.0, body


def _credited_nodes(
    event: TrajectoryEvent, config: AdapterConfig, nodes: frozenset[str]
) -> frozenset[str]:
    """Return the nodes that earned the reward. If no decision chose among their proposals, all of
    them did.
    """
    if config.sft_credit == "all":
        return nodes
    proposers = {
        candidate.id for d in event.payload.decisions for candidate in d.payload.candidates
    }
    chosen = {d.payload.candidates[d.payload.choice].id for d in event.payload.decisions}
    return frozenset(node for node in nodes if node in chosen or node not in proposers)


def _last_by_node(calls: list[AnsweredCall], nodes: frozenset[str]) -> list[AnsweredCall]:
    """Return each node's last call, which holds its whole conversation, tools included."""
    last: dict[str, AnsweredCall] = {}
    for call in calls:
        node = _node(call.span)
        if node in nodes:
            last[node] = call
    return list(last.values())


def _node(event: SpanEvent) -> str:
    return event.payload.text(Attribute.NODE) or ""


def _conversation(event: SpanEvent, checkpoint: str) -> SftExample:
    return SftExample(
        node=_node(event),
        messages=[*_input(event), *_output(event)[:1]],
        tools=_tools(event),
        checkpoint=checkpoint,
    )


def _checkpoint(event: SpanEvent) -> str:
    return event.payload.text(Attribute.CHECKPOINT) or ""


def _sample(event: SpanEvent) -> RlExample:
    attributes = event.payload.attributes
    return RlExample(
        node=_node(event),
        prompt=_input(event),
        response=_output(event)[0],
        tools=_tools(event),
        prompt_token_ids=_list(attributes.get(Attribute.PROMPT_TOKEN_IDS)),
        response_token_ids=_list(attributes.get(Attribute.RESPONSE_TOKEN_IDS)),
        response_logprobs=_list(attributes.get(Attribute.RESPONSE_LOGPROBS)),
        checkpoint=_checkpoint(event),
    )


def _input(event: SpanEvent) -> list[dict[str, Any]]:
    return _messages(event, Attribute.INPUT_MESSAGES)


def _output(event: SpanEvent) -> list[dict[str, Any]]:
    return _messages(event, Attribute.OUTPUT_MESSAGES)


def _messages(event: SpanEvent, side: Attribute) -> list[dict[str, Any]]:
    return [to_openai(message) for message in _list(event.payload.attributes.get(side))]


def _tools(event: SpanEvent) -> list[dict[str, Any]]:
    return _list(event.payload.attributes.get(Attribute.TOOL_DEFINITIONS))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
