"""What-if: history learned again with another reward or configuration, compared, and drawn."""

import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from infra.cli.options import console, print_json, print_table
from infra.cli.views import existing_log
from infra.config.settings import Settings
from infra.runtime.errors import ConfigError
from learners.bandit import BanditConfig, BanditLearner
from learners.references import UnknownReferenceError, resolve_plain
from learners.what_if import Refitted, Replayed, RewardFunction, RewardFunctionError
from schemas.examples import ExampleEvent
from schemas.serialization import readable
from schemas.topics import EXAMPLES
from streams.storage.log import read_events

if TYPE_CHECKING:
    from learners.logged import Logged

POINTS = 10
SEED = 0
AS_IT_IS, OTHERWISE = "as it is", "what if"


def what_if(
    settings: Settings,
    name: str,
    reward: str | None,
    config: Path | None,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Refit a policy on its training decisions twice, as it is and otherwise; compare both, and
    draw.

    Args:
        reward: `module:function`, see `learners.what_if.RewardFunction`; both are evaluated by it.
        config: TOML file whose table `bandit`, or top level, holds other settings.

    Raises:
        ConfigError: there is nothing to compare with, or the function or the file cannot be used.
    """
    from learners.evaluation import compare
    from learners.what_if import weighted_mean

    fitted, through, evidence = _learned_twice(settings, name, reward, config)
    curves = {
        which: [(point.examples, weighted_mean(point.policy, evidence)) for point in points]
        for which, points in fitted.items()
    }
    picture = _draw(curves, through, chart or settings.data_dir / "what-if.png")
    document: dict[str, Any] = {
        "name": name,
        "reward": reward,
        "config": str(config) if config else None,
        "held_out": len(evidence),
        "policies": {
            which: _policy_summary(points[-1], evidence, curves[which], through[which])
            for which, points in fitted.items()
        },
        "difference": asdict(
            compare(fitted[OTHERWISE][-1].policy, fitted[AS_IT_IS][-1].policy, evidence)
        ),
        "chart": str(picture),
    }
    if as_json:
        print_json(document)
    else:
        _print_comparison(document, fitted)


def _learned_twice(
    settings: Settings, name: str, reward: str | None, config: Path | None
) -> "tuple[dict[str, list[Refitted]], dict[str, Replayed], list[Logged]]":
    """Return policies learned from ever more examples, what learners earned in a replay, both by
    which of the two it is, and the held-out decisions that judge them.
    """
    from learners.what_if import held_out, refit, run_replay_method

    function = _function(reward) if reward else None
    settled = settings.bandit.learner_config()
    learners = {
        AS_IT_IS: BanditLearner(name, settled),
        OTHERWISE: BanditLearner(name, _config(settled, config) if config else settled),
    }
    logged = _examples(settings, name)
    taught = {AS_IT_IS: logged, OTHERWISE: _with_rewards(logged, function, reward)}
    # Both are judged by the new reward. By two rewards they could not be compared.
    evidence = held_out(taught[OTHERWISE], learners[OTHERWISE].config)
    fitted = {which: refit(learner, taught[which], POINTS) for which, learner in learners.items()}
    if len(evidence) < 2 or not all(fitted.values()):
        examples = sum(event.payload.split == "train" for event in taught[OTHERWISE])
        raise ConfigError(
            f"{examples} examples and {len(evidence)} held-out decisions of {name}; at least"
            " one example and two decisions are needed"
        )
    through = {
        which: run_replay_method(learner, taught[which], SEED)
        for which, learner in learners.items()
    }
    return fitted, through, evidence


def _with_rewards(
    logged: list[ExampleEvent], function: RewardFunction | None, reward: str | None
) -> list[ExampleEvent]:
    """Return examples with the rewards of a function; as they are without one."""
    from learners.what_if import with_rewards_of

    try:
        return with_rewards_of(logged, function)
    except RewardFunctionError as error:
        raise ConfigError(f"--reward {reward}: {error}") from error


def _policy_summary(
    last: Refitted, evidence: "Sequence[Logged]", curve: list[tuple[int, float]], through: Replayed
) -> dict[str, Any]:
    """Return what is known of a policy that was learned again."""
    from learners.evaluation import evaluate

    return {
        "examples": last.examples,
        "evaluation": asdict(evaluate(last.policy, evidence)),
        "curve": [{"examples": examples, "value": value} for examples, value in curve],
        "replay_method": _replay_method(through),
    }


def _print_comparison(document: dict[str, Any], fitted: dict[str, list[Refitted]]) -> None:
    rows = []
    for which, found in document["policies"].items():
        estimates, replay = found["evaluation"], found["replay_method"]
        interval = estimates["interval"]
        rows.append(
            (
                which,
                fitted[which][-1].examples,
                estimates["snips"],
                estimates["doubly_robust"],
                f"{interval['low']:.3f} to {interval['high']:.3f}",
                "–" if replay["mean"] is None else f"{replay['mean']:.3f} of {replay['matched']}",
            )
        )
    columns = ("learned", "examples", "SNIPS", "DR", "95% at any time", "replay method")
    print_table(
        f"{document['name']}: mean reward on {document['held_out']} held-out decisions",
        columns,
        rows,
    )
    difference = document["difference"]
    low, high = difference["interval"]["low"], difference["interval"]["high"]
    console.print(
        f"what if minus as it is: {difference['difference']:+.3f}, 95% interval {low:+.3f} to"
        f" {high:+.3f}"
    )
    console.print(f"Picture: [bold]{document['chart']}[/]")


def _examples(settings: Settings, name: str) -> list[ExampleEvent]:
    with existing_log(settings) as log:
        return [
            event
            for _, event in read_events(log, EXAMPLES, ExampleEvent)
            if event.payload.target == name
        ]


def _function(named: str) -> RewardFunction:
    try:
        found: RewardFunction = resolve_plain(named)
    except UnknownReferenceError as error:
        raise ConfigError(f"--reward: {error}") from error
    return found


def _config(base: BanditConfig, file: Path) -> BanditConfig:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
        return BanditConfig.model_validate(base.model_dump() | document.get("bandit", document))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {file}: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"--config {file}: {readable(error)}") from error


def _replay_method(found: Replayed) -> dict[str, Any]:
    matched = len(found.rewards)
    return {
        "shown": found.shown,
        "matched": matched,
        "mean": sum(found.rewards) / matched if matched else None,
    }


def _draw(
    curves: dict[str, list[tuple[int, float]]], through: dict[str, Replayed], path: Path
) -> Path:
    """Draw two charts: the held-out value of policies after ever more examples, and the reward that
    a learner would have earned meanwhile.
    """
    from matplotlib.figure import Figure

    from infra.analytics.charts import COLOURS

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (which, points) in zip(COLOURS, curves.items(), strict=False):
        left.plot(
            [examples for examples, _ in points],
            [value for _, value in points],
            "o-",
            color=colour,
            label=which,
        )
        means = _running_means(through[which].rewards)
        right.plot(range(1, len(means) + 1), means, color=colour, label=which)
    left.set(
        title="held-out value by examples (SNIPS)",
        xlabel="examples",
        ylabel="mean reward",
        ylim=(0, 1.05),
    )
    right.set(title="replay method, mean so far", xlabel="matched decisions", ylim=(0, 1.05))
    left.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _running_means(rewards: Sequence[float]) -> list[float]:
    total, means = 0.0, []
    for number, reward in enumerate(rewards, start=1):
        total += reward
        means.append(total / number)
    return means
