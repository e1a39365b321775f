"""Commands about topics on a Kafka cluster: plan, apply."""

from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import AsJson, app, console, print_json, print_table
from infra.config.settings import load_settings

if TYPE_CHECKING:
    from streams.runners.kafka.topics import TopicChange

topics_app = typer.Typer(no_args_is_help=True, help="Declare the topics on a Kafka cluster.")
app.add_typer(topics_app, name="topics")


@topics_app.command("plan")
def plan_command(as_json: AsJson = False) -> None:
    """Show what `apply` would change."""
    from infra.installation.topics import planned_changes

    _show(planned_changes(load_settings()), as_json, "Nothing to change.")


@topics_app.command("apply")
def apply_command(
    replication: Annotated[
        int, typer.Option(help="Of new topics; -1 is the cluster's default.")
    ] = -1,
    as_json: AsJson = False,
) -> None:
    """Create missing topics and change different settings, and show these changes. Nothing is ever
    shrunk or deleted.
    """
    from infra.installation.topics import declare_topics

    _show(declare_topics(load_settings(), replication), as_json, "Nothing had to change.")


def _show(changes: "list[TopicChange]", as_json: bool, nothing: str) -> None:
    if as_json:
        print_json([{"topic": c.topic, "kind": c.kind, "detail": c.detail} for c in changes])
    elif changes:
        print_table(
            "Topics", ("topic", "change", "detail"), [(c.topic, c.kind, c.detail) for c in changes]
        )
    else:
        console.print(nothing)
