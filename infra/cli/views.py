"""Commands that show things: report, checkpoints, events tail, config, doctor, graph.

Each command imports what it needs itself, so that no command waits for the imports of another.

What a command needs is imported by the command, so that none waits for what only another needs.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Annotated, Any

import httpx
import orjson
import typer

from infra.analytics.report import Report, build_report
from infra.cli.options import AsJson, app, console, print_json, print_table
from infra.config.settings import Settings, config_files, load_settings
from infra.config.sources import sourced_settings
from infra.installation.log import open_log
from infra.processes.run_file import running_installation
from infra.runtime.errors import ConfigError
from schemas.decisions import Candidate
from schemas.topics import PREFIX, TOPICS, Topic, topic_named
from streams.storage.errors import StreamError
from streams.storage.log import Log
from streams.storage.records import Record
from streams.views.checkpoints import Checkpoints
from streams.views.follower import read_views
from streams.views.orders import Orders

events_app = typer.Typer(no_args_is_help=True, help="Look at the events on the log.")
app.add_typer(events_app, name="events")

TAIL_POLL_S = 0.2


@app.command()
def report(
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html and the picture (default: data folder)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the learning curve, success, latency, checkpoints and switches, and write them as a page
    and a picture.
    """
    from infra.analytics.page import write_report

    settings = load_settings()
    built = current_report(settings)
    html, png = write_report(built, out or settings.data_dir)
    if as_json:
        print_json(
            built.model_dump(mode="json") | {"report_html": str(html), "report_png": str(png)}
        )
        return
    print_report(built)
    console.print(f"Report: [bold]{html}[/]\nPicture: {png}")


def print_report(built: Report) -> None:
    """Print a report as tables."""
    print_table(
        "Rollouts",
        (
            "group",
            "rollouts",
            "success",
            "reward",
            "first third",
            "last third",
            "alignment",
            "turns",
            "curve",
        ),
        [
            (
                group.group,
                group.rollouts,
                f"{group.success_rate:.1%}",
                group.mean_reward,
                group.reward_first_third,
                group.reward_last_third,
                group.decision_alignment,
                group.mean_turns,
                _sparkline(group.rolling),
            )
            for group in built.groups
        ],
    )
    print_table(
        "Model calls and tools",
        ("node", "operation", "calls", "p50 ms", "p95 ms", "errors"),
        [
            (n.node, n.operation, n.calls, n.p50_s * 1000, n.p95_s * 1000, n.errors)
            for n in built.nodes
        ],
    )
    print_table(
        "Gates",
        ("name", "phase", "what it waits for"),
        [(g.name, g.phase, g.text) for g in built.gates],
    )
    print_table(
        "Checkpoints",
        ("name", "version", "state", "reason"),
        [(c.name, c.version, c.state, c.reason) for c in built.grouped_checkpoints],
    )
    print_table(
        "Switches",
        ("name", "time", "before", "after"),
        [
            (s.name, f"{s.time:%H:%M:%S}", ", ".join(s.before), ", ".join(s.after))
            for s in built.switches
        ],
    )


@app.command()
def checkpoints(as_json: AsJson = False) -> None:
    """List every checkpoint with its state, its lineage and the reason of its state."""
    with existing_log(load_settings()) as log:
        view = Checkpoints()
        read_views(log, view)
    latest = [found.model_dump(mode="json", exclude_none=True) for found in view.all.values()]
    if as_json:
        print_json(latest)
        return
    rows = [
        (c["name"], c["version"], c["state"], c.get("lineage", {}).get("examples"), c["reason"])
        for c in latest
    ]
    print_table("Checkpoints", ("name", "version", "state", "examples", "reason"), rows)


@events_app.command("tail")
def tail(
    topics: Annotated[
        list[str] | None, typer.Argument(help="Topics, such as `rewards`; all by default.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events come.")] = False,
    count: Annotated[
        int,
        typer.Option("--count", "-n", min=0, help="How many of the last records to begin with."),
    ] = 10,
    as_json: AsJson = False,
) -> None:
    """Print the last events, one a line. With --follow, print new events as they come."""
    with existing_log(load_settings()) as log:
        names = [_topic(name).name for name in topics] if topics else list(TOPICS)
        for record in _tail_records(log, names, count, follow):
            _print_record(record, as_json)


@app.command("config")
def show_config(as_json: AsJson = False) -> None:
    """Show every setting, its value, and whether it comes from a default, the file or the
    environment.
    """
    rows = sourced_settings(load_settings())
    if as_json:
        print_json(
            {name: {"value": value, "source": source} for name, (value, source) in rows.items()}
        )
        return
    console.print(f"files: {', '.join(map(str, config_files())) or 'none'}")
    print_table(
        "Settings",
        ("setting", "value", "source"),
        [(n, orjson.dumps(v).decode(), s) for n, (v, s) in rows.items()],
    )


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check that this machine has what Everloop needs. Show what is missing, and for which part.
    Exits 1 if Everloop cannot run.
    """
    settings = load_settings()
    checks = [_check_log(settings), _check_models(settings)]
    checks += [
        ("embedded analytics (chdb)", find_spec("chdb") is not None, "uv sync installs it", True),
        (
            "Java, for a local Kafka",
            which("java") is not None,
            "needed only for log = kafka:// without a cluster",
            False,
        ),
        ("trainers (extra `learn`)", find_spec("trl") is not None, "uv sync --extra learn", False),
        (
            "model server (extra `serve`)",
            find_spec("vllm") is not None,
            "uv sync --extra serve",
            False,
        ),
    ]
    if as_json:
        print_json(
            [{"check": n, "ok": ok, "hint": hint, "required": must} for n, ok, hint, must in checks]
        )
    else:
        rows = [
            (n, "yes" if ok else "NO" if must else "no", "" if ok else hint)
            for n, ok, hint, must in checks
        ]
        print_table("Doctor", ("what", "there", "hint"), rows)
    if any(must and not ok for _, ok, _, must in checks):
        raise typer.Exit(1)


@app.command()
def graph(
    out: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path(
        "research-society.png"
    ),
    as_json: AsJson = False,
) -> None:
    """Draw the research society's graph as a picture; print it as Mermaid text."""
    from langchain_core.language_models import FakeListChatModel
    from research_society.graph import Society
    from research_society.picture import draw
    from research_society.roles import ROLES

    # The graph binds tools to its models when it is made, and the fake has no such method.
    class Undriven(FakeListChatModel):
        """A model that is never called: the graph's shape does not depend on it."""

        def bind_tools(self, *_: Any, **__: Any) -> Any:
            return self

    async def undecided(rollout_id: str, context: str, candidates: Sequence[Candidate]) -> int:  # noqa: ARG001
        return 0

    drawn = Society(dict.fromkeys(ROLES, Undriven(responses=[])), [], undecided).graph().get_graph()
    draw(drawn, frozenset(role.name for role in ROLES.values() if role.has_tools), out)
    if as_json:
        print_json({"picture": str(out), "mermaid": drawn.draw_mermaid()})
        return
    typer.echo(drawn.draw_mermaid())
    console.print(f"Picture: [bold]{out}[/]")


def current_report(settings: Settings) -> Report:
    """Return the report from the process that owns the store, or from the store itself when none
    runs.
    """
    state = running_installation(settings.data_dir)
    if state is not None:
        url = state.urls["analytics"]
        try:
            # That process owns the embedded store, and only one process may open it.
            answer = httpx.get(f"{url}/report", timeout=60.0)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise ConfigError(f"the analytics process at {url} does not answer: {error}") from error
        return Report.model_validate_json(answer.content)
    from infra.analytics.client import connect
    from infra.analytics.sink import Sink

    with existing_log(settings) as log:
        client = connect(settings.analytics_dsn)
        Sink(log, client).catch_up()
        return build_report(client)


@app.command()
def batches(as_json: AsJson = False) -> None:
    """List the batches of examples: which examples batch learners were told to train on, by
    offsets.
    """
    orders = Orders()
    with existing_log(load_settings()) as log:
        read_views(log, orders)
    found = [
        (order, order.payload.manifest)
        for order in orders.all.values()
        if order.payload.manifest is not None
    ]
    if as_json:
        print_json(
            [
                {
                    "time": event.time.isoformat(),
                    "sha256": manifest.sha256,
                    "reason": event.payload.reason,
                }
                | manifest.model_dump(mode="json")
                for event, manifest in found
            ]
        )
        return
    print_table(
        "Batches",
        ("target", "number", "head", "examples", "why", "manifest"),
        [
            (m.target, m.number, m.head, m.examples, event.payload.reason, m.sha256[:12])
            for event, m in found
        ],
    )


def existing_log(settings: Settings) -> Log:
    """Return a connection to the log. Raise ConfigError if there is none: a command that only looks
    must not create one.
    """
    if settings.log_kind == "sqlite" and not settings.log_path.exists():
        raise ConfigError(
            f"there is no log at {settings.log_path}; run `everloop demo` or `everloop up` first"
        )
    return open_log(settings)


def _topic(name: str) -> Topic:
    try:
        return topic_named(name)
    except KeyError as error:
        raise ConfigError(str(error.args[0])) from error


def _tail_records(log: Log, names: list[str], count: int, follow: bool) -> Iterator[Record]:
    """Yield the last `count` records of these topics in the order they were appended, then those
    that come.
    """
    positions = {
        (name, partition): max(0, end - count)
        for name in names
        for partition, end in log.ends(name).items()
    }
    last: list[Record] = []
    while records := log.fetch(positions, 1000):
        positions |= {(record.topic, record.partition): record.offset + 1 for record in records}
        # Read through, since the last records of the topics together are not the last of each.
        last = [*last, *records][-count:] if count else []
    yield from last
    while follow:
        records = log.fetch(positions, 1000, wait_s=TAIL_POLL_S)
        positions |= {(record.topic, record.partition): record.offset + 1 for record in records}
        yield from records


def _print_record(record: Record, as_json: bool) -> None:
    value = (record.value or b"null").decode("utf-8", "replace")
    if as_json:
        head = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        typer.echo(orjson.dumps(head | {"value": value}).decode())
    else:
        key = (record.key or b"").decode("utf-8", "replace")
        place = f"{record.topic.removeprefix(PREFIX)}[{record.partition}]@{record.offset}"
        typer.echo(f"{place} {key} {value[:300]}{'…' if len(value) > 300 else ''}")


def _check_log(settings: Settings) -> tuple[str, bool, str, bool]:
    try:
        open_log(settings).close()
    except (StreamError, ConfigError) as error:
        return "log", False, str(error), True
    return f"log {settings.log_path}", True, "", True


def _check_models(settings: Settings) -> tuple[str, bool, str, bool]:
    unreachable = []
    for name, endpoint in settings.models.items():
        if endpoint.app is not None:
            continue  # it runs only beside Everloop
        try:
            # Any answer will do, also a refusal: the server is there.
            httpx.get(f"{endpoint.base_url}/models", timeout=5.0)
        except httpx.HTTPError as error:
            unreachable.append(f"{name} at {endpoint.base_url}: {type(error).__name__}")
    return "models", not unreachable, "; ".join(unreachable), True


def _sparkline(values: list[float], width: int = 24) -> str:
    """Return a curve in [0, 1] as blocks."""
    if not values:
        return ""
    # Every n-th value, so that a long curve fits into the table.
    step = max(1, len(values) // width)
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(value * 8))] for value in values[::step][:width])
