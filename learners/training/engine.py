"""verl's own engine in one process: as it is on a GPU, through verl's plugin interface on a CPU.

verl can be configured for many devices and clusters. Here one process holds the whole model. verl's
Ray workers make the same calls, in one process for each GPU.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from learners.training.config import PpoConfig

PLATFORM = "learners.training.verl_platform"


def prepare() -> None:
    """Make verl run on the device of this machine, in a process group of one.

    Call it before verl is imported.

    Raises:
        RuntimeError: verl was imported before, for another device.
    """
    if not torch.cuda.is_available():
        if "verl" in sys.modules and os.environ.get("VERL_PLATFORM") != "cpu":
            raise RuntimeError(
                "verl was imported for a GPU; call prepare() before verl is imported"
            )
        os.environ.update(VERL_USE_EXTERNAL_MODULES=PLATFORM, VERL_PLATFORM="cpu")
        _register_engines()
    from verl.models.transformers import monkey_patch

    # verl patches a class that TRL has removed. Nothing here uses that class.
    monkey_patch.is_trl_available = lambda: False
    if not torch.distributed.is_initialized():
        # A store in memory: with one process there is no port to agree on.
        store = torch.distributed.HashStore()
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def _register_engines() -> None:
    """Register verl's FSDP engines for the CPU."""
    from transformers import AutoModelForTokenClassification
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import (
        FSDPEngineWithLMHead,
        FSDPEngineWithValueHead,
    )

    class ValueEngine(FSDPEngineWithValueHead):
        """verl's critic without flash attention, which verl's loader asks for on every device."""

        def _build_module(self) -> Any:
            config = self.model_config.hf_config
            config.num_labels, config.classifier_dropout, config.hidden_dropout = 1, 0.0, 0.0
            return AutoModelForTokenClassification.from_pretrained(
                self.model_config.local_path,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
            )

    if "cpu" not in EngineRegistry._engines["language_model"]["fsdp2"]:
        EngineRegistry.register("language_model", ["fsdp2"], "cpu")(FSDPEngineWithLMHead)
        EngineRegistry.register("value_model", ["fsdp2"], "cpu")(ValueEngine)


@dataclass(frozen=True)
class Sampled:
    """Answers as tensors: prompts are padded on the left, responses on the right.

    Attributes:
        prompts: token ids, (rows, longest prompt).
        responses: token ids, (rows, longest response).
        prompt_mask, response_mask: 1 for a token, 0 for padding; shaped as their tokens.
        served_logprobs: log-probabilities of the response tokens when they were sampled, (rows,
            longest response).
    """

    prompts: torch.Tensor
    responses: torch.Tensor
    prompt_mask: torch.Tensor
    response_mask: torch.Tensor
    served_logprobs: torch.Tensor

    def __getitem__(self, rows: Sequence[int]) -> "Sampled":
        """Return the answers at these row indices."""
        picked = torch.tensor(list(rows), dtype=torch.long)
        return Sampled(*(getattr(self, name)[picked] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.prompts)


def padded_tensors(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    pad: int,
) -> Sampled:
    """Return lists of tokens as tensors, filled up with the token `pad`."""
    before, after = max(map(len, prompts)), max(map(len, responses))
    left = [[pad] * (before - len(p)) + list(p) for p in prompts]
    right = [list(r) + [pad] * (after - len(r)) for r in responses]
    return Sampled(
        torch.tensor(left),
        torch.tensor(right),
        torch.tensor([[0] * (before - len(p)) + [1] * len(p) for p in prompts]),
        torch.tensor([[1] * len(r) + [0] * (after - len(r)) for r in responses]),
        torch.tensor(
            [list(of) + [0.0] * (after - len(of)) for of in logprobs], dtype=torch.float32
        ),
    )


class TrainingEngine:
    """A model in verl's engine, with its optimizer.

    Args:
        source: folder of whole weights.
        kind: `language_model` for log-probabilities, `value_model` for the values of a critic.
        pad: id of the padding token.
        adapter: folder of an adapter to continue; None starts a new one if the configuration asks
            for an adapter.
    """

    def __init__(
        self,
        source: Path,
        kind: str,
        config: PpoConfig,
        learning_rate: float,
        pad: int,
        adapter: Path | None = None,
    ) -> None:
        from verl.trainer.config import CheckpointConfig
        from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
        from verl.workers.engine.base import EngineRegistry

        on_gpu = torch.cuda.is_available()
        precision = "bf16" if on_gpu else "fp32"
        lora = config.lora if kind == "language_model" else None
        self._kind, self._config, self._pad = kind, config, pad
        self.engine: Any = EngineRegistry.new(
            model_type=kind,
            backend="fsdp2",
            model_config=HFModelConfig(
                path=str(source),
                model_type=kind,
                use_remove_padding=on_gpu,
                enable_gradient_checkpointing=on_gpu,
                override_config={} if on_gpu else {"attn_implementation": "sdpa"},
                lora_rank=lora.rank if lora else 0,
                lora_alpha=lora.alpha if lora else 16,
                target_modules=list(lora.modules) if lora else "all-linear",
                lora_adapter_path=str(adapter) if adapter is not None else None,
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                fsdp_size=1,
                model_dtype="fp32",
                mixed_precision={
                    "param_dtype": precision,
                    "reduce_dtype": "fp32",
                    "buffer_dtype": "fp32",
                },
                use_torch_compile=on_gpu,
                use_dynamic_bsz=False,
                micro_batch_size_per_gpu=config.micro_batch,
                seed=config.seed,
            ),
            optimizer_config=FSDPOptimizerConfig(
                lr=learning_rate, weight_decay=config.weight_decay, clip_grad=config.gradient_clip
            ),
            checkpoint_config=CheckpointConfig(save_contents=["model", "optimizer", "extra"]),
        )
        self.engine.initialize()

    def logprobs(self, sampled: Sampled) -> torch.Tensor:
        """Return the log-probabilities of responses, (rows, longest response)."""
        return self._infer(sampled, "log_probs")

    def values(self, sampled: Sampled) -> torch.Tensor:
        """Return the critic's values, (rows, longest response)."""
        return self._infer(sampled, "values")

    def step(
        self, sampled: Sampled, tensors: dict[str, torch.Tensor], loss: Any
    ) -> dict[str, float]:
        """Take one optimizer step on a batch; return verl's metrics.

        Args:
            tensors: inputs of the loss, each (rows, longest response).
            loss: one of verl's losses, with its configuration bound.
        """
        data = self._batch(sampled, tensors)
        with self.engine.train_mode():
            output = self.engine.train_batch(data, loss_function=loss)
        self.engine.lr_scheduler_step()
        return {name: _number(value) for name, value in output["metrics"].items()}

    def weights(self) -> tuple[dict[str, torch.Tensor], Any]:
        """Return the trained weights by name, and peft's configuration of the adapter.

        With an adapter these are the adapter's weights alone. Without one the configuration is
        None.
        """
        # base_sync_done leaves out the weights of an adapter's base.
        tensors, adapter = self.engine.get_per_tensor_param(base_sync_done=True)
        return {name: tensor.detach().cpu().float().clone() for name, tensor in tensors}, adapter

    def _infer(self, sampled: Sampled, name: str) -> torch.Tensor:
        from verl.workers.utils.padding import no_padding_2_padding

        data = self._batch(sampled, {})
        with self.engine.eval_mode():
            output = self.engine.infer_batch(data)
        return no_padding_2_padding(output["model_output"][name], data).detach().float()

    def _batch(self, sampled: Sampled, tensors: dict[str, torch.Tensor]) -> Any:
        """Return rows in the form that verl's engine takes."""
        from tensordict import TensorDict
        from verl.utils import tensordict_utils as tu
        from verl.workers.utils.padding import left_right_2_no_padding

        mask = torch.cat([sampled.prompt_mask, sampled.response_mask], dim=1)
        data = TensorDict(
            {
                "prompts": sampled.prompts,
                "responses": sampled.responses,
                "input_ids": torch.cat([sampled.prompts, sampled.responses], dim=1),
                "attention_mask": mask,
                "position_ids": torch.clamp(mask.cumsum(dim=1) - 1, min=0),
                "response_mask": sampled.response_mask,
                **tensors,
            },
            batch_size=len(sampled),
        )
        data = left_right_2_no_padding(data)
        rows = len(sampled)
        # verl splits a batch only into equal parts, so take the largest size that divides the rows.
        micro_batch = max(
            size for size in range(1, self._config.micro_batch + 1) if rows % size == 0
        )
        tu.assign_non_tensor(
            data,
            use_remove_padding=torch.cuda.is_available(),
            use_dynamic_bsz=False,
            micro_batch_size_per_gpu=micro_batch,
            use_fused_kernels=False,
            calculate_entropy=False,
            # Served log-probabilities are those of the model itself, before any temperature.
            temperature=1.0,
            pad_token_id=self._pad,
            global_batch_size=rows,
        )
        return data


def policy_loss(config: PpoConfig) -> Any:
    """Return verl's clipped loss (`ppo_loss`), bound to this configuration."""
    from verl.workers.config import FSDPActorConfig
    from verl.workers.utils.losses import ppo_loss

    return partial(
        ppo_loss,
        config=FSDPActorConfig(
            strategy="fsdp2",
            ppo_mini_batch_size=config.batch,
            ppo_micro_batch_size_per_gpu=config.micro_batch,
            rollout_n=1,
            clip_ratio=config.clip,
            clip_ratio_low=config.clip,
            clip_ratio_high=config.clip,
            entropy_coeff=0.0,
            use_kl_loss=config.kl > 0.0,
            kl_loss_coef=config.kl,
            kl_loss_type="low_var_kl",
        ),
    )


def critic_loss(config: PpoConfig) -> Any:
    """Return verl's clipped value loss, bound to this configuration."""
    from verl.workers.config import FSDPCriticConfig
    from verl.workers.utils.losses import value_loss

    return partial(
        value_loss,
        config=FSDPCriticConfig(
            strategy="fsdp2",
            ppo_mini_batch_size=config.batch,
            ppo_micro_batch_size_per_gpu=config.micro_batch,
            rollout_n=1,
        ),
    )


def _number(value: Any) -> float:
    # verl reports a number, a list of numbers, or an object that aggregates them.
    if hasattr(value, "aggregate"):
        value = value.aggregate()
    if isinstance(value, list | tuple):
        return sum(map(_number, value)) / max(1, len(value))
    return float(value)
