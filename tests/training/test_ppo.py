"""PPO is verl's own: its numbers are those of the formulas written out, and its update does what it
is for.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from learners.datasets import Origin, RlRow
from learners.training import engine, ppo
from learners.training.config import ADAPTER_FILE, LoraSettings, PpoConfig
from learners.training.engine import TrainingEngine, padded_tensors, policy_loss
from learners.training.errors import TrainingError
from learners.training.weights import load, make_repeatable, save

PROMPTS = [[5, 6, 7, 8], [9, 10], [5, 6, 7, 8], [9, 10], [11, 12, 13]]
ANSWERS = [[20, 21, 22], [23, 24], [25, 26, 27, 28], [29], [30, 31]]
REWARDS = [1.0, 0.0, 0.2, 0.9, 0.5]


def config(base: Path, **more: Any) -> PpoConfig:
    settings: dict[str, Any] = {
        "lora": None,
        "batch": 4,
        "micro_batch": 4,
        "learning_rate": 3e-3,
        "kl": 0.0,
    }
    return PpoConfig(base=str(base), **(settings | more))


def rows(base: Path, off_by: float = 0.0) -> list[RlRow]:
    model = AutoModelForCausalLM.from_pretrained(base)
    return [
        RlRow(
            prompt,
            answer,
            [value - off_by for value in logprobs(model, prompt, answer)],
            reward,
            "-".join(map(str, prompt)),
            "v1",
            Origin("default", "writer", str(prompt), held_out=False, event_ids=("e",)),
        )
        for prompt, answer, reward in zip(PROMPTS, ANSWERS, REWARDS, strict=True)
    ]


def logprobs(model: Any, prompt: list[int], answer: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    found = torch.log_softmax(logits.float(), dim=-1)
    return [float(found[len(prompt) + index - 1, token]) for index, token in enumerate(answer)]


def prepared(
    base: Path, folder: Path, off_by: float = 0.0, **more: Any
) -> tuple[ppo.PreparedBatch, TrainingEngine]:
    settings = config(base, **more)
    engine.prepare()
    actor = TrainingEngine(base, "language_model", settings, settings.learning_rate, pad=0)
    critic = (
        TrainingEngine(base, "value_model", settings, 1e-3, pad=0)
        if settings.estimator == "gae"
        else None
    )
    return ppo.prepare(rows(base, off_by), actor, critic, settings, pad=0)[0], actor


def test_the_engines_logprobs_are_those_of_transformers(base: Path, tmp_path: Path) -> None:
    example, _ = prepared(base, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        assert example.logprobs[row, : len(answer)].tolist() == pytest.approx(
            logprobs(model, prompt, answer), abs=1e-5
        )


def test_advantages_compare_answers_to_one_prompt(base: Path, tmp_path: Path) -> None:
    example, _ = prepared(base, tmp_path)
    for group in ((0, 2), (1, 3)):
        values = [REWARDS[row] for row in group]
        mean, spread = (
            sum(values) / 2,
            abs(values[0] - values[1]) / math.sqrt(2),
        )  # of a sample of two
        for row in group:
            wanted = (REWARDS[row] - mean) / (spread + 1e-6)
            assert example.advantages[row, : len(ANSWERS[row])].tolist() == pytest.approx(
                [wanted] * len(ANSWERS[row]), abs=1e-5
            )
            assert not example.advantages[row, len(ANSWERS[row]) :].any(), (
                "padding has no advantage"
            )


def test_generalized_advantages_are_the_papers(base: Path, tmp_path: Path) -> None:
    discount, decay = 0.9, 0.8
    example, _ = prepared(base, tmp_path, estimator="gae", discount=discount, trace_decay=decay)
    assert example.values is not None
    found, wanted = [], []
    for row, answer in enumerate(ANSWERS):
        values = [*example.values[row, : len(answer)].tolist(), 0.0]
        rewards = [0.0] * (len(answer) - 1) + [REWARDS[row]]
        deltas = [rewards[t] + discount * values[t + 1] - values[t] for t in range(len(answer))]
        # Schulman et al., 2016, equation 16: the discounted sum of what each step brought beyond
        # expectation
        wanted += [
            sum(
                (discount * decay) ** (later - t) * deltas[later] for later in range(t, len(answer))
            )
            for t in range(len(answer))
        ]
        found += (
            example.returns[row, : len(answer)].sub(example.values[row, : len(answer)]).tolist()
        )
    assert found == pytest.approx(wanted, abs=1e-5), "before verl whitens them"
    mask = example.sampled.response_mask.bool()
    assert float(example.advantages[mask].mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(example.advantages[mask].var()) == pytest.approx(1.0, rel=0.3)


def test_weights_correct_for_what_served_and_are_cut_off(base: Path, tmp_path: Path) -> None:
    example, _ = prepared(base, tmp_path)
    assert example.weights is not None
    mask = example.sampled.response_mask.bool()
    assert example.weights[mask].tolist() == pytest.approx([1.0] * int(mask.sum()), abs=1e-4)
    stale, _ = prepared(base, tmp_path, off_by=0.4)
    assert stale.weights is not None
    assert stale.weights[mask].tolist() == pytest.approx(
        [math.exp(0.4)] * int(mask.sum()), abs=1e-3
    )
    far, _ = prepared(base, tmp_path, off_by=3.0)
    assert far.weights is not None
    assert far.weights[mask].tolist() == pytest.approx([2.0] * int(mask.sum()))
    without, _ = prepared(base, tmp_path, importance=False)
    assert without.weights is None


def test_the_loss_is_clipped_as_the_paper_says(base: Path, tmp_path: Path) -> None:
    example, actor = prepared(base, tmp_path)
    chosen = list(range(4))
    tensors = example.of_policy(chosen)
    moved = torch.linspace(-0.5, 0.5, example.logprobs[chosen].numel()).reshape(
        example.logprobs[chosen].shape
    )
    tensors["old_log_probs"] = (
        tensors["old_log_probs"] - moved
    )  # as though the policy had moved by so much
    metrics = actor.step(example.sampled[chosen], tensors, policy_loss(config(base)))
    mask = example.sampled[chosen].response_mask.bool()
    ratio, advantages = torch.exp(moved), example.advantages[chosen]
    clipped = torch.minimum(ratio * advantages, torch.clamp(ratio, 0.8, 1.2) * advantages)
    clipped = torch.where(
        advantages < 0, torch.maximum(clipped, 3.0 * advantages), clipped
    )  # dual clip, arXiv:1912.09729
    assert metrics["actor/pg_loss"] == pytest.approx(float(-clipped[mask].mean()), abs=1e-4)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)])
def test_what_was_rewarded_becomes_likelier(
    base: Path, tmp_path: Path, lora: LoraSettings | None
) -> None:
    steps = 6 if lora is None else 20
    settings = config(base, lora=lora, epochs=steps, learning_rate=3e-3 if lora is None else 2e-2)
    make_repeatable(settings)
    before = rows(base)
    loaded = load(settings.model_copy(update={"lora": None}), None)
    seen: list[int] = []
    measured = ppo.train(
        loaded, before, settings, tmp_path / "run", lambda step, *_: seen.append(step)
    )
    assert seen == list(range(1, steps + 1))
    assert (measured["rows"], measured["groups"]) == (4.0, 2.0), (
        "an answer without another to compare it with teaches nothing"
    )
    change = [
        sum(logprobs(loaded.model, r.prompt_token_ids, r.response_token_ids))
        - sum(r.response_logprobs)
        for r in before
    ]
    assert change[0] > 0.1 > -0.1 > change[2]
    assert change[3] > 0.1 > -0.1 > change[1]


def test_a_run_that_was_cut_short_goes_on_and_ends_where_it_would_have(
    base: Path, tmp_path: Path
) -> None:
    settings = config(base, epochs=4, save_every=1)

    class CutShortError(Exception):
        pass

    def cut(step: int, *_: Any) -> None:
        if step == 3:
            raise CutShortError

    def weights(model: Any) -> torch.Tensor:
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    whole, again = load(settings, None), load(settings, None)
    ppo.train(whole, rows(base), settings, tmp_path / "whole", lambda *_: None)
    with pytest.raises(CutShortError):
        ppo.train(load(settings, None), rows(base), settings, tmp_path / "cut", cut)
    steps: list[int] = []
    ppo.train(again, rows(base), settings, tmp_path / "cut", lambda step, *_: steps.append(step))
    assert steps == [3, 4]
    assert sorted(folder.name for folder in (tmp_path / "cut").glob("actor-*")) == ["actor-4"], (
        "older states are gone"
    )
    assert torch.equal(weights(whole.model), weights(again.model))


def test_an_adapter_is_gone_on_with(base: Path, tmp_path: Path) -> None:
    """The child's adapter, on the same base, begins where the parent's ended."""
    settings = config(
        base, lora=LoraSettings(rank=4, alpha=8, merge=False), epochs=10, learning_rate=2e-2
    )
    make_repeatable(settings)
    whole = settings.model_copy(update={"lora": None})
    parent = load(whole, None)
    ppo.train(parent, rows(base), settings, tmp_path / "one", lambda *_: None)
    save(parent, settings, tmp_path / "parent")
    child = load(whole, None)
    unmoved = settings.model_copy(update={"learning_rate": 1e-12, "epochs": 1})
    ppo.train(child, rows(base), unmoved, tmp_path / "two", lambda *_: None, tmp_path / "parent")
    save(child, settings, tmp_path / "child")
    for found in ("parent", "child"):
        assert json.loads((tmp_path / found / ADAPTER_FILE).read_text())[
            "base_model_name_or_path"
        ] == str(base)
    row = rows(base)[0]
    tokens = row.prompt_token_ids, row.response_token_ids
    trained = logprobs(parent.model, *tokens)
    assert logprobs(child.model, *tokens) == pytest.approx(trained, abs=1e-4)
    assert logprobs(load(whole, None).model, *tokens) != pytest.approx(trained, abs=1e-2)


def test_answers_given_for_one_task_can_be_compared_whatever_was_asked(base: Path) -> None:
    def of(row: RlRow, task: str) -> RlRow:
        return replace(row, origin=replace(row.origin, task=task))

    steps = [of(row, task) for row, task in zip(rows(base), "aabbc", strict=True)]
    by_prompt, by_task = (
        ppo.usable(steps, config(base, compared=what)) for what in ("prompt", "task")
    )
    assert [row.origin.task for row in by_prompt] == ["a", "a", "b", "b"], (
        "two answers to each of two prompts"
    )
    assert [row.origin.task for row in by_task] == ["a", "a", "b", "b"]
    alike = [replace(row, reward=0.5) if row.origin.task == "b" else row for row in steps]
    assert [row.origin.task for row in ppo.usable(alike, config(base, compared="task"))] == [
        "a",
        "a",
    ]


def test_what_cannot_teach_is_said(base: Path, tmp_path: Path) -> None:
    alike = [row for row in rows(base) if row.reward == 1.0]
    with pytest.raises(TrainingError, match="none of 1 answers can be trained on"):
        ppo.train(load(config(base), None), alike, config(base), tmp_path / "run", lambda *_: None)


def test_padding_goes_left_of_prompts_and_right_of_answers() -> None:
    sampled = padded_tensors([[1, 2], [3]], [[4], [5, 6]], [[-0.1], [-0.2, -0.3]], pad=0)
    assert sampled.prompts.tolist() == [[1, 2], [0, 3]]
    assert sampled.prompt_mask.tolist() == [[1, 1], [0, 1]]
    assert sampled.responses.tolist() == [[4, 0], [5, 6]]
    assert sampled.response_mask.tolist() == [[1, 0], [1, 1]]
    assert sampled[[1]].served_logprobs.tolist() == [pytest.approx([-0.2, -0.3])]
