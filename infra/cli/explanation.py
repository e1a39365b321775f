"""Commands that explain: the features behind a decision, and how a policy's features changed."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.evaluation import HELD_OUT, logged_decisions, only_policy
from infra.cli.options import AsJson, app, console, print_json, print_table
from infra.cli.views import existing_log
from infra.config.settings import Settings, load_settings
from infra.control.routes import checkpoints_on
from infra.runtime.errors import ConfigError
from learners.bandit import BanditPolicy
from learners.policies import UNIFORM_VERSION
from learners.settings import policy_loader
from schemas.checkpoints import Checkpoint
from schemas.decisions import DecisionEvent
from schemas.topics import DECISIONS
from streams.storage.artifacts import ArtifactStore
from streams.storage.log import Log, read_events

if TYPE_CHECKING:
    from learners.logged import Logged

explain_app = typer.Typer(
    no_args_is_help=True, help="Say why: of one decision, or of a policy over time."
)
app.add_typer(explain_app, name="explain")

STAGES = 4
SAMPLE = 200
Top = Annotated[int, typer.Option(min=1, max=100, help="How many features to show.")]


@explain_app.command("decision")
def explain_decision(
    decision: Annotated[
        str, typer.Argument(help="Id of a decision, or of the rollout it was made in.")
    ],
    version: Annotated[
        str | None, typer.Option(help="Another version's view; by default the one that chose.")
    ] = None,
    top: Top = 5,
    as_json: AsJson = False,
) -> None:
    """Show which reward the policy expected of each candidate of a decision, and which features
    made it.
    """
    from learners.bandit.explanation import reasons

    settings = load_settings()
    with existing_log(settings) as log:
        events = [
            event for event in _decisions(log) if decision in (event.event_id, event.rollout_id)
        ]
        if not events:
            raise ConfigError(
                f"there is no decision {decision!r} on the log, nor a rollout with one"
            )
        policies = [
            _policy(settings, log, event.payload.policy, version or event.payload.policy_version)
            for event in events
        ]
    documents = []
    for event, policy in zip(events, policies, strict=True):
        made = event.payload
        found = reasons(policy, made)
        documents.append(
            {
                "decision_id": event.event_id,
                "policy": made.policy,
                "version": version or made.policy_version,
                "choice": made.choice,
                "candidates": [
                    {
                        "id": candidate.id,
                        "text": candidate.text,
                        "believed": of.believed,
                        "probability": of.probability,
                        "contributions": dict(list(of.contributions.items())[:top]),
                    }
                    for candidate, of in zip(made.candidates, found, strict=True)
                ],
            }
        )
    if as_json:
        print_json(documents)
        return
    for document in documents:
        _print_decision(document)


def _print_decision(document: dict[str, Any]) -> None:
    rows = [
        (
            ("→ " if number == document["choice"] else "")
            + (candidate["id"] or candidate["text"][:40]),
            candidate["believed"],
            candidate["probability"],
            "; ".join(f"{name} {value:+.3f}" for name, value in candidate["contributions"].items()),
        )
        for number, candidate in enumerate(document["candidates"])
    ]
    title = f"{document['policy']} {document['version']}, decision {document['decision_id']}"
    print_table(
        title, ("candidate", "believed", "probability", "because of, beyond the slate's mean"), rows
    )


@explain_app.command("policy")
def explain_policy(
    name: Annotated[
        str | None, typer.Argument(help="Logical name; by default the first that is learned.")
    ] = None,
    top: Top = 10,
    as_json: AsJson = False,
) -> None:
    """Show which features moved a policy's versions, what each candidate is worth, and how much was
    missed.
    """
    from learners.bandit.explanation import importance
    from learners.evaluation import candidate_values
    from learners.modelled_rewards import regrets

    settings = load_settings()
    with existing_log(settings) as log:
        name = name or only_policy(settings, log)
        rewarded = list(logged_decisions(log, settings, name, (*HELD_OUT, "train"), None))
        stages = [
            (checkpoint.version, _policy(settings, log, name, checkpoint.version))
            for checkpoint in _stages(checkpoints_on(log, name))
        ]
    if len(rewarded) < STAGES or not stages:
        raise ConfigError(
            f"{len(rewarded)} rewarded decisions and {len(stages)} checkpoints of {name}; too"
            f" few to say: {STAGES} decisions and a checkpoint are needed"
        )
    # The last ones: they are of the kind that the policy meets now.
    sample = [item.decision for item in rewarded[-SAMPLE:]]
    document = {
        "name": name,
        "decisions": len(rewarded),
        "importance": {
            version: dict(list(importance(policy, sample).items())[:top])
            for version, policy in stages
        },
        "candidates": _value_curves(rewarded, candidate_values),
        "regret": [float(part.mean()) for part in _parts(regrets(rewarded))],
    }
    if as_json:
        print_json(document)
    else:
        _print_policy(document)


def _print_policy(document: dict[str, Any]) -> None:
    versions = list(document["importance"])
    latest = document["importance"][versions[-1]]
    rows = [
        (feature, *(document["importance"][version].get(feature, 0.0) for version in versions))
        for feature in latest
    ]
    print_table(f"{document['name']}: how much features move beliefs", ("feature", *versions), rows)
    quarters = [f"quarter {number}" for number in range(1, STAGES + 1)]
    shown = sorted(document["candidates"].items(), key=lambda item: -item[1]["offered"])[:20]
    rows = [
        (
            candidate[:40],
            of["offered"],
            of["chosen"],
            *("–" if v is None else f"{v:.3f}" for v in of["values"]),
        )
        for candidate, of in shown
    ]
    print_table(
        "What each candidate is worth where it is offered",
        ("candidate", "offered", "chosen", *quarters),
        rows,
    )
    regret = ", ".join(f"{part:.3f}" for part in document["regret"])
    console.print(
        f"Missed a decision, by quarter (direct method, rather too much than too little): {regret}"
    )


def _value_curves(rewarded: "Sequence[Logged]", values_of: Any) -> dict[str, Any]:
    """Return for each candidate how often it was offered and chosen, and its value by quarters of
    time.
    """
    whole, quarters = values_of(rewarded), [values_of(part) for part in _parts(rewarded)]
    return {
        name: {
            "offered": value.offered,
            "chosen": value.chosen,
            "values": [quarter[name].value if name in quarter else None for quarter in quarters],
        }
        for name, value in whole.items()
    }


def _parts(of: Any) -> list[Any]:
    """Return a sequence in `STAGES` parts of about the same length."""
    edges = [round(len(of) * number / STAGES) for number in range(STAGES + 1)]
    return [of[first:last] for first, last in pairwise(edges)]


def _stages(checkpoints: dict[str, Checkpoint]) -> list[Checkpoint]:
    """Return up to `STAGES` checkpoints, evenly over time, the last one with them."""
    # A set below: with few checkpoints, two places may be the same.
    known = [checkpoint for checkpoint in checkpoints.values() if checkpoint.artifact is not None]
    places = (
        {round((len(known) - 1) * number / max(1, STAGES - 1)) for number in range(STAGES)}
        if known
        else set()
    )
    return [known[place] for place in sorted(places)]


def _decisions(log: Log) -> Iterator[DecisionEvent]:
    for _, event in read_events(log, DECISIONS, DecisionEvent):
        yield event


def _policy(settings: Settings, log: Log, name: str, version: str) -> BanditPolicy:
    if version == UNIFORM_VERSION:
        raise ConfigError(
            f"{name} chose by chance: version {UNIFORM_VERSION} has no reasons; give another"
            " --version"
        )
    checkpoint = checkpoints_on(log, name).get(version)
    if checkpoint is None or checkpoint.artifact is None:
        raise ConfigError(f"{name} has no checkpoint {version!r}; see `everloop checkpoints`")
    content = ArtifactStore(settings.artifacts_dir).get(checkpoint.artifact)
    policy = policy_loader(settings.learners).load(content, checkpoint.artifact.media_type)
    if not isinstance(policy, BanditPolicy):
        raise ConfigError(
            f"{name} {version} is of the type {checkpoint.artifact.media_type}, and only bandits"
            " can say why"
        )
    return policy
