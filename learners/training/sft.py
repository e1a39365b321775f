"""Supervised fine-tuning by TRL: imitate the answers that earned enough."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from learners.datasets import SftRow, pack_rows
from learners.training.config import SftConfig
from learners.training.errors import TrainingError
from learners.training.progress import ReportProgress, callbacks, run, trainer_arguments
from learners.training.vision import seen
from learners.training.weights import Loaded, turns


def train(
    loaded: Loaded, rows: Sequence[SftRow], config: SftConfig, folder: Path, report: ReportProgress
) -> dict[str, float]:
    """Train in place; return what was measured.

    The loss is on what the assistant said, in all its turns; of a model that sees, in the last.

    Args:
        folder: for states that a crashed run goes on from.

    Raises:
        TrainingError: no row is left to train on.
    """
    taught, held_out = (_dataset(loaded, rows, which, config) for which in (False, True))
    if not taught:
        raise TrainingError(
            f"none of {len(rows)} rows can be trained on: held out, longer than"
            f" {config.max_length},"
            " or, for a model that sees, without an image that is in the row"
        )
    trainer = SFTTrainer(
        model=loaded.model,
        args=TrlConfig(
            **trainer_arguments(config, folder, bool(held_out)),
            max_length=config.max_length
            if loaded.processor is None
            else None,  # images are not cut in two
            completion_only_loss=True,
            packing=False,  # rows are pack_rows already, by whole rows
        ),
        train_dataset=Dataset.from_list(
            taught if loaded.processor is not None else _pack(taught, config)
        ),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=loaded.processor or loaded.tokenizer,
        callbacks=callbacks(config, report, bool(held_out)),
    )
    measured = run(trainer, folder)
    loaded.model = trainer.model
    return measured | {"rows": float(len(taught)), "held_out_rows": float(len(held_out))}


def _dataset(
    loaded: Loaded, rows: Sequence[SftRow], held_out: bool, config: SftConfig
) -> list[dict[str, Any]]:
    if loaded.processor is not None:
        return seen(rows, held_out)
    return _tokenize(loaded.tokenizer, rows, held_out, config)


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[SftRow], held_out: bool, config: SftConfig
) -> list[dict[str, Any]]:
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


def _pack(rows: list[dict[str, Any]], config: SftConfig) -> list[dict[str, Any]]:
    """Return rows joined into sequences of at most `max_length` tokens, where that is wanted."""
    if not config.packing:
        return rows
    together = pack_rows([len(row["input_ids"]) for row in rows], config.max_length)
    return [
        {name: [item for index in indices for item in rows[index][name]] for name in rows[0]}
        for indices in together
    ]
