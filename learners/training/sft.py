"""Supervised fine-tuning by TRL: imitate the answers that earned enough."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from learners.datasets import SftRow, packed
from learners.training.config import SftConfig
from learners.training.errors import TrainingError
from learners.training.progress import Report, callbacks, run, trainer_arguments
from learners.training.weights import Loaded, turns


def train(loaded: Loaded, rows: Sequence[SftRow], config: SftConfig, folder: Path, report: Report) -> dict[str, float]:
    """Train in place; return what was measured.

    The loss is on what the assistant said, in all its turns.

    Args:
        folder: for states that a crashed run goes on from.

    Raises:
        TrainingError: no row is left to train on.
    """
    tokenized = {held_out: _tokenized(loaded.tokenizer, rows, held_out, config) for held_out in (False, True)}
    if not tokenized[False]:
        raise TrainingError(f"none of {len(rows)} rows can be trained on: held out, or longer than {config.max_length}")
    evaluated = bool(tokenized[True])
    trainer = SFTTrainer(
        model=loaded.model,
        args=TrlConfig(
            **trainer_arguments(config, folder, evaluated),
            max_length=config.max_length,
            completion_only_loss=True,
            packing=False,  # rows are packed already, by whole rows
        ),
        train_dataset=Dataset.from_list(_packed(tokenized[False], config)),
        eval_dataset=Dataset.from_list(tokenized[True]) if evaluated else None,
        processing_class=loaded.tokenizer,
        callbacks=callbacks(config, report, evaluated),
    )
    measured = run(trainer, folder)
    loaded.model = trainer.model
    return measured | {"rows": float(len(tokenized[False])), "held_out_rows": float(len(tokenized[True]))}


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[SftRow], held_out: bool, config: SftConfig
) -> list[dict[str, list[int]]]:
    """Return tokens and which of them the assistant said."""
    found = []
    for row in rows:
        if row.origin.held_out is not held_out:
            continue
        tokens: list[int] = []
        mask: list[int] = []
        for text, said in turns(tokenizer, row.messages, row.tools):
            part = tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens += part
            mask += [int(said)] * len(part)
        if len(tokens) <= config.max_length:
            found.append({"input_ids": tokens, "completion_mask": mask})
    return found


def _packed(rows: list[dict[str, list[int]]], config: SftConfig) -> list[dict[str, list[int]]]:
    """Return rows joined into sequences of at most `max_length` tokens, where that is wanted."""
    if not config.packing:
        return rows
    together = packed([len(row["input_ids"]) for row in rows], config.max_length)
    return [
        {name: [item for index in indices for item in rows[index][name]] for name in rows[0]} for indices in together
    ]
