"""Proximal policy optimization by verl, on answers that were served and rewarded.

verl computes the advantages (`core_algos`), the importance weights between the log-probabilities of
the server and those of the trainer (`rollout_corr_helper`), and the clipped loss with its
divergence from the parent (`ppo_loss`). Its FSDP engine makes the update. This module chooses the
answers, divides them into batches, and says where the weights go.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

from learners.datasets import RlRow
from learners.training import engine as verl_engine
from learners.training.config import PpoConfig
from learners.training.engine import (
    Sampled,
    TrainingEngine,
    critic_loss,
    padded_tensors,
    policy_loss,
)
from learners.training.errors import TrainingError
from learners.training.progress import ReportProgress
from learners.training.weights import Loaded, lora_config

STATE = "state.json"


@dataclass(frozen=True)
class PreparedBatch:
    """A batch with everything that the losses need.

    Attributes:
        advantages, returns: (rows, longest response).
        weights: importance weights, (rows, longest response); None without importance weighting.
        logprobs: log-probabilities under the parent, (rows, longest response). The update starts
            from the parent and is held to it.
        values: the critic's values before the update, (rows, longest response); None without a
            critic.
    """

    sampled: Sampled
    advantages: torch.Tensor
    returns: torch.Tensor
    weights: torch.Tensor | None
    logprobs: torch.Tensor
    values: torch.Tensor | None

    def of_policy(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Return the inputs of the policy's loss for these rows."""
        tensors = {"old_log_probs": self.logprobs[rows], "advantages": self.advantages[rows]}
        if self.weights is not None:
            tensors["rollout_is_weights"] = self.weights[rows]
        return tensors | {"ref_log_prob": self.logprobs[rows]}

    def of_critic(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Return the inputs of the critic's loss for these rows."""
        assert self.values is not None  # noqa: S101 - only a critic's step calls this
        return {"values": self.values[rows], "returns": self.returns[rows]}


def usable(rows: Sequence[RlRow], config: PpoConfig) -> list[RlRow]:
    """Return the rows that can teach.

    They are short enough, are not held out, and, for `grpo`, are in a group with different rewards.
    """
    kept = [
        row
        for row in rows
        if not row.origin.held_out
        and len(row.prompt_token_ids) <= config.prompt_tokens
        and len(row.response_token_ids) <= config.response_tokens
    ]
    if config.estimator == "gae":
        return kept
    rewards: dict[str, set[float]] = {}
    for row in kept:
        rewards.setdefault(_group(row, config), set()).add(row.reward)
    # Where all rewards of a group are equal, every advantage is 0.
    return [row for row in kept if len(rewards[_group(row, config)]) > 1]


def train(
    loaded: Loaded,
    rows: Sequence[RlRow],
    config: PpoConfig,
    folder: Path,
    report: ReportProgress,
    adapter: Path | None = None,
) -> dict[str, float]:
    """Train `loaded` in place; return the metrics.

    Args:
        loaded: whole weights; verl adds the adapter itself if there is to be one.
        folder: for saved states; a run that crashed continues from them.
        adapter: folder of an adapter to continue; None starts a new one.

    Raises:
        TrainingError: no row is left to train on, or a loss is not a finite number.
    """
    kept = usable(rows, config)
    if not kept:
        raise TrainingError(
            f"none of {len(rows)} answers can be trained on: each is held out, too long,"
            " or in a group whose rewards are all equal"
        )
    verl_engine.prepare()
    folder.mkdir(parents=True, exist_ok=True)
    source, pad = folder / "parent", loaded.tokenizer.pad_token_id or 0
    if not (source / "config.json").exists():
        # verl loads from a folder. The parent is written once; a run that continues finds it.
        loaded.model.save_pretrained(source)
        loaded.tokenizer.save_pretrained(source)
    actor = TrainingEngine(source, "language_model", config, config.learning_rate, pad, adapter)
    critic = None
    if config.estimator == "gae":
        critic = TrainingEngine(source, "value_model", config, config.critic_learning_rate, pad)
    # Before the first step: advantages and weights are those of the parent, in all epochs.
    batch, measured = prepare(kept, actor, critic, config, pad)
    order = np.random.default_rng(config.seed)
    epochs = math.ceil(config.epochs)
    # The order depends on the seed alone, so a run that continues skips exactly what it had done.
    batches = [
        list(map(int, part))
        for _ in range(epochs)
        for part in np.array_split(
            order.permutation(len(kept)), max(1, round(len(kept) / config.batch))
        )
    ][: config.steps]
    # After `prepare`, which needs the parent's weights.
    done = _resume(folder, actor, critic)
    for step, picked in enumerate(batches[done:], start=done + 1):
        metrics = actor.step(batch.sampled[picked], batch.of_policy(picked), policy_loss(config))
        if critic is not None:
            metrics |= critic.step(
                batch.sampled[picked], batch.of_critic(picked), critic_loss(config)
            )
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingError(f"{name} is {value} at step {step}; try a lower learning_rate")
        report(step, len(batches), metrics)
        if step % config.save_every == 0:
            _save(folder, step, actor, critic)
        measured |= metrics
    _take(loaded, actor, config, adapter)
    return measured | {
        "steps": float(len(batches)),
        "rows": float(len(kept)),
        "groups": float(len({_group(row, config) for row in kept})),
    }


def prepare(
    rows: Sequence[RlRow],
    actor: TrainingEngine,
    critic: TrainingEngine | None,
    config: PpoConfig,
    pad: int,
) -> tuple[PreparedBatch, dict[str, float]]:
    """Return the batch with its advantages and importance weights, and metrics by name."""
    from verl.trainer.ppo.core_algos import (
        compute_gae_advantage_return,
        compute_grpo_outcome_advantage,
    )
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

    sampled = padded_tensors(
        [row.prompt_token_ids for row in rows],
        [row.response_token_ids for row in rows],
        [row.response_logprobs for row in rows],
        pad,
    )
    mask = sampled.response_mask.float()
    # The reward is for the whole answer, so its last token gets it.
    last = sampled.response_mask.sum(dim=1) - 1
    rewards = torch.zeros_like(mask)
    rewards[torch.arange(len(rows)), last] = torch.tensor(
        [row.reward for row in rows], dtype=torch.float32
    )
    logprobs = actor.logprobs(sampled)
    values = critic.values(sampled) if critic is not None else None
    if values is not None:
        advantages, returns = compute_gae_advantage_return(
            rewards, values, mask, torch.tensor(config.discount), torch.tensor(config.trace_decay)
        )
    else:
        groups = np.array([_group(row, config) for row in rows])
        advantages, returns = compute_grpo_outcome_advantage(rewards, mask, groups)
    weights, corrections = None, {}
    if config.importance:
        proto, _, corrections = compute_rollout_correction_and_rejection_mask(
            logprobs,
            sampled.served_logprobs,
            mask,
            rollout_is="token",
            rollout_is_threshold=config.importance_limit,
        )
        weights = proto.batch["rollout_is_weights"]
    batch = PreparedBatch(sampled, advantages, returns, weights, logprobs, values)
    metrics = {name: float(value) for name, value in corrections.items()}
    return batch, metrics | {"mean_reward": float(np.mean([row.reward for row in rows]))}


def _group(row: RlRow, config: PpoConfig) -> str:
    return row.group if config.compared == "prompt" else f"{row.origin.tenant}/{row.origin.task}"


def _save(folder: Path, step: int, actor: TrainingEngine, critic: TrainingEngine | None) -> None:
    """Save the state after a step, and remove older states.

    The note with the step is written last, so that no run continues from half a state.
    """
    for name, engine in (("actor", actor), ("critic", critic)):
        if engine is not None:
            engine.engine.save_checkpoint(str(folder / f"{name}-{step}"), global_step=step)
    partial = folder / f"{STATE}.partial"
    partial.write_text(json.dumps({"step": step}))
    partial.replace(folder / STATE)
    for older in [*folder.glob("actor-*"), *folder.glob("critic-*")]:
        if not older.name.endswith(f"-{step}"):
            shutil.rmtree(older)


def _resume(folder: Path, actor: TrainingEngine, critic: TrainingEngine | None) -> int:
    """Load the last saved state; return its step, or 0 if there is none."""
    try:
        step = int(json.loads((folder / STATE).read_text())["step"])
    except FileNotFoundError:
        return 0
    for name, engine in (("actor", actor), ("critic", critic)):
        if engine is not None:
            engine.engine.load_checkpoint(
                str(folder / f"{name}-{step}"), del_local_after_load=False
            )
    return step


def _take(loaded: Loaded, actor: TrainingEngine, config: PpoConfig, continued: Path | None) -> None:
    """Copy verl's weights into the model. An adapter is added to the model first."""
    weights, adapter = actor.weights()
    if adapter is None:
        missing = loaded.model.load_state_dict(weights, strict=False).unexpected_keys
        if missing:
            raise TrainingError(
                f"verl returned weights that the model does not have: {', '.join(missing[:3])}"
            )
        return
    lora = (
        LoraConfig.from_pretrained(str(continued)) if continued is not None else lora_config(config)
    )
    loaded.model = get_peft_model(loaded.model, lora)
    set_peft_model_state_dict(loaded.model, weights)
