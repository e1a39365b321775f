"""Examples become rows: what was good enough, once, by task, and never without the events it came
from.
"""

from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from learners.datasets import (
    DatasetConfig,
    pack_rows,
    preference_rows,
    prompt_rows,
    rl_rows,
    sft_rows,
)
from schemas.examples import Example, ExampleEvent, RlExample, SftExample
from schemas.identifiers import new_event_id
from tests import events

ALL = DatasetConfig(held_out=0.0)
HELD_OUT = ["task-7", "task-15", "task-16"]
"""Tasks among `task-0` to `task-19` that a share of 0.3 holds out."""


def example(
    body: Any, reward: float, *, task: str | None = "t1", at: float = 0.0, **more: Any
) -> ExampleEvent:
    source = more.pop("source", None) or new_event_id()
    tenant = more.pop("tenant", "default")
    example = Example(
        target="writer",
        task_id=task,
        reward=reward,
        reward_revision=more.pop("revision", 1),
        source_event_ids=[new_event_id(), source],
        body=body,
        **more,
    )
    return ExampleEvent(rollout_id="r", tenant=tenant, time=events.at(at), payload=example)


def said(answer: str, question: str = "why?", node: str = "writer") -> SftExample:
    return SftExample(
        node=node,
        messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    )


def sampled(answer: str, tokens: int = 2, logprobs: int | None = None) -> RlExample:
    return RlExample(
        node="writer",
        prompt=[{"role": "user", "content": "why?"}],
        response={"role": "assistant", "content": answer},
        prompt_token_ids=[1, 2, 3],
        response_token_ids=[4] * tokens,
        response_logprobs=[-0.5] * (tokens if logprobs is None else logprobs),
        checkpoint="v1",
    )


def test_what_earned_enough_is_imitated_once_with_all_its_events() -> None:
    twice = [example(said("because"), 0.8), example(said("because"), 0.95)]
    (row,) = sft_rows(
        [*twice, example(said("no idea"), 0.79), example(sampled("because"), 1.0)], ALL
    )
    assert row.messages[-1]["content"] == "because"
    assert row.reward == 0.95
    assert set(row.origin.event_ids) == {
        *(event.event_id for event in twice),
        *(source for event in twice for source in event.payload.source_event_ids),
    }


def test_a_correction_replaces_what_it_corrects() -> None:
    source = new_event_id()
    corrected = [
        example(said("because"), 0.9, source=source),
        example(said("because"), 0.1, source=source, revision=2),
    ]
    assert sft_rows(corrected, ALL) == []


def test_other_nodes_tenants_and_stale_examples_are_left_out() -> None:
    examples = [
        example(said("old"), 1.0, at=0),
        example(said("of another node", node="reviewer"), 1.0, at=100),
        example(said("of another tenant"), 1.0, at=100, tenant="acme"),
        example(said("new"), 1.0, at=100),
    ]
    config = DatasetConfig(
        held_out=0.0,
        nodes=frozenset({"writer"}),
        tenants=frozenset({"default"}),
        stale_after=timedelta(seconds=50),
    )
    assert [row.messages[-1]["content"] for row in sft_rows(examples, config)] == ["new"]
    assert len(sft_rows(examples, ALL)) == 4


def test_a_tenant_whose_rewards_are_unlike_all_others_is_left_out_where_that_is_wanted() -> None:
    honest = [(f"tenant-{n}", 0.5 + 0.02 * n) for n in range(4)]
    examples = [
        example(said(f"{tenant} {number}", f"{number}?"), reward, tenant=tenant, task=str(number))
        for tenant, reward in [*honest, ("poisoner", 1.0), ("newcomer", 1.0)]
        for number in range(3 if tenant == "newcomer" else 20)
    ]

    def tenants(**more: Any) -> set[str]:
        config = ALL.model_copy(update={"least_reward": 0.0, **more})
        return {row.origin.tenant for row in sft_rows(examples, config)}

    assert "poisoner" in tenants()
    assert tenants(outliers=3.5) == {*(tenant for tenant, _ in honest), "newcomer"}, (
        "of three examples nobody can tell"
    )


def remaining(means: list[float], outliers: float) -> list[float]:
    """Return the mean rewards of the tenants that are kept, of tenants with these."""
    examples = [
        example(said(f"{tenant} {number}", f"{number}?"), mean, tenant=f"tenant-{tenant}")
        for tenant, mean in enumerate(means)
        for number in range(20)
    ]
    config = ALL.model_copy(update={"least_reward": 0.0, "outliers": outliers})
    return sorted({row.reward for row in sft_rows(examples, config)})


def test_four_tenants_tell_who_is_unlike_the_others_and_three_do_not() -> None:
    assert remaining([0.5, 0.51, 0.52, 1.0], outliers=3.5) == [0.5, 0.51, 0.52]
    assert remaining([0.5, 0.51, 1.0], outliers=3.5) == [0.5, 0.51, 1.0]


def test_the_deviation_of_tenants_is_estimated_as_that_of_a_normal_distribution() -> None:
    """The median distance is 0.1, so the deviation is 0.1 / 0.6745, of which 0.4 is 2.7 times."""
    means = [0.4, 0.4, 0.5, 0.5, 0.5, 0.6, 0.9]
    assert 0.9 in remaining([0.3, *means], outliers=2.8)
    assert 0.9 not in remaining([0.3, *means], outliers=2.6)


def test_a_tenant_just_at_the_limit_is_kept() -> None:
    """Where most tenants are alike, the least deviation counts: 25 of it are 0.25."""
    assert remaining([0.5, 0.5, 0.5, 0.75], outliers=25.0) == [0.5, 0.75]


def test_pairs_are_of_one_prompt_and_one_tenant_and_differ_by_the_margin() -> None:
    examples = [
        example(sampled("good"), 0.9),
        example(said("middling"), 0.6),
        example(sampled("bad"), 0.1),
        example(sampled("bad"), 0.5),
        example(said("elsewhere", question="how?"), 0.0),
        example(said("of another tenant"), 0.0, tenant="acme"),
    ]
    rows = preference_rows(examples, DatasetConfig(held_out=0.0, margin=0.3, pairs=3))
    assert [
        (row.chosen["content"], row.rejected["content"], round(row.margin, 3)) for row in rows
    ] == [
        ("good", "bad", 0.8),
        ("middling", "bad", 0.5),
        ("good", "bad", 0.4),
    ]
    assert all(len(row.origin.event_ids) == 6 for row in rows)


def test_a_pair_whose_rewards_differ_by_just_the_margin_has_their_prompt_and_tools() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    bodies = [said(answer).model_copy(update={"tools": tools}) for answer in ("good", "bad")]
    examples = [example(body, reward) for body, reward in zip(bodies, (0.75, 0.25), strict=True)]
    (row,) = preference_rows(examples, DatasetConfig(held_out=0.0, margin=0.5))
    assert row.prompt == [{"role": "user", "content": "why?"}]
    assert row.tools == tools


def test_samples_need_tokens_and_their_probabilities() -> None:
    examples = [
        example(said("e"), 0.5),
        example(sampled("c", 2, 1), 0.5),
        example(sampled("d", 0), 0.5),
        example(sampled("a"), 0.5),
        example(sampled("b"), 0.7),
    ]
    first, second = rl_rows(examples, ALL)
    assert (first.prompt_token_ids, first.response_token_ids) == ([1, 2, 3], [4, 4])
    assert first.response_logprobs == [-0.5, -0.5]
    assert (first.reward, first.checkpoint, first.origin.task) == (0.5, "v1", "t1")
    assert second.reward == 0.7


def test_samples_of_one_prompt_are_one_group_also_where_they_are_one_token_long() -> None:
    elsewhere = sampled("c").model_copy(update={"prompt": [{"role": "user", "content": "how?"}]})
    bodies = [sampled("a", 1), sampled("b"), elsewhere]
    first, second, third = rl_rows([example(body, 0.5) for body in bodies], ALL)
    assert first.group == second.group != third.group


def test_what_is_held_out_is_so_by_task_and_stays_so() -> None:
    examples = [
        example(said(f"answer {n}", question=f"{n}?"), 1.0, task=f"task-{n % 50}")
        for n in range(200)
    ]
    rows = sft_rows(examples, DatasetConfig(held_out=0.3))
    by_task: dict[str, set[bool]] = {}
    for row in rows:
        by_task.setdefault(row.origin.task, set()).add(row.origin.held_out)
    assert all(len(held) == 1 for held in by_task.values())
    assert 5 <= sum(held == {True} for held in by_task.values()) <= 25
    assert sft_rows(examples, DatasetConfig(held_out=0.3)) == rows


def test_rollouts_of_a_held_out_split_are_never_trained_on() -> None:
    same = [example(said("because"), 1.0), example(said("because"), 1.0, split="validation")]
    (row,) = sft_rows(same, ALL)
    assert row.origin.held_out
    (pair,) = preference_rows([*same[:1], example(said("no"), 0.0, split="test")], ALL)
    assert pair.origin.held_out


def test_a_conversation_is_split_before_its_last_message_and_says_whose_node_it_is_of() -> None:
    messages = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    answer = {"role": "assistant", "content": "because"}
    body = SftExample(node="reviewer", messages=[*messages, answer])
    (row,) = prompt_rows([example(body, 1.0)], ALL)
    assert (row.prompt, row.expected) == (messages, answer)
    assert row.origin.node == "reviewer"


def test_the_same_tasks_are_held_out_by_every_release() -> None:
    """Else a task that was held out yesterday is trained on tomorrow."""
    examples = [example(said("yes", f"{n}?"), 1.0, task=f"task-{n}") for n in range(20)]
    rows = sft_rows(examples, DatasetConfig(held_out=0.3))
    held_out = [row.origin.task for row in rows if row.origin.held_out]
    assert held_out == HELD_OUT


def test_a_prompt_is_the_same_whatever_the_order_of_its_keys() -> None:
    turned = SftExample(
        node="writer",
        messages=[
            {"content": "why?", "role": "user"},
            {"content": "because", "role": "assistant"},
        ],
    )
    assert len(sft_rows([example(said("because"), 1.0), example(turned, 1.0)], ALL)) == 1


def test_a_example_without_a_task_is_split_by_its_prompt() -> None:
    first, second = (example(said(answer), 1.0, task=None) for answer in ("a", "b"))
    rows = sft_rows([first, second], ALL)
    assert rows[0].origin.task == rows[1].origin.task != ""
    (elsewhere,) = sft_rows([example(said("a", "how?"), 1.0, task=None)], ALL)
    assert elsewhere.origin.task != rows[0].origin.task


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 100))
def test_packing_keeps_the_budget_and_every_row_that_fits_once(
    lengths: list[int], budget: int
) -> None:
    bins = pack_rows(lengths, budget)
    assert sorted(index for rows in bins for index in rows) == [
        i for i, n in enumerate(lengths) if n <= budget
    ]
    assert all(sum(lengths[index] for index in rows) <= budget for rows in bins)
    fewest = -(-sum(n for n in lengths if n <= budget) // budget)
    assert len(bins) <= 2 * fewest + 1


def test_rows_that_fill_a_sequence_exactly_share_it_and_long_ones_are_placed_first() -> None:
    assert pack_rows([5, 5], 10) == [[0, 1]]
    assert [sorted(rows) for rows in pack_rows([2, 2, 2, 8, 8, 8], 10)] == [[0, 3], [1, 4], [2, 5]]


def test_calls_that_no_schema_allows_are_not_imitated() -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tools = [{"type": "function", "function": {"name": "book", "parameters": parameters}}]

    def calling(name: str, arguments: str) -> ExampleEvent:
        call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
        return example(
            SftExample(
                node="writer", messages=[{"role": "user", "content": "?"}, answer], tools=tools
            ),
            1.0,
        )

    right = calling("book", '{"n": 1}')
    wrong = [
        calling("book", '{"n": "1"}'),
        calling("book", "{"),
        calling("cancel", '{"n": 1}'),
        calling("book", "{}"),
    ]
    (row,) = sft_rows([*wrong, right], ALL)
    assert row.origin.event_ids[0] == right.event_id
    assert len(sft_rows([*wrong, right], ALL.model_copy(update={"valid_calls": False}))) == 5


def test_a_prompt_comes_once_with_its_best_answer_and_all_its_events() -> None:
    answers = [example(said("because"), 0.8), example(said("so"), 0.95), example(said("no"), 0.1)]
    (row,) = prompt_rows(answers, ALL)
    assert row.prompt == [{"role": "user", "content": "why?"}]
    assert row.expected == {"role": "assistant", "content": "so"}
    assert row.tools == []
    assert row.origin.event_ids == tuple(
        event_id
        for event in answers
        for event_id in (event.event_id, *event.payload.source_event_ids)
    )
    assert not row.origin.held_out


def test_a_prompts_label_is_expected_before_its_best_answer() -> None:
    (row,) = prompt_rows([example(said("because"), 1.0, expected="label")], ALL)
    assert row.expected == "label"


def test_a_prompt_whose_answers_all_earned_too_little_expects_nothing() -> None:
    (at_least,) = prompt_rows([example(said("because"), 0.8)], ALL)
    (below,) = prompt_rows([example(said("because"), 0.79)], ALL)
    assert at_least.expected == {"role": "assistant", "content": "because"}
    assert below.expected is None


def test_prompts_of_two_tenants_or_with_other_words_are_apart() -> None:
    rows = prompt_rows(
        [
            example(said("because"), 1.0),
            example(said("because"), 1.0, tenant="acme"),
            example(said("then", question="when?"), 1.0),
        ],
        ALL,
    )
    found = [(row.origin.tenant, row.prompt[0]["content"]) for row in rows]
    assert found == [("default", "why?"), ("acme", "why?"), ("default", "when?")]


def test_a_prompt_is_held_out_where_one_of_its_answers_is() -> None:
    answers = [example(said("because"), 1.0), example(said("so"), 0.9, split="validation")]
    (row,) = prompt_rows(answers, ALL)
    assert row.origin.held_out
