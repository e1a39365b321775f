"""Configuration of a training run: method, parent weights and hyper-parameters. Needs no torch."""

from hashlib import sha256
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from learners.datasets import DatasetConfig

Method = Literal["sft", "dpo", "grpo", "ppo"]

HEADS: dict[Method, Literal["sft", "rl"]] = {"sft": "sft", "dpo": "rl", "grpo": "rl", "ppo": "rl"}
"""The kind of example that each method learns from."""


ROWS = "rows.parquet"
MODEL = "model"
LINEAGE = "everloop.json"
STATES = "states"
"""Files and folders that a run writes. It removes the states when it has succeeded."""

ADAPTER_FILE = "adapter_config.json"
"""peft writes this file beside the weights of an adapter. A folder of whole weights has none."""


class LoraSettings(BaseModel):
    """Low-rank adapters (Hu et al., 2021, arXiv:2106.09685).

    Attributes:
        rank: of the two factors of a weight update.
        alpha: scale of the update, which is multiplied by `alpha / rank`.
        dropout: share of an adapter's inputs that is set to 0 in training, in [0, 1).
        modules: names of the linear layers that get an adapter.
        merge: true writes whole weights; false writes an adapter, which a server loads beside its
            base.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    merge: bool = True


class TrainingConfig(BaseModel):
    """Settings that all methods share.

    Attributes:
        base: folder, or name on the Hugging Face hub, of the weights before the first training.
        backend: library that loads the weights. `auto` takes unsloth where CUDA and unsloth are
            present, else transformers with peft.
        lora: settings of the adapter; false trains all weights.
        dataset: which examples become rows.
        max_length: most tokens of a row; longer rows are left out.
        steps: most optimizer steps; None counts by `epochs`.
        batch: rows of one optimizer step.
        micro_batch: rows that are in memory at once; divides `batch`.
        warmup: share of the steps in which the learning rate rises, in [0, 1).
        weight_decay: of AdamW.
        gradient_clip: gradients with a greater norm are scaled down to it.
        save_every: steps between two saved states. A run that crashed continues from the last one.
        evaluate_every: steps between two evaluations on held-out rows.
        patience: training stops after this many evaluations without improvement; the best weights
            are kept. None never stops early.
        threads: CPU threads. Sums depend on their number, so equal runs need equal numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    backend: Literal["auto", "unsloth", "peft"] = "auto"
    lora: Annotated[
        LoraSettings | None, BeforeValidator(lambda value: None if value is False else value)
    ] = LoraSettings()
    dataset: DatasetConfig = DatasetConfig()
    seed: int = 42
    max_length: int = Field(default=4096, ge=8)
    learning_rate: float = Field(default=2e-4, gt=0.0)
    epochs: float = Field(default=1.0, gt=0.0)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)
    micro_batch: int = Field(default=2, ge=1)
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    gradient_clip: float = Field(default=1.0, gt=0.0)
    save_every: int = Field(default=50, ge=1)
    evaluate_every: int = Field(default=50, ge=1)
    patience: int | None = Field(default=3, ge=1)
    threads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _batches_are_whole(self) -> "TrainingConfig":
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch {self.batch} must be a multiple of micro_batch {self.micro_batch}"
            )
        return self

    @property
    def sha256(self) -> str:
        """SHA-256 of the configuration, in hexadecimal. It names the configuration."""
        return sha256(self.model_dump_json().encode()).hexdigest()


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on conversations with a high enough reward.

    Attributes:
        special_tokens: single tokens that the tokenizer must have; missing ones are added. An
            adapter that is not merged cannot have any.
        packing: whether several rows share a sequence of `max_length` tokens.
    """

    method: Literal["sft"] = "sft"
    special_tokens: tuple[str, ...] = ()
    packing: bool = False

    @model_validator(mode="after")
    def _tokens_have_weights(self) -> "SftConfig":
        if self.special_tokens and self.lora is not None and not self.lora.merge:
            raise ValueError(
                "special_tokens need new embeddings, which an adapter's base lacks; set lora.merge"
            )
        return self


class DpoConfig(TrainingConfig):
    """Direct preference optimization (Rafailov et al., 2023, arXiv:2305.18290).

    Training starts from the weights of the parent, which is also the reference.

    Attributes:
        beta: how strongly the policy is held to its parent.
        loss: TRL's `loss_type`.
    """

    method: Literal["dpo"] = "dpo"
    learning_rate: float = Field(default=5e-6, gt=0.0)
    beta: float = Field(default=0.1, gt=0.0)
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"


class GrpoConfig(TrainingConfig):
    """Group relative policy optimization (Shao et al., 2024, arXiv:2402.03300) with registered
    graders.

    Attributes:
        graders: names with versions, such as `tool-call@1`; see `learners.graders`.
        generations: answers sampled for each prompt; divides `batch`.
        beta: weight of the divergence from the parent; 0 leaves the divergence out.
        clip: how far the probability of a token may move in one step, as a ratio.
        temperature: of the sampled answers.
        prompt_tokens: most tokens of a prompt; longer prompts are left out.
        response_tokens: most tokens of a sampled answer.
    """

    method: Literal["grpo"] = "grpo"
    graders: tuple[str, ...] = Field(default=("answer@1",), min_length=1)
    learning_rate: float = Field(default=1e-6, gt=0.0)
    generations: int = Field(default=8, ge=2)
    beta: float = Field(default=0.0, ge=0.0)
    clip: float = Field(default=0.2, gt=0.0)
    temperature: float = Field(default=1.0, gt=0.0)
    prompt_tokens: int = Field(default=4096, ge=1)
    response_tokens: int = Field(default=2048, ge=1)

    @model_validator(mode="after")
    def _groups_are_whole(self) -> "GrpoConfig":
        if self.batch % self.generations:
            raise ValueError(
                f"batch {self.batch} must be a multiple of generations {self.generations}"
            )
        return self


class PpoConfig(TrainingConfig):
    """Proximal policy optimization (Schulman et al., 2017, arXiv:1707.06347) by verl, on served
    answers.

    Attributes:
        estimator: of advantages. `grpo` compares answers with one another; `gae` trains a critic.
        compared: which answers `grpo` compares. `prompt`: the answers to one prompt. `task`: all
            answers of the rollouts of one task. An agent of several steps needs `task`, because its
            prompts hardly ever repeat.
        batch: rows of one update; verl calls it the mini-batch.
        clip: how far the probability of a token may move, as a ratio.
        kl: weight of the divergence from the parent in the loss.
        importance: whether importance weights correct for answers that an older version, or another
            inference engine, sampled.
        importance_limit: the greatest weight of a token, > 1.
        discount: gamma of generalized advantage estimation, in (0, 1].
        trace_decay: lambda of generalized advantage estimation, in [0, 1].
        critic_learning_rate: of the value model, which `gae` trains.
        prompt_tokens, response_tokens: rows with more are left out.
    """

    method: Literal["ppo"] = "ppo"
    learning_rate: float = Field(default=1e-6, gt=0.0)
    estimator: Literal["grpo", "gae"] = "grpo"
    compared: Literal["prompt", "task"] = "prompt"
    epochs: float = Field(default=1.0, gt=0.0)
    clip: float = Field(default=0.2, gt=0.0)
    kl: float = Field(default=0.001, ge=0.0)
    importance: bool = True
    importance_limit: float = Field(default=2.0, gt=1.0)
    discount: float = Field(default=1.0, gt=0.0, le=1.0)
    trace_decay: float = Field(default=0.95, ge=0.0, le=1.0)
    critic_learning_rate: float = Field(default=1e-5, gt=0.0)
    prompt_tokens: int = Field(default=4096, ge=1)
    response_tokens: int = Field(default=2048, ge=1)


AnyConfig = Annotated[SftConfig | DpoConfig | GrpoConfig | PpoConfig, Field(discriminator="method")]
