"""Runs: the same manifest gives the same weights, what is cut short goes on, and what goes wrong
says so.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.training.jobs import Job
from learners.datasets import Origin, PreferenceRow, PromptRow, RlRow, SftRow
from learners.graders import GradedAnswer
from learners.training import tables
from learners.training.config import ADAPTER_FILE, HEADS, LINEAGE, MODEL, ROWS, AnyConfig, Method
from learners.training.errors import TrainingError
from learners.training.runs import run
from learners.training.weights import load, prompt_and_answer, turns
from schemas.checkpoints import OffsetRange
from schemas.examples import Example, ExampleEvent, RlExample, SftExample
from schemas.identifiers import derived_event_id
from schemas.manifests import Manifest
from tests import events
from tests.training.school import message_of
from tests.training.tiny import TOOLS, tasks

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TASKS = tasks()[:24]
QUICK: dict[Method, dict[str, Any]] = {
    "sft": {"learning_rate": 3e-3, "steps": 6, "special_tokens": MARKS},
    "dpo": {"learning_rate": 1e-3, "steps": 4},
    "grpo": {
        "learning_rate": 1e-3,
        "steps": 2,
        "graders": ["tests.training.test_trainers:variety"],
        "response_tokens": 12,
    },
    "ppo": {"learning_rate": 1e-3, "epochs": 1},
}


def variety(answer: GradedAnswer) -> float:
    """Grade what even an untrained model does more or less of."""
    return len(set(answer.text)) / max(1, len(answer.text))


def config(folder: Path, method: Method, **more: Any) -> Any:
    common = {
        "method": method,
        "base": str(folder),
        "lora": None,
        "batch": 8,
        "micro_batch": 8,
        "max_length": 128,
    }
    dataset = {"held_out": 0.0, "least_reward": 0.0}
    return TypeAdapter[AnyConfig](AnyConfig).validate_python(
        common | {"dataset": dataset} | QUICK[method] | more
    )


def examples(method: Method = "sft") -> list[ExampleEvent]:
    """Return two answers to each task, one of them right, as the head of a method gives them."""
    found = []
    for number, task in enumerate(TASKS):
        for kind, text in enumerate((task.answer, task.wrong)):
            ids = [1 + (number * 7 + kind + index) % 200 for index in range(5)]
            bodies = (
                SftExample(node="w", messages=[*task.messages, message_of(text)], tools=TOOLS),
                RlExample(
                    node="w",
                    prompt=task.messages,
                    response=message_of(text),
                    tools=TOOLS,
                    prompt_token_ids=[5, 6, 7 + number],
                    response_token_ids=ids,
                    response_logprobs=[-5.0] * 5,
                    checkpoint="v1",
                ),
            )
            for body in bodies:
                if body.head != HEADS[method]:
                    continue
                source = derived_event_id(events.at(0), "example", f"{task.id}-{kind}-{body.head}")
                example = Example(
                    target="writer",
                    task_id=task.id,
                    reward=task.reward(text),
                    reward_revision=1,
                    source_event_ids=[source],
                    expected=task.label,
                    body=body,
                )
                found.append(
                    ExampleEvent(
                        event_id=source, rollout_id="r", time=events.at(0), payload=example
                    )
                )
    return found


def quiet(*_: Any) -> None:
    """Report nothing."""


def digest(folder: Path) -> str:
    return sha256((folder / MODEL / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("method", list(QUICK))
def test_the_same_run_twice_gives_the_same_weights(
    base: Path, tmp_path: Path, method: Method
) -> None:
    settings, taught = config(base, method), examples(method)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        run(taught, settings, None, {"target": "writer", "parent": None}, folder, quiet)
    assert digest(first) == digest(second)
    assert (first / ROWS).read_bytes() == (second / ROWS).read_bytes()
    before, after = (
        AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (base, first / MODEL)
    )
    changed = [
        name
        for name in before
        if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    ]
    assert changed
    told = orjson.loads((first / MODEL / LINEAGE).read_bytes())
    assert told["events"] == sorted(event.event_id for event in taught)
    assert told["config"]["method"] == method
    assert method.upper() in (first / MODEL / "README.md").read_text()


def test_marks_are_single_tokens_that_survive_saving_and_decoding(
    base: Path, tmp_path: Path
) -> None:
    run(examples(), config(base, "sft"), None, {}, tmp_path, quiet)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / MODEL)
    for mark in MARKS:
        assert len(tokenizer(mark)["input_ids"]) == 1
    assert (
        tokenizer.decode(tokenizer(TASKS[0].answer)["input_ids"], skip_special_tokens=True)
        == TASKS[0].answer
    )


def test_only_what_the_assistant_said_is_learned(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [
        {"role": "user", "content": "book two seats to rome"},
        {"role": "assistant", "content": "which class?"},
        {"role": "user", "content": "any"},
        {"role": "assistant", "content": "done"},
    ]
    parts = turns(tokenizer, messages, TOOLS)
    assert [text for text, said in parts if said] == ["which class?<|end|>", "done<|end|>"]
    whole = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    assert "".join(text for text, _ in parts) == whole.rstrip()
    assert prompt_and_answer(tokenizer, messages[:3], messages[3], TOOLS)[1] == "done<|end|>"


def test_a_template_that_rewrites_the_prompt_is_refused_and_one_that_drops_thoughts_is_not(
    base: Path,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(TrainingError, match="changes the prompt"):
        turns(tokenizer, messages, [])
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content if loop.last or m.role == 'user' else m.content.split('|')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    thought = [
        *messages[:1],
        {"role": "assistant", "content": "hm|b"},
        {"role": "user", "content": "c"},
        messages[1],
    ]
    assert turns(tokenizer, thought, []) == [
        ("<user>a<assistant>b<user>c<assistant>", False),
        ("b", True),
    ]


def test_a_run_that_was_cut_short_goes_on_and_ends_where_it_would_have(
    base: Path, tmp_path: Path
) -> None:
    settings = config(base, "sft", save_every=2)

    class CutShortError(Exception):
        pass

    def cut(step: int, *_: Any) -> None:
        if step == 5:
            raise CutShortError

    run(examples(), settings, None, {}, tmp_path / "whole", quiet)
    with pytest.raises(CutShortError):
        run(examples(), settings, None, {}, tmp_path / "cut", cut)
    steps: list[int] = []
    run(examples(), settings, None, {}, tmp_path / "cut", lambda step, *_: steps.append(step))
    assert steps[0] == 5, "it went on from the state after the fourth"
    assert digest(tmp_path / "whole") == digest(tmp_path / "cut")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"learning_rate": 1e30, "gradient_clip": 1e30, "warmup": 0.0}, "lower learning_rate"),
        ({"max_length": 8}, "longer than max_length = 8"),
        ({"base": "/nowhere/at-all"}, "weights of /nowhere/at-all cannot be loaded"),
        ({"backend": "unsloth"}, "needs a CUDA GPU"),
        ({"dataset": {"least_reward": 1.0, "nodes": ["nobody"]}}, "none of 0 rows"),
    ],
)
def test_what_goes_wrong_says_so(
    base: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        run(examples(), config(base, "sft", **more), None, {}, tmp_path, quiet)
    assert not (tmp_path / MODEL).exists()


def test_training_stops_when_what_is_held_out_gets_worse_and_keeps_the_best(
    base: Path, tmp_path: Path
) -> None:
    """What is held out contradicts what is trained on, so that learning the one is unlearning the
    other.
    """
    settings = config(
        base,
        "sft",
        steps=200,
        learning_rate=5e-3,
        evaluate_every=5,
        patience=2,
        dataset={"held_out": 0.3, "least_reward": 0.0},
    )
    contradicted = []
    for event in examples():
        other = message_of("no " * 12)
        body = event.payload.body
        assert isinstance(body, SftExample)
        held_out = sft_is_held_out(event, settings)
        if held_out:
            body = body.model_copy(update={"messages": [*body.messages[:-1], other]})
        contradicted.append(
            event.model_copy(update={"payload": event.payload.model_copy(update={"body": body})})
        )
    seen: list[dict[str, float]] = []
    metrics = run(contradicted, settings, None, {}, tmp_path, lambda _, __, m: seen.append(m))
    losses = [m["eval_loss"] for m in seen if "eval_loss" in m]
    assert metrics["steps"] < 200
    assert metrics["eval_loss"] == pytest.approx(min(losses))
    assert losses[-1] > min(losses)


def sft_is_held_out(event: ExampleEvent, settings: Any) -> bool:
    from learners.datasets import sft_rows

    return sft_rows([event], settings.dataset)[0].origin.held_out


def test_an_adapter_is_saved_beside_its_base_or_merged(base: Path, tmp_path: Path) -> None:
    lora = {"rank": 4, "merge": False}
    run(
        examples(),
        config(base, "sft", lora=lora, special_tokens=[]),
        None,
        {},
        tmp_path / "adapter",
        quiet,
    )
    assert (tmp_path / "adapter" / MODEL / ADAPTER_FILE).exists()
    again = config(base, "sft", lora=lora, special_tokens=[])
    child = load(again, tmp_path / "adapter" / MODEL)
    assert type(child.model).__name__ == "PeftModelForCausalLM"
    merged = config(base, "sft", lora=lora | {"merge": True}, special_tokens=[])
    run(examples(), merged, None, {}, tmp_path / "merged", quiet)
    assert (tmp_path / "merged" / MODEL / "model.safetensors").exists()


def test_an_adapter_that_goes_on_learning_is_saved_alone(base: Path, tmp_path: Path) -> None:
    lora = {"rank": 4, "merge": False}
    run(
        examples(),
        config(base, "sft", lora=lora, special_tokens=[]),
        None,
        {},
        tmp_path / "parent",
        quiet,
    )
    parent = tmp_path / "parent" / MODEL
    run(examples("dpo"), config(base, "dpo", lora=lora), parent, {}, tmp_path / "child", quiet)
    child = tmp_path / "child" / MODEL
    assert [path.name for path in child.iterdir() if path.is_dir()] == [], (
        "TRL's copy of the parent is left out"
    )
    assert json.loads((child / ADAPTER_FILE).read_text())["base_model_name_or_path"] == str(base)


def test_new_tokens_need_whole_weights(base: Path) -> None:
    with pytest.raises(ValidationError, match="which an adapter's base lacks"):
        config(base, "sft", lora={"rank": 4, "merge": False}, special_tokens=["<think>"])


def test_unsloth_is_asked_for_before_what_it_changes_is_imported() -> None:
    changed = {"trl", "transformers", "peft"}
    imports = "import sys, infra.installation.training_run, learners.training.backend"
    program = f"{imports}; print(sorted({changed} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_preferences_begin_at_the_parent(base: Path, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    run(
        examples("dpo"),
        config(base, "dpo"),
        None,
        {},
        tmp_path,
        lambda _, __, metrics: seen.append(metrics),
    )
    losses = [metrics["loss"] for metrics in seen if "loss" in metrics]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3), (
        "where policy and reference are one, no answer is preferred"
    )
    assert losses[-1] < losses[0]


ORIGIN = Origin("default", "w", "t", held_out=True, event_ids=("a", "b"))
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "é"}]


@pytest.mark.parametrize(
    "row",
    [
        SftRow(MESSAGES, TOOLS, 0.5, ORIGIN),
        PreferenceRow(
            MESSAGES, MESSAGES[0], {"role": "assistant", "content": None}, [], 0.25, ORIGIN
        ),
        PromptRow(MESSAGES, TOOLS, {"name": "f", "arguments": {}}, ORIGIN),
        PromptRow(MESSAGES, TOOLS, None, ORIGIN),
        RlRow([1, 2], [3], [-0.5], 1.0, "g", "v1", ORIGIN),
    ],
    ids=lambda row: type(row).__name__,
)
def test_rows_are_read_as_they_were_written(tmp_path: Path, row: Any) -> None:
    tables.write([row, row], tmp_path / "rows.parquet")
    assert tables.read(tmp_path / "rows.parquet", type(row)) == [row, row]


def test_a_job_is_known_by_what_decides_its_outcome(base: Path) -> None:
    manifest = Manifest(
        target="writer",
        head="sft",
        examples=3,
        number=1,
        ranges=[OffsetRange(topic="t", partition=0, first=0, last=2)],
    )
    job = Job(target="writer", config=config(base, "sft"), manifest=manifest)
    changes: list[Callable[[Job], Job]] = [
        lambda j: j.model_copy(update={"config": config(base, "sft", seed=7)}),
        lambda j: j.model_copy(update={"parent": "v1"}),
        lambda j: j.model_copy(update={"manifest": manifest.model_copy(update={"number": 2})}),
        lambda j: j.model_copy(update={"target": "reader"}),
    ]
    assert len({job.id, *(change(job).id for change in changes)}) == 5
    assert job.id == Job.model_validate_json(job.model_dump_json()).id
