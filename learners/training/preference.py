"""Direct preference optimization by TRL: makes an answer with more reward likelier than one with
less.
"""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from learners.datasets import PreferenceRow
from learners.training.config import DpoConfig
from learners.training.errors import TrainingError
from learners.training.progress import ReportProgress, callbacks, run, trainer_arguments
from learners.training.weights import Loaded, prompt_and_answer


def train(
    loaded: Loaded,
    rows: Sequence[PreferenceRow],
    config: DpoConfig,
    folder: Path,
    report: ReportProgress,
) -> dict[str, float]:
    """Train `loaded` in place; return the metrics, which include the divergence from the parent.

    The reference is the parent: the base of an adapter, else an unchanged copy of the model.

    Raises:
        TrainingError: no pair is left to train on.
    """
    pairs = {
        held_out: _pairs(loaded.tokenizer, rows, held_out, config) for held_out in (False, True)
    }
    if not pairs[False]:
        raise TrainingError(
            f"none of {len(rows)} pairs can be trained on: each is held out, or longer than"
            f" max_length = {config.max_length}"
        )
    evaluated = bool(pairs[True])
    trainer = DPOTrainer(
        model=loaded.model,
        # TRL then takes the base of the adapter, or makes a copy.
        ref_model=None,
        args=TrlConfig(
            **trainer_arguments(config, folder, evaluated),
            max_length=config.max_length,
            beta=config.beta,
            loss_type=[config.loss],
        ),
        train_dataset=Dataset.from_list(pairs[False]),
        eval_dataset=Dataset.from_list(pairs[True]) if evaluated else None,
        processing_class=loaded.tokenizer,
        callbacks=callbacks(config, report, evaluated),
    )
    metrics = run(trainer, folder)
    loaded.model = trainer.model
    if not isinstance(loaded.model, PeftModel):
        # Free the reference, which is as large as the model.
        trainer.ref_model = None
    return metrics | {"rows": float(len(pairs[False])), "held_out_rows": float(len(pairs[True]))}


def _pairs(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[PreferenceRow],
    held_out: bool,
    config: DpoConfig,
) -> list[dict[str, str]]:
    pairs = []
    for row in rows:
        if row.origin.held_out is not held_out:
            continue
        prompt, chosen = prompt_and_answer(tokenizer, row.prompt, row.chosen, row.tools)
        _, rejected = prompt_and_answer(tokenizer, row.prompt, row.rejected, row.tools)
        longest = max(len(tokenizer(prompt + answer)["input_ids"]) for answer in (chosen, rejected))
        if longest <= config.max_length:
            pairs.append(
                {"prompt": prompt, "chosen": chosen.rstrip(), "rejected": rejected.rstrip()}
            )
    return pairs
