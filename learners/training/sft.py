"""Supervised fine-tuning by TRL: imitates the answers with a high enough reward."""

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
from learners.training.vision import vision_rows
from learners.training.weights import Loaded, turns


def train(
    loaded: Loaded, rows: Sequence[SftRow], config: SftConfig, folder: Path, report: ReportProgress
) -> dict[str, float]:
    """Train `loaded` in place; return the metrics.

    The loss covers the words of the assistant in all its turns. For a vision model it covers the
    last turn only.

    Args:
        folder: for saved states; a run that crashed continues from them.

    Raises:
        TrainingError: no row is left to train on.
    """
    taught, held_out = (_dataset(loaded, rows, which, config) for which in (False, True))
    if not taught:
        raise TrainingError(
            f"none of {len(rows)} rows can be trained on: each is held out, longer than"
            f" max_length = {config.max_length}, or, for a vision model, has no image in the row"
        )
    trainer = SFTTrainer(
        model=loaded.model,
        args=TrlConfig(
            **trainer_arguments(config, folder, bool(held_out)),
            # With a length limit TRL would cut through the tokens of an image.
            max_length=config.max_length if loaded.processor is None else None,
            # The mask decides which tokens count, in every turn.
            completion_only_loss=True,
            # `_pack` has packed whole rows already; TRL would cut rows in two.
            packing=False,
        ),
        train_dataset=Dataset.from_list(
            taught if loaded.processor is not None else _pack(taught, config)
        ),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=loaded.processor or loaded.tokenizer,
        callbacks=callbacks(config, report, bool(held_out)),
    )
    metrics = run(trainer, folder)
    loaded.model = trainer.model
    return metrics | {"rows": float(len(taught)), "held_out_rows": float(len(held_out))}


def _dataset(
    loaded: Loaded, rows: Sequence[SftRow], held_out: bool, config: SftConfig
) -> list[dict[str, Any]]:
    if loaded.processor is not None:
        return vision_rows(rows, held_out)
    return _tokenize(loaded.tokenizer, rows, held_out, config)


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[SftRow], held_out: bool, config: SftConfig
) -> list[dict[str, Any]]:
    """Return the tokens of each row, and a mask of those that the assistant wrote."""
    tokenized = []
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
            tokenized.append({"input_ids": tokens, "completion_mask": mask})
    return tokenized


def _pack(rows: list[dict[str, Any]], config: SftConfig) -> list[dict[str, Any]]:
    """Return rows joined into sequences of at most `max_length` tokens, if `packing` is set."""
    if not config.packing:
        return rows
    together = pack_rows([len(row["input_ids"]) for row in rows], config.max_length)
    return [
        {name: [item for index in indices for item in rows[index][name]] for name in rows[0]}
        for indices in together
    ]
