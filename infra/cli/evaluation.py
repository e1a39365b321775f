"""Commands about evaluation: what a policy would have earned on logged decisions."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.options import AsJson, app, console, moment, print_json, print_table
from infra.cli.views import existing_log
from infra.config.settings import Settings, load_settings
from infra.control.routes import checkpoints_on
from infra.runtime.errors import ConfigError
from learners.bandit.worth import earned
from learners.contract import Policy
from learners.policies import UNIFORM_VERSION, UniformPolicy
from learners.settings import policy_loader
from schemas.clock import from_milliseconds
from schemas.examples import BanditExample, ExampleEvent
from schemas.rollouts import Split
from schemas.topics import EXAMPLES
from streams.storage.artifacts import ArtifactStore
from streams.storage.log import Log, read_events
from streams.views.checkpoints import Checkpoints
from streams.views.follower import read_views

if TYPE_CHECKING:
    from learners.logged import Logged

HELD_OUT: tuple[Split, ...] = ("validation", "test")


@app.command()
def ope(
    policy: Annotated[str, typer.Option(help="Version of a checkpoint, or `uniform`.")],
    against: Annotated[
        str, typer.Option(help="What it is compared with: a version, or `uniform`.")
    ] = UNIFORM_VERSION,
    name: Annotated[
        str | None, typer.Option(help="Logical name; by default the first that is learned.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only decisions rewarded from then on (ISO 8601).")
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Training decisions too; they flatter a policy that was taught by them."
        ),
    ] = False,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999)] = 0.95,
    gain: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Gain that one wants to be able to tell.")
    ] = 0.02,
    as_json: AsJson = False,
) -> None:
    """Estimate what a policy would have earned, off-policy, and whether it is better than
    another.
    """
    settings = load_settings()
    splits: tuple[Split, ...] = (*HELD_OUT, "train") if everything else HELD_OUT
    with existing_log(settings) as log:
        name = name or only_policy(settings, log)
        begin = moment(since, "--since") if since is not None else None
        decisions = list(logged_decisions(log, settings, name, splits, begin))
        first, second = (_policy(settings, log, name, version) for version in (policy, against))
    if len(decisions) < 2:
        raise ConfigError(
            f"{len(decisions)} rewarded decisions of {name} on {', '.join(splits)} tasks; two"
            " are needed"
        )
    policies = ((policy, first), (against, second))
    document = {"name": name, "decisions": len(decisions), "splits": splits}
    document |= _evaluation(policies, decisions, confidence, gain)
    if as_json:
        print_json(document)
    else:
        _print_evaluation(document, policy, against, gain)


def _evaluation(
    policies: tuple[tuple[str, Policy], tuple[str, Policy]],
    decisions: "Sequence[Logged]",
    confidence: float,
    gain: float,
) -> dict[str, Any]:
    """Return what two policies would have earned, and how much more the first."""
    from learners.bounds import decisions_needed
    from learners.evaluation import compare, evaluate
    from learners.gains import difference_deviation

    (_, first), (_, second) = policies
    deviation = difference_deviation(first, second, decisions)
    return {
        "confidence": confidence,
        "policies": {
            version: asdict(evaluate(of, decisions, confidence)) for version, of in policies
        },
        "difference": asdict(compare(first, second, decisions, confidence)),
        "decisions_needed_to_tell": {
            str(gain): decisions_needed(gain, deviation) if deviation > 0 else None
        },
    }


def _print_evaluation(document: dict[str, Any], policy: str, against: str, gain: float) -> None:
    confidence, difference = document["confidence"], document["difference"]
    rows = [
        (
            version,
            *(found[of] for of in ("ips", "snips", "direct", "doubly_robust", "switch")),
            _range(found["interval"]),
            f"{found['diagnostics']['effective']:.0f}",
        )
        for version, found in document["policies"].items()
    ]
    columns = (
        "policy",
        "IPS",
        "SNIPS",
        "DM",
        "DR",
        "switch-DR",
        f"{confidence:.0%} at any time",
        "effective n",
    )
    title = f"{document['name']}: mean reward over {document['decisions']} decisions"
    print_table(title, columns, rows)
    console.print(
        f"{policy} minus {against}: {difference['difference']:+.3f}, {confidence:.0%} interval"
        f" {_range(difference['interval'])}"
    )
    needed = document["decisions_needed_to_tell"][str(gain)]
    console.print(
        f"To tell a gain of {gain:g}: about {needed if needed else 'any number of'} decisions."
    )


def logged_decisions(
    log: Log, settings: Settings, name: str, splits: tuple[Split, ...], since: datetime | None
) -> Iterator["Logged"]:
    """Yield the rewarded decisions of a policy, in the order of their first reward. The newest
    reward of each counts.
    """
    from learners.logged import Logged

    newest: dict[str, Logged] = {}
    config = settings.bandit.learner_config()
    for record, event in read_events(log, EXAMPLES, ExampleEvent):
        if since is not None and from_milliseconds(record.timestamp_ms) < since:
            continue
        example = event.payload
        if (
            example.target == name
            and example.split in splits
            and isinstance(example.body, BanditExample)
        ):
            decision = example.body.decision
            # A correction comes as a later example of the same decision, and takes its place.
            newest[example.body.decision_id] = Logged(
                # With the rollout's key: decisions of one rollout are one piece of evidence.
                decision,
                earned(example, config),
                event.rollout_key,
            )
            if example.retracted:
                del newest[example.body.decision_id]
    yield from newest.values()


def only_policy(settings: Settings, log: Log) -> str:
    """Return the only policy, for a command that names none: the only configured one, or, if none
    is configured, the only one that was ever announced.

    Raises:
        ConfigError: there is none, or there are several.
    """
    checkpoints = Checkpoints()
    read_views(log, checkpoints)
    announced = [name for (name, _), c in checkpoints.all.items() if c.kind == "policy"]
    names = settings.policies or tuple(dict.fromkeys(announced))
    if not names:
        raise ConfigError("no policy is learned here; set bandit.targets, or [[learners]]")
    if len(names) > 1:
        raise ConfigError(f"there are several policies, name one: {', '.join(names)}")
    return names[0]


def _policy(settings: Settings, log: Log, name: str, version: str) -> Policy:
    if version == UNIFORM_VERSION:
        return UniformPolicy()
    checkpoint = checkpoints_on(log, name).get(version)
    if checkpoint is None or checkpoint.artifact is None:
        raise ConfigError(f"{name} has no checkpoint {version!r}; see `everloop checkpoints`")
    content = ArtifactStore(settings.artifacts_dir).get(checkpoint.artifact)
    return policy_loader(settings.learners).load(content, checkpoint.artifact.media_type)


def _range(interval: dict[str, float]) -> str:
    return f"{interval['low']:+.3f} to {interval['high']:+.3f}"
