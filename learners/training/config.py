"""What a training run is told: method, parent weights and hyper-parameters. Needs no torch."""

from hashlib import sha256
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from learners.datasets import DatasetConfig

Method = Literal["sft", "dpo", "grpo", "ppo"]

HEADS: dict[Method, Literal["sft", "rl"]] = {"sft": "sft", "dpo": "rl", "grpo": "rl", "ppo": "rl"}
"""Which examples each method learns from."""


ROWS = "rows.parquet"
MODEL = "model"
LINEAGE = "everloop.json"
STATES = "states"
"""What a run leaves in its folder; the states are gone when it has succeeded."""

ADAPTER_FILE = "adapter_config.json"
"""What peft writes beside an adapter's weights; whole weights have none."""


class LoraSettings(BaseModel):
    """Low-rank adapters (Hu et al., 2021, arXiv:2106.09685).

    Attributes:
        modules: names of the linear layers that get one.
        merge: whether the result is whole weights; an adapter else, to be loaded beside its base.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    merge: bool = True


class TrainingConfig(BaseModel):
    """What all methods have in common.

    Attributes:
        base: folder, or name on the Hugging Face hub, of the weights before the first training.
        backend: what loads the weights; `auto` is unsloth where CUDA and unsloth are, else
            transformers with peft.
        lora: false trains all weights.
        dataset: which examples become rows.
        max_length: tokens of a row; longer ones are left out.
        steps: most optimizer steps; None goes by epochs.
        batch: rows of one optimizer step, of which `micro_batch` are in memory at once.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of AdamW.
        gradient_clip: norm above which gradients are scaled down.
        save_every: steps between two states that a crashed run goes on from.
        evaluate_every: steps between two evaluations on what is held out.
        patience: evaluations without improvement after which training stops; the best weights are
            kept.
        threads: of the processor; part of what makes two runs equal, since sums depend on it.
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
        """Its name: the hash of what it says, in hexadecimal."""
        return sha256(self.model_dump_json().encode()).hexdigest()


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on conversations that earned enough.

    Attributes:
        special_tokens: added to the tokenizer where it lacks them, as single tokens; not for
            adapters.
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
    """Direct preference optimization (Rafailov et al., 2023, arXiv:2305.18290) from the parent's
    weights.

    Attributes:
        beta: how strongly the policy is held to its parent.
        loss: TRL's `loss_type`.
    """

    method: Literal["dpo"] = "dpo"
    learning_rate: float = Field(default=5e-6, gt=0.0)
    beta: float = Field(default=0.1, gt=0.0)
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"


class GrpoConfig(TrainingConfig):
    """Group relative policy optimization (Shao et al., 2024, arXiv:2402.03300) against registered
    graders.

    Attributes:
        graders: names with versions, such as `tool-call@1`; see `learners.graders`.
        generations: answers sampled to each prompt; `batch` must be a multiple of it.
        beta: weight of the divergence from the parent; 0 does without.
        clip: how far a token's probability may move in one step, as a ratio.
        prompt_tokens, response_tokens: most of each.
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
    """Proximal policy optimization (Schulman et al., 2017, arXiv:1707.06347) by verl, on answers
    that were served.

    Attributes:
        estimator: of advantages: `grpo` compares answers to one another, `gae` needs a critic.
        compared: which answers `grpo` compares: those to one `prompt`, or all that were given while
            working on one `task`, as in agents of several steps, whose prompts are never twice the
            same.
        batch: rows of one update; verl calls it the mini-batch.
        clip: how far a token's probability may move, as a ratio.
        kl: weight of the divergence from the parent in the loss.
        importance: whether weights correct for what served being older than the parent, and for
            another engine.
        importance_limit: what a token's weight is cut off at.
        discount, trace_decay: gamma and lambda of generalized advantage estimation.
        critic_learning_rate: of the value model, which `gae` trains.
        prompt_tokens, response_tokens: most of each; longer rows are left out.
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
