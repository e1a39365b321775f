"""A training run: reads examples and a parent; writes a folder of weights, rows and lineage."""

import shutil
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from peft import PeftModel

from learners.datasets import (
    PreferenceRow,
    PromptRow,
    RlRow,
    SftRow,
    preference_rows,
    prompt_rows,
    rl_rows,
    sft_rows,
)
from learners.training import grpo, ppo, preference, sft, tables
from learners.training.config import (
    LINEAGE,
    MODEL,
    ROWS,
    STATES,
    AnyConfig,
    DpoConfig,
    GrpoConfig,
    PpoConfig,
    SftConfig,
)
from learners.training.progress import ReportProgress
from learners.training.weights import Loaded, is_adapter, load, make_repeatable, save
from schemas.examples import ExampleEvent

Rows = Sequence[SftRow] | Sequence[PreferenceRow] | Sequence[PromptRow] | Sequence[RlRow]


def run(
    examples: Iterable[ExampleEvent],
    config: AnyConfig,
    parent: Path | None,
    lineage: dict[str, Any],
    folder: Path,
    report: ReportProgress,
) -> dict[str, float]:
    """Train, and write `rows.parquet` (the rows) and `model/` (the weights for a server).

    On a CPU the same arguments give the same weights, bit for bit. If the folder holds saved states
    of an interrupted run, training continues from them.

    Args:
        parent: folder of the weights to start from; None for the base of the configuration.
        lineage: written beside the weights, with the configuration and the metrics.

    Returns:
        Metrics by name.

    Raises:
        TrainingError: the run cannot produce weights that may be served.
    """
    # Before the weights are loaded: new adapters draw random numbers.
    make_repeatable(config)
    rows = rows_for(examples, config)
    folder.mkdir(parents=True, exist_ok=True)
    # Before training, so that the rows of a failed run can be looked at.
    tables.write(rows, folder / ROWS)
    loaded = _load(config, parent)
    metrics = _train(loaded, rows, config, parent, folder / STATES, report)
    model = folder / MODEL
    save(loaded, config, model)
    (model / LINEAGE).write_bytes(
        orjson.dumps(
            lineage
            | {
                "config": config.model_dump(mode="json"),
                "metrics": metrics,
                "rows_sha256": sha256((folder / ROWS).read_bytes()).hexdigest(),
                "events": tables.origins(rows),
            },
            option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS,
        )
    )
    (model / "README.md").write_text(card(config, lineage, metrics, len(rows)))
    # The states are larger than the weights, and a run that has ended needs them no more.
    shutil.rmtree(folder / STATES)
    return metrics


def rows_for(examples: Iterable[ExampleEvent], config: AnyConfig) -> Rows:
    """Return the rows that a method learns from."""
    match config:
        case SftConfig():
            return sft_rows(examples, config.dataset)
        case DpoConfig():
            return preference_rows(examples, config.dataset)
        case GrpoConfig():
            return prompt_rows(examples, config.dataset)
        case PpoConfig():
            return rl_rows(examples, config.dataset)


def card(config: AnyConfig, lineage: dict[str, Any], metrics: dict[str, float], rows: int) -> str:
    """Return a model card in the format of the Hugging Face hub."""
    parent = lineage.get("parent") or "none: the base"
    measured = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items()))
    return f"""---
base_model: {config.base}
tags: [everloop, {config.method}]
---
# {lineage.get("target", "model")}

Trained by Everloop with {config.method.upper()} on {rows} rows from events of its own traffic.
`{LINEAGE}` names the events, the configuration and the parent ({parent}).

| metric | value |
| --- | --- |
{measured}
"""


def _load(config: AnyConfig, parent: Path | None) -> Loaded:
    if not isinstance(config, PpoConfig):
        return load(config, parent)
    # verl adds adapters itself.
    whole = config.model_copy(update={"lora": None})
    if _adapter_to_continue(config, parent) is not None:
        return load(whole, None)
    loaded = load(whole, parent)
    if isinstance(loaded.model, PeftModel):
        loaded.model = loaded.model.merge_and_unload()
    return loaded


def _adapter_to_continue(config: PpoConfig, parent: Path | None) -> Path | None:
    """Return the folder of the adapter that verl continues; None if verl starts a new one."""
    return (
        parent if is_adapter(parent) and config.lora is not None and not config.lora.merge else None
    )


def _train(
    loaded: Loaded,
    rows: Any,
    config: AnyConfig,
    parent: Path | None,
    states: Path,
    report: ReportProgress,
) -> dict[str, float]:
    match config:
        case SftConfig():
            return sft.train(loaded, rows, config, states, report)
        case DpoConfig():
            return preference.train(loaded, rows, config, states, report)
        case GrpoConfig():
            return grpo.train(loaded, rows, config, states, report)
        case PpoConfig():
            return ppo.train(
                loaded, rows, config, states, report, _adapter_to_continue(config, parent)
            )
