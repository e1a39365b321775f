"""Commands about learning: replay."""

from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli.options import AsJson, app, console, moment, print_json, progress_bar
from infra.cli.views import existing_log
from infra.config.settings import Settings, load_settings
from infra.runtime.errors import ConfigError
from learners.bandit import BanditLearner
from streams.processors.learner import Learning
from streams.runners.replay import live_state, replay
from streams.storage.log import Log

BEGINNING = "beginning"


@app.command("replay")
def replay_command(
    learner: Annotated[
        str | None,
        typer.Option(
            help="Which learner: `bandit`, or the name of what it learns (default: the only one)."
        ),
    ] = None,
    start: Annotated[
        str, typer.Option("--from", help="`beginning`, an offset, or a time (ISO 8601).")
    ] = BEGINNING,
    reward: Annotated[
        str | None,
        typer.Option(
            help="What if the reward were this? `module:function`, from an example to [0, 1]."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="What if the bandit were so configured? A TOML file, its table `bandit`."
        ),
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(help="Picture of a what-if (default: data folder).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fold the log again, beside the live learner, and compare the weights. Exits 1 if they differ.

    With --reward or --config it is a what-if: it learns history as it was and otherwise, and
    compares both off-policy, on held-out decisions.
    """
    settings = load_settings()
    processor = _processor_of(settings, learner)
    if reward is not None or config is not None:
        from infra.cli.what_if import what_if

        if not isinstance(processor.learner, BanditLearner):
            raise ConfigError(
                f"{processor.learner.identity} is no bandit; --reward and --config need one"
            )
        what_if(settings, processor.learner.target, reward, config, chart, as_json)
        return
    document = _comparison(settings, processor, start)
    if as_json:
        print_json(document)
    else:
        console.print(f"{document['examples']} examples, weights {document['weights_sha256']}")
        console.print(
            "identical to the live ones" if document["identical"] else "not the live ones"
        )
    # From a later offset, or without live weights, a difference is no failure.
    must_agree = start == BEGINNING and document["live_weights_sha256"] is not None
    if must_agree and not document["identical"]:
        raise typer.Exit(1)


def _comparison(settings: Settings, processor: Learning[Any], start: str) -> dict[str, Any]:
    """Fold the log again, and return the hash of the weights beside that of the live ones."""
    with existing_log(settings) as log:
        begin = _start(log, processor, start)
        topic = processor.topics[0].name
        total = sum(end - begin.get(partition, 0) for partition, end in log.ends(topic).items())
        with progress_bar() as progress:
            bar = progress.add_task("examples", total=max(total, 0))
            replayed = replay(log, processor, begin, on_record=lambda: progress.advance(bar))
        live = live_state(log, processor)
    weights = _hash(processor, replayed)
    live_weights = _hash(processor, live) if live is not None else None
    return {
        "learner": processor.learner.identity,
        "target": processor.learner.target,
        "from": start,
        "examples": processor.learner.examples(replayed.state),
        "weights_sha256": weights,
        "live_weights_sha256": live_weights,
        "identical": live_weights == weights,
    }


def _processor_of(settings: Settings, name: str | None) -> Learning[Any]:
    """Return the learner of a name, or the only one.

    Raises:
        ConfigError: there is no such learner, or several where none is named.
    """
    from infra.installation.processors import learning_processors

    processors = learning_processors(settings)
    known = ", ".join(
        f"{p.learner.identity.partition('@')[0]} ({p.learner.target})" for p in processors
    )
    if not processors:
        raise ConfigError("nothing learns here; set bandit.targets, or [[learners]]")
    if name is None:
        if len(processors) > 1:
            raise ConfigError(f"there are several learners, name one by --learner: {known}")
        return processors[0]
    for processor in processors:
        if name in (processor.learner.target, processor.learner.identity.partition("@")[0]):
            return processor
    raise ConfigError(f"there is no learner {name!r}; there are: {known}")


def _start(log: Log, processor: Learning[Any], start: str) -> dict[int, int]:
    """Return the first offsets that `--from` means, by partition."""
    topic = processor.topics[0]
    if start == BEGINNING:
        return {}
    if start.isdigit():
        # The learner's examples lie in one partition. So one offset for all says enough.
        return dict.fromkeys(range(topic.partitions), int(start))
    time = moment(start, "--from", "`beginning`, an offset or ")
    return {
        partition: log.offset_at(topic.name, partition, time)
        for partition in range(topic.partitions)
    }


def _hash(processor: Learning[Any], learned: Any) -> str:
    return sha256(processor.learner.encode(learned.state)).hexdigest()
