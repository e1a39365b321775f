"""Events for tests, made the way the gateway makes them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.decisions import Candidate, Decision, DecisionEvent
from schemas.envelope import AnyEvent
from schemas.examples import BanditExample, Example, ExampleEvent
from schemas.genai import to_semantic
from schemas.outcomes import OutcomeEvent, RolloutOutcome
from schemas.rewards import Reward, RewardEvent, RewardSource
from schemas.rollouts import Rollout, RolloutEvent, RolloutState, Split, Task
from schemas.serialization import encode
from schemas.spans import Attribute, Span, SpanEvent
from schemas.topics import TOPICS, Topic
from streams.storage.partitions import partition_of
from streams.storage.records import NewRecord, Record

START = datetime(2026, 1, 1, tzinfo=UTC)
TRACE = "0af7651916cd43dd8448eb211c80319c"


def at(seconds: float) -> datetime:
    """Return a time some seconds after the start of the test's world."""
    return START + timedelta(seconds=seconds)


def rollout(rollout_id: str, state: RolloutState, **payload: Any) -> RolloutEvent:
    return RolloutEvent(
        rollout_id=rollout_id, time=START, trace_id=TRACE, payload=Rollout(state=state, **payload)
    )


def started(rollout_id: str, split: Split = "train") -> RolloutEvent:
    task = Task(
        id=f"task-{rollout_id}", input={"goal": "does it?", "context": "it does"}, expected="yes"
    )
    return rollout(rollout_id, RolloutState.STARTED, task=task, split=split, agent="test-agent")


def succeeded(rollout_id: str, **payload: Any) -> RolloutEvent:
    return rollout(rollout_id, RolloutState.SUCCEEDED, **payload)


def reward(
    rollout_id: str, value: float, source: RewardSource = RewardSource.ENVIRONMENT, **more: Any
) -> RewardEvent:
    time = more.pop("time", START)
    return RewardEvent(
        rollout_id=rollout_id, time=time, payload=Reward(value=value, source=source, **more)
    )


def model_span(
    rollout_id: str, node: str, answer: str, span_id: str = "00f067aa0ba902b7"
) -> SpanEvent:
    attributes: dict[str, Any] = {
        Attribute.OPERATION.value: "chat",
        Attribute.NODE.value: node,
        Attribute.INPUT_MESSAGES.value: [to_semantic({"role": "user", "content": f"ask {node}"})],
        Attribute.OUTPUT_MESSAGES.value: [to_semantic({"role": "assistant", "content": answer})],
        Attribute.CHECKPOINT.value: "v1",
        Attribute.RESPONSE_TOKEN_IDS.value: [1, 2],
        Attribute.RESPONSE_LOGPROBS.value: [-0.1, -0.2],
    }
    span = Span(
        name=f"chat {node}", start_unix_nano=1, end_unix_nano=2, status="ok", attributes=attributes
    )
    return SpanEvent(
        rollout_id=rollout_id, time=START, trace_id=TRACE, span_id=span_id, payload=span
    )


def decision_of(
    texts: list[str], choice: int, policy: str = "supervisor-policy", version: str = "uniform"
) -> Decision:
    """Return a uniform decision among texts, proposed by `junior-0`, `junior-1` and so on."""
    share = 1.0 / len(texts)
    return Decision(
        policy=policy,
        policy_version=version,
        feature_version=0,
        context="which is best?",
        candidates=[Candidate(id=f"junior-{index}", text=text) for index, text in enumerate(texts)],
        probabilities=[share] * len(texts),
        choice=choice,
        propensity=share,
    )


def decision(rollout_id: str, texts: list[str], choice: int) -> DecisionEvent:
    return DecisionEvent(
        rollout_id=rollout_id, time=START, trace_id=TRACE, payload=decision_of(texts, choice)
    )


def example(texts: list[str], choice: int, value: float, **more: Any) -> ExampleEvent:
    """Return a bandit example from a decision of `version`."""
    event = decision("r", texts, choice)
    event = event.model_copy(
        update={
            "payload": event.payload.model_copy(
                update={"policy_version": more.pop("version", "uniform")}
            )
        }
    )
    example = Example(
        target="supervisor-policy",
        reward=value,
        reward_revision=more.pop("reward_revision", 1),
        source_event_ids=[event.event_id],
        body=BanditExample(decision_id=event.event_id, decision=event.payload),
        **more,
    )
    return ExampleEvent(rollout_id="r", time=START, payload=example)


def outcome(
    rollout_id: str,
    version: str,
    value: float | None = None,
    begun: float = 0.0,
    after: float = 1.0,
    **more: Any,
) -> OutcomeEvent:
    """Return what a rollout of `supervisor-policy` came to, told when its reward came.

    Args:
        begun: in seconds since the start of the test's world.
        after: seconds until the reward, or until this is told.
    """
    name = more.pop("name", "supervisor-policy")
    time = at(begun + after)
    payload = RolloutOutcome(
        name=name,
        version=version,
        begun=at(begun),
        state=more.pop("state", RolloutState.SUCCEEDED),
        reward=value,
        rewarded=None if value is None else time,
        **more,
    )
    return OutcomeEvent(rollout_id=rollout_id, time=time, payload=payload)


def new_record(event: AnyEvent, key: str | None = None) -> NewRecord:
    """Return an event as a record to append; the key is the rollout id where none is given."""
    return NewRecord(topic_of(event).name, (key or event.rollout_id or "").encode(), encode(event))


def record(
    event: AnyEvent, offset: int = 0, key: str | None = None, time: datetime = START
) -> Record:
    """Return an event as it would lie on a log."""
    fresh = new_record(event, key)
    topic = TOPICS[fresh.topic]
    partition = partition_of(fresh.key, topic.partitions)
    return Record(
        topic.name, partition, offset, int(time.timestamp() * 1000), fresh.key, fresh.value
    )


def topic_of(event: AnyEvent) -> Topic:
    return next(topic for topic in TOPICS.values() if isinstance(event, topic.event))
