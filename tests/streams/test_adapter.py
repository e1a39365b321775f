"""The adapter's three heads and the router: which example goes where, once a reward."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from schemas.envelope import AnyEvent
from schemas.examples import BanditExample, Example, RlExample, SftExample
from schemas.genai import to_semantic
from schemas.rollouts import RolloutState
from schemas.routes import STAND_IN
from schemas.spans import Attribute, SpanEvent
from schemas.trajectories import TrajectoryEvent
from streams.processors.adapter import AdapterConfig, examples_of
from streams.processors.router import ExampleRouter
from streams.processors.trajectories import TrajectoryJoin
from streams.storage.records import REWARD_REVISION_HEADER
from tests import events

CONFIG = AdapterConfig(
    sft={"junior_llm": frozenset({"junior-0", "junior-1"})},
    rl={"senior_llm": frozenset({"refiner"})},
)


def trajectory(*between: AnyEvent, end: AnyEvent | None = None) -> TrajectoryEvent:
    """Return the last trajectory of a rollout with these events in it."""
    join = TrajectoryJoin()
    state = None
    emitted: list[Any] = []
    for offset, event in enumerate([events.started("r"), *between, end or events.succeeded("r")]):
        outcome = join.handle(state, event, events.record(event, offset))
        state, emitted = outcome.state, [*emitted, *outcome.records]
    event = emitted[-1].event
    assert isinstance(event, TrajectoryEvent)
    return event


def full_trajectory() -> TrajectoryEvent:
    return trajectory(
        events.model_span("r", "junior-0", "first thought"),
        events.model_span("r", "junior-0", "hypothesis A"),
        events.model_span("r", "junior-1", "hypothesis B"),
        events.decision("r", ["hypothesis A", "hypothesis B"], 0),
        events.model_span("r", "refiner", "refined"),
        events.model_span("r", "refiner", "refined again"),
        events.model_span("r", "somebody", "else"),
        events.reward("r", 0.75),
    )


def test_each_head_takes_what_is_its_own() -> None:
    event = full_trajectory()
    sft, first_rl, second_rl, bandit = examples_of(event, CONFIG)
    assert isinstance(sft.body, SftExample)
    assert (sft.target, sft.body.node) == ("junior_llm", "junior-0")
    assert [message["content"] for message in sft.body.messages] == ["ask junior-0", "hypothesis A"]
    assert isinstance(first_rl.body, RlExample)
    assert isinstance(second_rl.body, RlExample)
    assert first_rl.target == second_rl.target == "senior_llm"
    assert (first_rl.body.response["content"], second_rl.body.response["content"]) == (
        "refined",
        "refined again",
    )
    assert (first_rl.body.response_token_ids, first_rl.body.response_logprobs) == (
        [1, 2],
        [-0.1, -0.2],
    )
    assert first_rl.body.checkpoint == "v1"
    assert isinstance(bandit.body, BanditExample)
    assert (bandit.target, bandit.body.decision) == (
        "supervisor-policy",
        event.payload.decisions[0].payload,
    )
    assert {example.reward for example in (sft, first_rl, second_rl, bandit)} == {0.75}
    assert bandit.source_event_ids == [event.event_id, event.payload.decisions[0].event_id]


def priced(span_id: str, cost: float) -> SpanEvent:
    span = events.model_span("r", "assistant", "answer", span_id)
    attributes = span.payload.attributes | {Attribute.COST.value: cost}
    return span.model_copy(
        update={"payload": span.payload.model_copy(update={"attributes": attributes})}
    )


def test_a_decision_has_the_reward_and_the_cost_of_the_call_it_was_made_for() -> None:
    first, second = "00f067aa0ba902b1", "00f067aa0ba902b2"
    made_for_first = events.decision("r", ["small", "large"], 0).model_copy(
        update={"span_id": first}
    )
    made_for_all = events.decision("r", ["small", "large"], 1)
    event = trajectory(
        priced(first, 0.25),
        priced(second, 0.5),
        made_for_first,
        made_for_all,
        events.reward("r", 0.75, criteria={"clarity": 0.5}),
        events.reward("r", 0.25, target_span_id=first),
    )
    one, every = examples_of(event, AdapterConfig())
    assert (one.reward, one.cost) == (0.25, 0.25)
    assert (every.reward, every.cost) == (0.75, 0.75)
    assert every.criteria == {"clarity": 0.5}


def test_the_decision_for_a_free_model_costs_nothing_whatever_else_the_rollout_called() -> None:
    free, paid = "00f067aa0ba902b1", "00f067aa0ba902b2"
    for call in (priced(free, 0.0), events.model_span("r", "assistant", "answer", free)):
        made = events.decision("r", ["small", "large"], 0).model_copy(update={"span_id": free})
        event = trajectory(call, priced(paid, 0.5), made, events.reward("r", 1.0))
        (example,) = examples_of(event, AdapterConfig())
        assert example.cost == 0.0


def test_a_decision_made_in_a_span_of_the_agent_costs_the_calls_below_it() -> None:
    outer, tool, inner, aside = (f"00f067aa0ba902b{number}" for number in range(4))
    made = events.decision("r", ["small", "large"], 0).model_copy(update={"span_id": outer})
    event = trajectory(
        below(tool, priced(inner, 0.25)),
        below(outer, events.model_span("r", "tool", "calls the model", tool)),
        priced(aside, 0.5),
        made,
        events.reward("r", 1.0),
    )
    (example,) = examples_of(event, AdapterConfig())
    assert example.cost == 0.25


def below(parent: str, span: SpanEvent) -> SpanEvent:
    payload = span.payload.model_copy(update={"parent_span_id": parent})
    return span.model_copy(update={"payload": payload})


def test_a_rejected_proposal_earns_no_credit_unless_asked_for() -> None:
    everyone = CONFIG.model_copy(update={"sft_credit": "all"})
    nodes = [
        e.body.node
        for e in examples_of(full_trajectory(), everyone)
        if isinstance(e.body, SftExample)
    ]
    assert nodes == ["junior-0", "junior-1"]


def test_nothing_is_learned_without_a_reward_also_where_the_rollout_failed() -> None:
    decision = events.decision("r", ["a"], 0)
    assert [e.retracted for e in examples_of(trajectory(decision), CONFIG)] == [True]
    unrewarded = trajectory(decision)
    router = ExampleRouter(CONFIG, timedelta(days=1))
    assert router.handle(None, unrewarded, events.record(unrewarded, 0)).records == ()
    end = events.rollout("r", RolloutState.FAILED)
    failed = trajectory(decision, end=end)
    assert router.handle(None, failed, events.record(failed, 0)).records == ()
    rewarded = trajectory(decision, events.reward("r", 0.5), end=end)
    assert [e.reward for e in examples_of(rewarded, CONFIG)] == [0.5], (
        "a reward that was given counts"
    )


def test_a_reward_is_routed_once_and_a_correction_once_more() -> None:
    router = ExampleRouter(CONFIG, timedelta(days=1))
    event = full_trajectory()
    first = router.handle(None, event, events.record(event, 0))
    again = router.handle(first.state, event, events.record(event, 1))
    assert (len(first.records), len(again.records)) == (4, 0)
    corrected = event.model_copy(
        update={"payload": event.payload.model_copy(update={"reward": 0.5})}
    )
    third = router.handle(again.state, corrected, events.record(corrected, 2))
    assert {output.event.payload.reward_revision for output in third.records} == {2}
    assert third.state is not None
    assert router.decode_state(router.encode_state(third.state)) == third.state
    assert len({output.event.event_id for output in (*first.records, *third.records)}) == 8
    assert [output.key for output in first.records] == [
        output.event.payload.target for output in first.records
    ]


def test_one_call_can_be_a_example_of_both_heads_for_one_model() -> None:
    both = AdapterConfig(
        sft={"senior_llm": frozenset({"refiner"})}, rl={"senior_llm": frozenset({"refiner"})}
    )
    event = full_trajectory()
    found = ExampleRouter(both, timedelta(days=1)).handle(None, event, events.record(event, 0))
    heads = [
        output.event.payload.body.head for output in found.records if output.key == "senior_llm"
    ]
    assert heads == ["sft", "rl", "rl"]


def test_a_conversation_says_which_version_of_its_target_answered_where_no_sample_does() -> None:
    span = events.model_span("r", "writer", "answer")
    attributes = span.payload.attributes | {Attribute.REQUEST_MODEL.value: "pupil"}
    event = trajectory(
        span.model_copy(
            update={"payload": span.payload.model_copy(update={"attributes": attributes})}
        ),
        events.reward("r", 0.75),
    )
    writer = frozenset({"writer"})

    def checkpoints(config: AdapterConfig) -> list[str]:
        bodies = [example.body for example in examples_of(event, config)]
        return [body.checkpoint for body in bodies if isinstance(body, SftExample | RlExample)]

    assert checkpoints(AdapterConfig(sft={"pupil": writer})) == ["v1"]
    assert checkpoints(AdapterConfig(sft={"another": writer})) == [""], (
        "a teacher answered, not the target"
    )
    assert checkpoints(AdapterConfig(sft={"pupil": writer}, rl={"pupil": writer})) == ["", "v1"], (
        "counted once"
    )


def test_a_tenants_own_model_learns_from_that_tenant_alone() -> None:
    refiner = frozenset({"refiner"})
    config = AdapterConfig(
        rl={"senior_llm": refiner, "senior_llm@acme": refiner, "senior_llm@other": refiner}
    )
    event = full_trajectory()
    targets = {tenant: _rl_targets(event, config, tenant) for tenant in ("default", "acme")}
    assert targets == {"default": {"senior_llm"}, "acme": {"senior_llm", "senior_llm@acme"}}


def _rl_targets(event: TrajectoryEvent, config: AdapterConfig, tenant: str) -> set[str]:
    found = examples_of(event.model_copy(update={"tenant": tenant}), config)
    return {example.target for example in found if isinstance(example.body, RlExample)}


def test_a_decision_that_comes_after_its_reward_is_a_example_still() -> None:
    router = ExampleRouter(CONFIG, timedelta(days=1))
    whole = full_trajectory()
    without = whole.model_copy(
        update={"payload": whole.payload.model_copy(update={"decisions": []})}
    )
    early = router.handle(None, without, events.record(without, 0))
    late = router.handle(early.state, whole, events.record(whole, 1))
    again = router.handle(late.state, whole, events.record(whole, 2))
    heads = [
        [output.event.payload.body.head for output in outcome.records]
        for outcome in (early, late, again)
    ]
    assert "bandit" not in heads[0]
    assert heads[1:] == [["bandit"], []]


def test_a_span_with_its_own_reward_is_a_example_of_that_reward() -> None:
    first, second = (
        events.model_span("r", "refiner", "a", "00f067aa0ba902b7"),
        events.model_span("r", "refiner", "b", "00f067aa0ba902b8"),
    )
    of_span = events.reward("r", 0.25, target_span_id=first.span_id)
    alone = examples_of(trajectory(first, second, of_span), CONFIG)
    assert [(e.reward, e.source_event_ids[1]) for e in alone if not e.retracted] == [
        (0.25, first.event_id)
    ]
    both = examples_of(trajectory(first, second, of_span, events.reward("r", 0.75)), CONFIG)
    assert [example.reward for example in both] == [0.25, 0.75]


def test_a_call_that_the_agent_and_the_gateway_both_recorded_is_learned_once() -> None:
    of_agent = events.model_span("r", "refiner", "refined", "00f067aa0ba902b7")
    of_gateway = events.model_span("r", "refiner", "refined", "00f067aa0ba902b8")
    inside = of_gateway.payload.model_copy(update={"parent_span_id": of_agent.span_id})
    of_gateway = of_gateway.model_copy(update={"payload": inside})
    found = examples_of(trajectory(of_agent, of_gateway, events.reward("r", 0.75)), CONFIG)
    assert [example.source_event_ids[1] for example in found] == [of_gateway.event_id]


def test_a_sample_has_its_messages_tools_and_tokens_as_they_were() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    span = events.model_span("r", "refiner", "refined")
    attributes = span.payload.attributes | {
        Attribute.TOOL_DEFINITIONS.value: tools,
        Attribute.PROMPT_TOKEN_IDS.value: [7, 8],
    }
    span = span.model_copy(
        update={"payload": span.payload.model_copy(update={"attributes": attributes})}
    )
    (found,) = examples_of(trajectory(span, events.reward("r", 0.75)), CONFIG)
    assert isinstance(found.body, RlExample)
    assert found.body.node == "refiner"
    assert [message["content"] for message in found.body.prompt] == ["ask refiner"]
    assert found.body.tools == tools
    assert found.body.prompt_token_ids == [7, 8]
    assert (found.task_id, found.split, found.expected) == ("task-r", "train", "yes")


def test_a_call_that_failed_or_is_no_model_call_teaches_nothing() -> None:
    span = events.model_span("r", "refiner", "refined")
    failed = span.payload.model_copy(update={"status": "error"})
    attributes = span.payload.attributes | {Attribute.OPERATION.value: "execute_tool"}
    tool = span.payload.model_copy(update={"attributes": attributes})
    for payload in (failed, tool):
        other = span.model_copy(update={"payload": payload})
        assert examples_of(trajectory(other, events.reward("r", 0.75)), CONFIG) == []


def test_a_completion_is_a_model_call_too() -> None:
    span = events.model_span("r", "refiner", "refined")
    attributes = span.payload.attributes | {Attribute.OPERATION.value: "text_completion"}
    span = span.model_copy(
        update={"payload": span.payload.model_copy(update={"attributes": attributes})}
    )
    assert len(examples_of(trajectory(span, events.reward("r", 0.75)), CONFIG)) == 1


def test_a_router_reads_only_trajectories_that_have_a_reward() -> None:
    router = ExampleRouter(CONFIG, timedelta(days=1))
    source = events.record(full_trajectory())
    none = replace(source, headers=((REWARD_REVISION_HEADER, b"0"),))
    some = replace(source, headers=((REWARD_REVISION_HEADER, b"1"),))
    assert [router.concerns(record) for record in (source, none, some)] == [True, False, True]


def test_a_routed_example_keeps_tenant_rollout_and_trace() -> None:
    event = full_trajectory().model_copy(update={"tenant": "acme"})
    outcome = ExampleRouter(CONFIG, timedelta(days=1)).handle(None, event, events.record(event))
    assert {
        (output.event.tenant, output.event.rollout_id, output.event.trace_id)
        for output in outcome.records
    } == {("acme", "r", events.TRACE)}
    assert outcome.deadline == events.START + timedelta(days=1)


def test_an_answer_that_a_person_corrected_is_a_demonstration() -> None:
    span = events.model_span("r", "junior-0", "a guess")
    edit = events.reward("r", 0.0, target_span_id=span.span_id, edit="what is known")
    as_it_was, as_it_should_be = examples_of(trajectory(span, edit), CONFIG)
    assert isinstance(as_it_should_be.body, SftExample)
    assert [message["content"] for message in as_it_should_be.body.messages] == [
        "ask junior-0",
        "what is known",
    ]
    assert (as_it_was.reward, as_it_should_be.reward) == (0.0, 1.0)
    assert as_it_should_be.source_event_ids[1] == edit.event_id


def test_a_reward_of_one_span_repeats_no_example_of_another() -> None:
    router = ExampleRouter(CONFIG, timedelta(days=1))
    first, second = (
        events.model_span("r", "refiner", "a", "00f067aa0ba902b7"),
        events.model_span("r", "refiner", "b", "00f067aa0ba902b8"),
    )
    rewarded: list[AnyEvent] = [first, second, events.reward("r", 0.75)]
    before = trajectory(*rewarded)
    after = trajectory(*rewarded, events.reward("r", 0.25, target_span_id=second.span_id))
    state = router.handle(None, before, events.record(before, 0)).state
    outcome = router.handle(state, after, events.record(after, 1))
    (example,) = [output.event.payload for output in outcome.records]
    assert (example.reward, example.reward_revision, example.source_event_ids[1]) == (
        0.25,
        2,
        second.event_id,
    )


def test_a_rollout_in_which_the_stand_in_answered_teaches_nobody() -> None:
    """Neither its text nor what was chosen beside it: the reward is about the one text it has."""
    span = events.model_span("r", "refiner", "This is Everloop's stand-in")
    attributes = span.payload.attributes | {Attribute.CHECKPOINT.value: STAND_IN}
    stood_in = span.model_copy(
        update={"payload": span.payload.model_copy(update={"attributes": attributes})}
    )
    choice, reward = events.decision("r", ["a", "b"], 0), events.reward("r", 0.75)
    assert len(examples_of(trajectory(span, choice, reward), CONFIG)) == 2
    assert examples_of(trajectory(stood_in, choice, reward), CONFIG) == []


def with_attributes(span: SpanEvent, **attributes: Any) -> SpanEvent:
    """Return a span with other attributes; those that are None are left out."""
    named = {Attribute[name].value: value for name, value in attributes.items()}
    merged = span.payload.attributes | named
    kept = {name: value for name, value in merged.items() if value is not None}
    return span.model_copy(update={"payload": span.payload.model_copy(update={"attributes": kept})})


def conversations(event: TrajectoryEvent, config: AdapterConfig = CONFIG) -> list[Example]:
    """Return the examples that are conversations."""
    return [e for e in examples_of(event, config) if isinstance(e.body, SftExample)]


def test_an_example_is_of_the_split_and_the_group_of_its_rollout() -> None:
    named = events.rollout(
        "r", RolloutState.STARTED, split="validation", split_chosen=True, group="arm-b"
    )
    (found,) = examples_of(trajectory(named, events.decision("r", ["a"], 0)), CONFIG)
    assert (found.split, found.group) == ("validation", "arm-b")


def test_an_example_without_a_reward_is_retracted_from_its_first_revision_on() -> None:
    (found,) = examples_of(trajectory(events.decision("r", ["a"], 0)), CONFIG)
    assert (found.retracted, found.reward, found.reward_revision) == (True, 0.0, 1)


def test_a_tenants_own_model_imitates_that_tenant_alone_and_knows_its_own_answers() -> None:
    junior = frozenset({"junior-0"})
    config = AdapterConfig(sft={"junior@acme": junior, "junior@other": junior})
    span = with_attributes(events.model_span("r", "junior-0", "yes"), REQUEST_MODEL="junior")
    event = trajectory(span, events.reward("r", 0.75)).model_copy(update={"tenant": "acme"})
    (found,) = examples_of(event, config)
    assert isinstance(found.body, SftExample)
    assert (found.target, found.body.checkpoint) == ("junior@acme", "v1")


def test_a_conversation_has_the_reward_of_its_own_span_and_its_tools() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    span = with_attributes(events.model_span("r", "junior-0", "yes"), TOOL_DEFINITIONS=tools)
    of_span = events.reward("r", 0.25, target_span_id=span.span_id)
    (found,) = conversations(trajectory(span, events.reward("r", 0.75), of_span))
    assert isinstance(found.body, SftExample)
    assert (found.reward, found.body.tools) == (0.25, tools)


def test_of_several_answers_to_one_call_the_first_is_imitated() -> None:
    answers = [to_semantic({"role": "assistant", "content": text}) for text in ("yes", "no")]
    span = with_attributes(events.model_span("r", "junior-0", "yes"), OUTPUT_MESSAGES=answers)
    (found,) = conversations(trajectory(span, events.reward("r", 0.75)))
    assert isinstance(found.body, SftExample)
    assert [message["content"] for message in found.body.messages] == ["ask junior-0", "yes"]


def test_a_sample_of_an_unknown_version_names_none() -> None:
    span = with_attributes(events.model_span("r", "refiner", "yes"), CHECKPOINT=None)
    (found,) = examples_of(trajectory(span, events.reward("r", 0.75)), CONFIG)
    assert isinstance(found.body, RlExample)
    assert found.body.checkpoint == ""


def test_a_decision_costs_all_calls_below_its_span_on_every_branch() -> None:
    outer, left, right, one, two = (f"00f067aa0ba902b{number}" for number in range(5))
    tools = (events.model_span("r", "tool", "calls the model", tool) for tool in (left, right))
    made = events.decision("r", ["small", "large"], 0).model_copy(update={"span_id": outer})
    event = trajectory(
        *(below(outer, tool) for tool in tools),
        below(left, priced(one, 0.25)),
        below(right, priced(two, 0.5)),
        made,
        events.reward("r", 1.0),
    )
    (example,) = examples_of(event, AdapterConfig())
    assert example.cost == 0.75


def test_spans_that_enclose_one_another_in_a_circle_cost_each_call_once() -> None:
    first, second = "00f067aa0ba902b1", "00f067aa0ba902b2"
    made = events.decision("r", ["small", "large"], 0).model_copy(update={"span_id": first})
    event = trajectory(
        below(second, priced(first, 0.25)),
        below(first, priced(second, 0.5)),
        made,
        events.reward("r", 1.0),
    )
    (example,) = examples_of(event, AdapterConfig())
    assert example.cost == 0.75


def test_only_what_a_person_wrote_anew_is_a_demonstration_whatever_rewards_came_before() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    span = with_attributes(events.model_span("r", "junior-0", "a guess"), TOOL_DEFINITIONS=tools)
    edit = {"content": "what is known"}
    found = conversations(
        trajectory(
            span,
            events.reward("r", 0.5),
            events.reward("r", 0.5, target_span_id=span.span_id),
            events.reward("r", 0.5, target_span_id="00f067aa0ba902ff", edit="of a lost span"),
            events.reward("r", 0.0, target_span_id=span.span_id, edit=edit),
        )
    )
    bodies = [example.body for example in found if isinstance(example.body, SftExample)]
    assert [body.messages[-1] for body in bodies] == [
        {"role": "assistant", "content": "a guess"},
        {"role": "assistant", "content": "what is known"},
    ]
    assert [body.tools for body in bodies] == [tools, tools]


@pytest.mark.parametrize("retracted", [False, True])
def test_a_correction_that_its_author_replaced_or_took_back_is_no_demonstration(
    retracted: bool,
) -> None:
    span = events.model_span("r", "junior-0", "a guess")
    first = events.reward("r", 0.0, target_span_id=span.span_id, edit="what was thought")
    second = events.reward(
        "r",
        0.0,
        target_span_id=span.span_id,
        edit="what is known",
        supersedes=first.event_id,
        retracted=retracted,
    )
    _, *edited = conversations(trajectory(span, first, second))
    assert [example.retracted for example in edited] == [True, retracted]
