"""Group relative policy optimization by TRL.

It samples several answers to each prompt, grades them, and makes the better ones more likely.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig as TrlConfig
from trl import GRPOTrainer

from learners.datasets import PromptRow
from learners.graders import NEED_LABELS, AnswerGrader, GradedAnswer, grader
from learners.training.config import GrpoConfig
from learners.training.errors import TrainingError
from learners.training.progress import ReportProgress, callbacks, run, trainer_arguments
from learners.training.weights import Loaded, prompt_text


def train(
    loaded: Loaded,
    rows: Sequence[PromptRow],
    config: GrpoConfig,
    folder: Path,
    report: ReportProgress,
) -> dict[str, float]:
    """Train `loaded` in place; return the metrics.

    A group whose answers all have the same reward teaches nothing, because its advantages are 0. A
    prompt without an expected answer is used only if no grader needs labels.

    Raises:
        TrainingError: no prompt is left to train on.
    """
    labelled = NEED_LABELS & set(config.graders)
    prompts = [
        _prompt(loaded.tokenizer, index, row)
        for index, row in enumerate(rows)
        if not row.origin.held_out and (row.expected is not None or not labelled)
    ]
    prompts = [
        p
        for p in prompts
        if len(loaded.tokenizer(p["prompt"])["input_ids"]) <= config.prompt_tokens
    ]
    if not prompts:
        raise TrainingError(
            f"none of {len(rows)} prompts can be trained on: each is held out, longer than"
            f" prompt_tokens = {config.prompt_tokens}, or has no expected answer"
        )
    trainer = GRPOTrainer(
        model=loaded.model,
        reward_funcs=[_trl_grader(loaded.tokenizer, rows, name) for name in config.graders],
        args=TrlConfig(
            **trainer_arguments(config, folder, evaluated=False),
            num_generations=config.generations,
            max_completion_length=config.response_tokens,
            temperature=config.temperature,
            beta=config.beta,
            epsilon=config.clip,
        ),
        train_dataset=Dataset.from_list(prompts),
        processing_class=loaded.tokenizer,
        callbacks=callbacks(config, report, evaluated=False),
    )
    metrics = run(trainer, folder)
    loaded.model = trainer.model
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    return metrics | {
        "rows": float(len(prompts)),
        "first_reward": rewards[0],
        "last_reward": rewards[-1],
    }


def _prompt(tokenizer: PreTrainedTokenizerBase, index: int, row: PromptRow) -> dict[str, Any]:
    return {"prompt": prompt_text(tokenizer, row.prompt, row.tools), "row": index}


def _trl_grader(tokenizer: PreTrainedTokenizerBase, rows: Sequence[PromptRow], name: str) -> Any:
    """Return a grader with the signature that TRL calls."""
    grade: AnswerGrader = grader(name)
    ends = {token for token in (tokenizer.eos_token, tokenizer.pad_token) if token}

    def reward(completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        texts = [_text(tokenizer, ids, ends) for ids in completion_ids]
        return [
            grade(GradedAnswer(text, rows[index].prompt, rows[index].tools, rows[index].expected))
            for text, index in zip(texts, row, strict=True)
        ]

    # TRL names the metrics of a grader after its function.
    reward.__name__ = name
    return reward


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: set[str]) -> str:
    """Return the decoded answer, without padding and end marks.

    Special tokens are kept: TRL would strip the marks of tool calls, which graders read.
    """
    text = str(tokenizer.decode(ids, skip_special_tokens=False))
    for end in ends:
        text = text.replace(end, "")
    return text.strip()
