"""Commands about a Kafka of this machine: start, stop, status."""

from pathlib import Path
from typing import Annotated

import typer

from infra.cli.options import AsJson, app, console, print_json, print_table
from infra.config.settings import load_settings

kafka_app = typer.Typer(
    no_args_is_help=True, help="Run Apache Kafka on this machine, for development and tests."
)
app.add_typer(kafka_app, name="kafka")


def _folder() -> Path:
    return load_settings().data_dir / "kafka"


@kafka_app.command()
def start(
    brokers: Annotated[
        int, typer.Option(min=1, max=9, help="How many brokers; 3 replicate everything.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Start a cluster on free ports, fetching Kafka's jars with Maven the first time. Needs Java
    17.
    """
    from infra.kafka.local import LocalCluster

    cluster = LocalCluster(_folder())
    with console.status("starting Kafka …"):
        cluster.start(brokers)
    log = f"kafka://{cluster.bootstrap}"
    if as_json:
        print_json({"log": log, "brokers": [broker.model_dump() for broker in cluster.brokers]})
        return
    console.print(
        f"Kafka runs at [bold]{cluster.bootstrap}[/]. Use it with EVERLOOP_LOG={log}",
        soft_wrap=True,
    )


@kafka_app.command()
def stop(as_json: AsJson = False) -> None:
    """Stop the cluster; its data stays."""
    from infra.kafka.local import LocalCluster

    cluster = LocalCluster(_folder())
    stopped = [broker.id for broker in cluster.brokers if broker.alive]
    cluster.stop()
    if as_json:
        print_json({"stopped": stopped})
    else:
        console.print(f"Stopped {len(stopped)} brokers." if stopped else "No broker runs.")


@kafka_app.command()
def status(as_json: AsJson = False) -> None:
    """Show the brokers of the cluster."""
    from infra.kafka.local import LocalCluster

    cluster = LocalCluster(_folder())
    rows = [
        (broker.id, broker.port, broker.pid, broker.alive, cluster.log_file(broker.id))
        for broker in cluster.brokers
    ]
    if as_json:
        names = ("id", "port", "pid", "alive", "log")
        print_json({"brokers": [dict(zip(names, row, strict=True)) for row in rows]})
        return
    print_table("Kafka", ("broker", "port", "pid", "runs", "log"), rows)
