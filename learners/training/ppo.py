"""Proximal policy optimization by verl, on answers that were served and rewarded.

What verl does: advantages (`core_algos`), importance weights between the server's log-probabilities
and the trainer's (`rollout_corr_helper`), the clipped loss with its divergence from the parent
(`ppo_loss`), and the update itself by its FSDP engine. What is ours: which answers, in which
batches, and where the weights go.
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
    """A batch with everything the losses need.

    Attributes:
        advantages, returns, weights: (rows, longest response).
        logprobs: of the parent, which the update starts from and is held to; as the weights.
        values: a critic's before the update; None without a critic.
    """

    sampled: Sampled
    advantages: torch.Tensor
    returns: torch.Tensor
    weights: torch.Tensor | None
    logprobs: torch.Tensor
    values: torch.Tensor | None

    def of_policy(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Return what the policy's loss reads of some rows."""
        tensors = {"old_log_probs": self.logprobs[rows], "advantages": self.advantages[rows]}
        if self.weights is not None:
            tensors["rollout_is_weights"] = self.weights[rows]
        return tensors | {"ref_log_prob": self.logprobs[rows]}

    def of_critic(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Return what the critic's loss reads of some rows."""
        assert self.values is not None  # noqa: S101 - asked for only where there is a critic
        return {"values": self.values[rows], "returns": self.returns[rows]}


def usable(rows: Sequence[RlRow], config: PpoConfig) -> list[RlRow]:
    """Return the rows that can teach: short enough, not held out, and with others to compare them
    with.
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
    return [
        row for row in kept if len(rewards[_group(row, config)]) > 1
    ]  # else every advantage of the group is 0


def train(
    loaded: Loaded,
    rows: Sequence[RlRow],
    config: PpoConfig,
    folder: Path,
    report: ReportProgress,
    adapter: Path | None = None,
) -> dict[str, float]:
    """Train in place; return what was measured.

    Args:
        loaded: whole weights; an adapter, where one is wanted, is verl's own.
        adapter: folder of one to go on with; None begins anew.
        folder: for states that a crashed run goes on from.

    Raises:
        TrainingError: no row is left to train on, or a loss is no number any more.
    """
    kept = usable(rows, config)
    if not kept:
        raise TrainingError(
            f"none of {len(rows)} answers can be trained on: held out, too long,"
            " or all that are compared earned the same"
        )
    verl_engine.prepare()
    folder.mkdir(parents=True, exist_ok=True)
    source, pad = folder / "parent", loaded.tokenizer.pad_token_id or 0
    if not (source / "config.json").exists():
        loaded.model.save_pretrained(source)
        loaded.tokenizer.save_pretrained(source)
    actor = TrainingEngine(source, "language_model", config, config.learning_rate, pad, adapter)
    critic = None
    if config.estimator == "gae":
        critic = TrainingEngine(source, "value_model", config, config.critic_learning_rate, pad)
    batch, measured = prepare(kept, actor, critic, config, pad)
    order = np.random.default_rng(config.seed)
    epochs = math.ceil(config.epochs)
    batches = [
        list(map(int, part))
        for _ in range(epochs)
        for part in np.array_split(
            order.permutation(len(kept)), max(1, round(len(kept) / config.batch))
        )
    ][: config.steps]
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
    """Return the batch with its advantages and weights, and what they measure."""
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
    weights, found = None, {}
    if config.importance:
        proto, _, found = compute_rollout_correction_and_rejection_mask(
            logprobs,
            sampled.served_logprobs,
            mask,
            rollout_is="token",
            rollout_is_threshold=config.importance_limit,
        )
        weights = proto.batch["rollout_is_weights"]
    batch = PreparedBatch(sampled, advantages, returns, weights, logprobs, values)
    measured = {name: float(value) for name, value in found.items()}
    return batch, measured | {"mean_reward": float(np.mean([row.reward for row in rows]))}


def _group(row: RlRow, config: PpoConfig) -> str:
    return row.group if config.compared == "prompt" else f"{row.origin.tenant}/{row.origin.task}"


def _save(folder: Path, step: int, actor: TrainingEngine, critic: TrainingEngine | None) -> None:
    """Keep the state after a step; the note of it is written last, so that half a state is never
    gone on from.
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
    """Go on from the last state that was kept; return its step."""
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
    """Put verl's weights into the model; an adapter's are set up on it."""
    weights, adapter = actor.weights()
    if adapter is None:
        missing = loaded.model.load_state_dict(weights, strict=False).unexpected_keys
        if missing:
            raise TrainingError(
                f"verl gave weights that the model does not have: {', '.join(missing[:3])}"
            )
        return
    lora = (
        LoraConfig.from_pretrained(str(continued)) if continued is not None else lora_config(config)
    )
    loaded.model = get_peft_model(loaded.model, lora)
    set_peft_model_state_dict(loaded.model, weights)
