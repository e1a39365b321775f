"""A language model made here, and a family of tasks that it can learn: calls of tools, read from a
sentence.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from learners.graders import GradedAnswer, right_tool_call

CITIES = ("oslo", "rome", "lima", "cairo", "paris", "delhi", "quito", "tokyo")
COUNTS = ("one", "two", "three", "four", "five", "six")
NUMBERS = {name: number for number, name in enumerate(COUNTS, start=1)}
VERBS = {"book": "book_seats", "cancel": "cancel_seats"}

TEMPLATE = (
    "{%- if tools %}<|tools|>{% for tool in tools %}{{ tool.function.name }} {% endfor"
    " %}<|end|>\n{% endif -%}"
    "{%- for message in messages -%}"
    "<|{{ message.role }}|>{{ message.content or '' }}"
    "{%- for call in message.tool_calls or [] -%}"
    "<tool_call>"
    '{"name":"{{ call.function.name }}","arguments":{{ call.function.arguments if'
    " call.function.arguments is string"
    " else call.function.arguments | tojson }}}"
    "</tool_call>"
    "{%- endfor -%}"
    "<|end|>\n"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def tool(name: str) -> dict[str, Any]:
    """Return a tool in OpenAI's format."""
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": list(CITIES)},
            "seats": {"type": "integer", "minimum": 1},
        },
        "required": ["city", "seats"],
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": name, "parameters": parameters},
    }


TOOLS = [tool(name) for name in VERBS.values()]


class Task:
    """One request, and the call it asks for; some ask for none.

    Attributes:
        id: of the task.
        label: `{"name", "arguments"}`; None where no tool is to be called.
    """

    def __init__(self, verb: str, count: str, city: str, hypothetical: bool) -> None:
        self.id = f"{'if-' if hypothetical else ''}{verb}-{count}-{city}"
        prefix = "imagine you " if hypothetical else ""
        self.question = f"{prefix}{verb} {count} seats to {city}"
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": self.question}]
        call: dict[str, Any] = {
            "name": VERBS[verb],
            "arguments": {"city": city, "seats": NUMBERS[count]},
        }
        self.label = None if hypothetical else call

    @property
    def answer(self) -> str:
        """The right answer, as a model writes it."""
        if self.label is None:
            return "i only imagine it"
        return f"<tool_call>{json.dumps(self.label, separators=(',', ':'))}</tool_call>"

    @property
    def wrong(self) -> str:
        """An answer that looks right and is not."""
        if self.label is None:
            return Task("book", "one", "oslo", hypothetical=False).answer
        arguments = self.label["arguments"]
        other = {"city": arguments["city"], "seats": arguments["seats"] % len(COUNTS) + 1}
        call = json.dumps(self.label | {"arguments": other}, separators=(",", ":"))
        return f"<tool_call>{call}</tool_call>"

    @property
    def opposite(self) -> str:
        """The same call of the other tool; a call where none is asked for."""
        if self.label is None:
            return self.wrong
        (other,) = set(VERBS.values()) - {self.label["name"]}
        call = json.dumps(self.label | {"name": other}, separators=(",", ":"))
        return f"<tool_call>{call}</tool_call>"

    def reward(self, text: str) -> float:
        """Return what an answer earns."""
        return right_tool_call(GradedAnswer(text, self.messages, TOOLS, self.label))


def tasks() -> list[Task]:
    """Return all tasks, in an order that tells nothing."""
    found = [
        Task(verb, count, city, hypothetical)
        for verb in VERBS
        for count in COUNTS
        for city in CITIES
        for hypothetical in (False, True)
        if not hypothetical or NUMBERS[count] <= 2
    ]
    Random(7).shuffle(found)
    return found


def make_model(
    folder: Path,
    seed: int = 0,
    corpus: Sequence[str] | None = None,
    vocabulary: int = 512,
    context: int = 256,
) -> Path:
    """Write an untrained model of a hundred thousand parameters, and a tokenizer trained on a
    corpus.

    Args:
        corpus: None takes the tasks' words.
    """
    if corpus is None:
        corpus = [
            f"<|user|>{task.question}<|end|>\n<|assistant|>{task.answer}<|end|>" for task in tasks()
        ]
    specials = [
        "<|pad|>",
        "<|end|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|tool|>",
        "<|tools|>",
    ]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = ByteLevel()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=specials[2:],
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
