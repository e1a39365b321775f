"""Weights: loads them, adds adapters and tokens, checks them, and saves them for a server."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from learners.training.backend import unsloth_trains
from learners.training.config import ADAPTER_FILE, AnyConfig, SftConfig, TrainingConfig
from learners.training.errors import TrainingError


@dataclass
class Loaded:
    """A model that is to be trained.

    Attributes:
        unsloth: whether unsloth loaded it. Then unsloth must save it too, because it may hold the
            base in 4 bits.
        processor: reads the images and text of a vision model; None for other models.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    unsloth: bool = False
    processor: Any = None


def make_repeatable(config: TrainingConfig) -> None:
    """Seed all random numbers and fix the order of sums, so that a run on a CPU repeats bit for
    bit.
    """
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    if not torch.cuda.is_available():
        # On a CPU only: some GPU operations have no deterministic form, and torch would raise.
        torch.use_deterministic_algorithms(mode=True)


def load(config: AnyConfig, parent: Path | None) -> Loaded:
    """Load the parent's weights, or the base's if there is no parent.

    Args:
        parent: folder of whole weights, or of an adapter to the base.

    Raises:
        TrainingError: the weights cannot be loaded, or the configuration asks for unsloth, which
            cannot run here.
    """
    if unsloth_trains(config):
        return _load_with_unsloth(config, parent)
    adapter = parent if is_adapter(parent) else None
    source = str(parent) if parent is not None and adapter is None else config.base
    try:
        # An adapter's folder has the tokenizer that it was trained with.
        tokenizer = AutoTokenizer.from_pretrained(adapter or source)
        sees = hasattr(AutoConfig.from_pretrained(source), "vision_config")
        processor = AutoProcessor.from_pretrained(adapter or source) if sees else None
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        model = kind.from_pretrained(source, dtype=_dtype())
    except (OSError, ValueError) as error:
        raise TrainingError(f"the weights of {source} cannot be loaded: {error}") from error
    if sees and config.method != "sft":
        raise TrainingError(
            f"{source} is a vision model, which only sft can train; the method is {config.method}"
        )
    # Before the adapter: it must see the embeddings in their final size.
    _add_tokens(config, model, tokenizer)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    elif config.lora is not None:
        model = get_peft_model(model, lora_config(config))
    return Loaded(model, tokenizer, processor=processor)


def is_adapter(folder: Path | None) -> bool:
    """Return whether the folder holds an adapter, which needs its base."""
    return folder is not None and (folder / ADAPTER_FILE).exists()


def lora_config(config: TrainingConfig) -> LoraConfig:
    """Return peft's configuration of the adapter."""
    assert config.lora is not None  # noqa: S101 - callers have checked it
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora.modules),
    )


def save(loaded: Loaded, config: TrainingConfig, folder: Path) -> None:
    """Write weights and tokenizer in the format that Hugging Face's loaders read.

    Raises:
        TrainingError: a weight is not a finite number.
    """
    model = loaded.model
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise TrainingError(
                f"{name} has weights that are not finite numbers; try a lower learning_rate"
            )
    merged = isinstance(model, PeftModel) and (config.lora is None or config.lora.merge)
    if merged and loaded.unsloth:
        model.save_pretrained_merged(str(folder), loaded.tokenizer, save_method="merged_16bit")
        return
    if merged:
        model = model.merge_and_unload()
    if isinstance(model, PeftModel):
        # TRL keeps a copy of the parent as a second adapter, which must not be saved.
        model.save_pretrained(folder, selected_adapters=["default"])
    else:
        # Training switches the cache off; a server needs it.
        model.config.use_cache = True
        model.save_pretrained(folder)
    (loaded.processor or loaded.tokenizer).save_pretrained(folder)


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> str:
    """Return the prompt as the model reads it, up to the place where its answer begins."""
    text = tokenizer.apply_chat_template(
        messages, tools=tools or None, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)  # noqa: S101 - it was not asked for tokens
    return text


def prompt_and_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[dict[str, Any]],
    answer: dict[str, Any],
    tools: list[dict[str, Any]],
) -> tuple[str, str]:
    """Return a prompt as the model reads it, and the answer as the model writes it.

    Raises:
        TrainingError: the chat template writes the prompt differently when an answer follows.
    """
    before = prompt_text(tokenizer, prompt, tools)
    whole = tokenizer.apply_chat_template([*prompt, answer], tools=tools or None, tokenize=False)
    assert isinstance(whole, str)  # noqa: S101 - it was not asked for tokens
    if not whole.startswith(before):
        raise TrainingError(
            "the chat template changes the prompt when an answer follows; use one that does not"
        )
    return before, whole.removeprefix(before)


def turns(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> list[tuple[str, bool]]:
    """Return the parts of a conversation, each with whether the assistant wrote it.

    The last part is the last answer. Some templates change an earlier answer once the conversation
    continues; for example, they leave out thoughts. Such an answer gets no part of its own, because
    the model never sees its words in that form.

    Raises:
        TrainingError: the template changes the prompt of the last answer.
    """
    whole = "".join(prompt_and_answer(tokenizer, messages[:-1], messages[-1], tools))
    parts: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before = prompt_text(tokenizer, messages[:index], tools)
        after = before + prompt_and_answer(tokenizer, messages[:index], message, tools)[1].rstrip()
        if whole.startswith(after):
            parts += [(before.removeprefix(done), False), (after.removeprefix(before), True)]
            done = after
    return parts


def _dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def _add_tokens(config: TrainingConfig, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the special tokens that the tokenizer lacks, each as one token that decoding keeps."""
    wanted = config.special_tokens if isinstance(config, SftConfig) else ()
    missing = [token for token in wanted if token not in tokenizer.get_vocab()]
    if missing and tokenizer.add_tokens(missing):
        model.resize_token_embeddings(len(tokenizer))


def _load_with_unsloth(config: TrainingConfig, parent: Path | None) -> Loaded:
    from unsloth import FastLanguageModel

    source = str(parent) if parent is not None else config.base
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=source,
        max_seq_length=config.max_length,
        load_in_4bit=config.lora is not None,
        full_finetuning=config.lora is None,
    )
    _add_tokens(config, model, tokenizer)
    if config.lora is not None and not isinstance(model, PeftModel):
        model = FastLanguageModel.get_peft_model(
            model,
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=list(config.lora.modules),
            random_state=config.seed,
        )
    return Loaded(model, tokenizer, unsloth=True)
