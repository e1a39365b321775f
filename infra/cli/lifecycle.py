"""Commands that start, stop and watch an installation: up, down, status, demo.

Each command imports what it needs itself, so that no command waits for the imports of another.

What a command needs is imported by the command, so that none waits for what only another needs.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer

from infra.analytics.settings import AnalyticsSettings
from infra.cli.options import AsJson, app, console, print_json, print_table, progress_bar
from infra.config.settings import CONFIG_VARIABLE, Settings, config_files, load_settings
from infra.gateway.settings import GatewaySettings
from infra.installation.log import open_log
from infra.processes.run_file import StartError, running_installation
from infra.runtime.errors import ConfigError
from learners.gate import GateConfig
from schemas.checkpoints import CheckpointState
from streams.runners.lag import lag
from streams.views.audit import AuditTrail
from streams.views.checkpoints import Checkpoints
from streams.views.follower import read_views
from streams.views.gates import Gates
from streams.views.keys import Keys
from streams.views.orders import Orders
from streams.views.routes import Routes
from streams.views.trainings import Trainings

if TYPE_CHECKING:
    from infra.demo.comparison import DemoResult

DOWN_TIMEOUT_S = 60.0
REFUSED = (CheckpointState.REJECTED, CheckpointState.ROLLED_BACK)
EXAMPLE = "research_society"
"""The package that `everloop demo` runs."""

RELAXED = (
    "The gate is less strict here than in an installation, since {rollouts} rollouts are few:"
    " confidence {gate.confidence:.0%} (not 95%), tolerance {gate.tolerance:g} (not 0.02), and no"
    " trial before a promotion."
)

NO_MODEL = (
    "No model is configured: a stand-in answers every call. Set models.NAME.base_url and"
    " models.NAME.model in everloop.toml."
)


@app.command()
def up(as_json: AsJson = False) -> None:
    """Run gateway, workers, learners and analytics until Ctrl-C. A process that dies is started
    again.
    """
    from infra.processes.supervisor import Supervisor

    settings = load_settings()
    supervisor = Supervisor(settings)
    supervisor.start()
    if as_json:
        print_json({"gateway": supervisor.gateway_url, "pid": os.getpid()})
    else:
        console.print(f"Everloop serves at [bold]{supervisor.gateway_url}/v1[/] (Ctrl-C stops it)")
        if not settings.models:
            console.print(NO_MODEL)
    supervisor.run()


@app.command()
def down(as_json: AsJson = False) -> None:
    """Stop what `everloop up` started."""
    settings = load_settings()
    state = running_installation(settings.data_dir)
    if state is None:
        _say(as_json, {"stopped": False}, f"Nothing runs on {settings.data_dir}.")
        return
    # The supervisor stops its processes in order.
    os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while state.alive:
        if time.monotonic() > deadline:
            raise StartError(f"pid {state.pid} did not stop in {DOWN_TIMEOUT_S:.0f} s")
        time.sleep(0.05)
    _say(as_json, {"stopped": True}, "Stopped.")


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show what runs, its health, the lag of each consumer group, and what each gate waits for."""
    settings = load_settings()
    state = running_installation(settings.data_dir)
    document: dict[str, Any] = {"running": state is not None, "data_dir": str(settings.data_dir)}
    document["groups"] = _groups(settings)
    document["unreadable"] = _unreadable(settings)
    document["gates"] = _gates(settings)
    if state is not None:
        document |= state.model_dump(mode="json")
        document["gateway"] = _gateway_health(state.urls["gateway"])
    if as_json:
        print_json(document)
        return
    if state is None:
        console.print(f"Nothing runs on {settings.data_dir}; start it with `everloop up`.")
    else:
        processes = document["processes"].items()
        print_table(
            "Processes",
            ("name", "pid", "restarts"),
            [(n, p["pid"], p["restarts"]) for n, p in processes],
        )
        console.print(f"Gateway {document['urls']['gateway']}: {document['gateway']['status']}")
        if document["gateway"].get("stand_in"):
            console.print(NO_MODEL)
    rows = [
        (name, sum(lags.values()), ", ".join(lags) or "–")
        for name, lags in document["groups"].items()
    ]
    print_table("Consumer groups", ("group", "records behind", "on"), rows)
    for gate in document["gates"]:
        console.print(f"[bold]{gate['name']}[/] ({gate['phase']}): {gate['text']}.")
        if gate["rejected"]:
            console.print(
                f"  {gate['rejected']} versions were rejected or rolled back; the last,"
                f" {gate['last_rejected']}: {gate['last_reason']}"
            )
    for topic, count in document["unreadable"].items():
        console.print(
            f"{topic}: {count} records cannot be read and are skipped; see `everloop dead-letters"
            " list`"
        )


@app.command()
def demo(
    rollouts: Annotated[
        int, typer.Option(min=3, help="Rollouts of the learning arm; a random arm runs as many.")
    ] = 300,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Task file, or `pubmedqa` for the hub; by default the project's own small set."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of tasks and of every draw.")] = 1,
    log: Annotated[
        str,
        typer.Option(
            help="`embedded`, or `kafka`: a broker of this machine for the demonstration alone."
        ),
    ] = "embedded",
    as_json: AsJson = False,
) -> None:
    """Run the whole loop: agents at work, a policy that learns from them, a gate, a switch, a
    report.
    """
    from research_society.tasks import TaskFileError, load_tasks

    from infra.analytics.page import write_report
    from infra.cli.views import print_report
    from infra.demo.comparison import DEMO_GATE, DemoOptions, run_demo

    if log not in ("embedded", "kafka"):
        raise ConfigError(f"--log is {log!r}; it must be `embedded` or `kafka`")
    settings = _demo_settings(example_settings())
    try:
        options = DemoOptions(load_tasks(tasks), rollouts, seed)
    except TaskFileError as error:
        raise ConfigError(str(error)) from error
    if settings.gate == DEMO_GATE and not as_json:
        console.print(RELAXED.format(gate=DEMO_GATE, rollouts=rollouts))
    with progress_bar() as progress, _own_log(settings, log) as settings:
        bar = progress.add_task("rollouts (both arms)", total=2 * rollouts)
        result, report = run_demo(
            settings, options, lambda done: progress.update(bar, completed=done)
        )
    html, png = write_report(
        report, settings.data_dir, f"models {result.models}; reward: {result.reward_kind}"
    )
    if as_json:
        print_json(
            result.model_dump(mode="json") | {"report_html": str(html), "report_png": str(png)}
        )
        return
    print_report(report)
    _print_summary(result)
    console.print(f"Report: [bold]{html}[/]\nPicture: {png}")


def _demo_settings(base: Settings) -> Settings:
    """Return the settings of a demonstration: a folder and a log of its own, and free ports.

    So it runs beside an installation, and leaves nothing in it.
    """
    from infra.demo.comparison import DEMO_GATE

    folder = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    # Agents of a demonstration have no key, and it listens on loopback only.
    gateway = base.gateway.model_dump() | {"port": 0, "keys": "optional"}
    return base.model_copy(
        update={
            "data_dir": base.data_dir / "demo" / folder,
            # A fresh log in the folder above, whatever the installation uses.
            "log": None,
            "gateway": GatewaySettings(**gateway),
            # Free ports, so that a demonstration runs beside an installation.
            "apps": {name: own.model_copy(update={"port": 0}) for name, own in base.apps.items()},
            "analytics": AnalyticsSettings(host=base.analytics.host, port=0),
            "gate": DEMO_GATE if base.gate == GateConfig() else base.gate,
        }
    )


def example_settings() -> Settings:
    """Return the example's settings, with the user's own over them.

    The environment names both, so that processes that are started later read the same.
    """
    # Absolute, because processes may start in another folder.
    files = [str(file.absolute()) for file in config_files()]
    os.environ[CONFIG_VARIABLE] = os.pathsep.join([*files, EXAMPLE])
    return load_settings()


@contextmanager
def _own_log(settings: Settings, kind: str) -> Iterator[Settings]:
    """Yield the settings with a fresh log of this kind, which lasts as long as the block."""
    if kind == "embedded":
        yield settings
        return
    from infra.installation.topics import declare_topics
    from infra.kafka.local import LocalCluster

    cluster = LocalCluster(settings.data_dir / "kafka")
    try:
        cluster.start()
        settings = settings.model_copy(update={"log": f"kafka://{cluster.bootstrap}"})
        declare_topics(settings)
        yield settings
    finally:
        cluster.stop()


def _print_summary(result: "DemoResult") -> None:
    compared = result.learned_against_random
    console.print(
        f"\nModels: {result.models}. Reward: {result.reward_kind}."
        f"\nLearned policy {result.mean_reward:.3f}, random policy"
        f" {result.reward_random_policy:.3f} on the same"
        f" {compared.pairs} tasks: {compared.difference:+.3f} (95 % interval {compared.low:+.3f} to"
        f" {compared.high:+.3f}, paired t-test p = {compared.p_value:.2g})."
        f"\n{result.policy_updates} examples, {result.switches} switches,"
        f" {result.failed_requests} failed requests,"
        f" {result.lost_events} lost events, {result.dead_letters} dead letters,"
        f" {result.duration_s:.0f} s."
    )


def _groups(settings: Settings) -> dict[str, dict[str, int]]:
    """Return each consumer group with how many records it is behind, on the partitions where
    it is.
    """
    from infra.installation.processors import all_processors

    if settings.log_kind == "sqlite" and not settings.log_path.exists():
        return {}
    processors = all_processors(settings)
    with open_log(settings) as log:
        return {
            processor.group: {
                f"{t}[{p}]": count for (t, p), count in lag(log, processor).items() if count
            }
            for processor in processors
        }


def _gates(settings: Settings) -> list[dict[str, Any]]:
    """Return what each gate waits for, with how many versions it refused, and why the last."""
    if settings.log_kind == "sqlite" and not settings.log_path.exists():
        return []
    gates, checkpoints = Gates(), Checkpoints()
    with open_log(settings) as log:
        read_views(log, gates, checkpoints)
    found = []
    for name, gate in sorted(gates.current.items()):
        refused = [c for c in checkpoints.of(name).values() if c.state in REFUSED]
        last = refused[-1] if refused else None
        found.append(
            gate.model_dump(mode="json")
            | {
                "rejected": len(refused),
                "last_rejected": last and last.version,
                "last_reason": last and last.reason,
            }
        )
    return found


def _unreadable(settings: Settings) -> dict[str, int]:
    """Return how many records cannot be read, by the topics that views read."""
    if settings.log_kind == "sqlite" and not settings.log_path.exists():
        return {}
    with open_log(settings) as log:
        return dict(
            read_views(log, Routes(), Checkpoints(), Keys(), Trainings(), Orders(), AuditTrail())
        )


def _gateway_health(url: str) -> dict[str, Any]:
    try:
        health: dict[str, Any] = httpx.get(f"{url}/healthz", timeout=5.0).json()
    except httpx.HTTPError as error:
        return {"status": f"no answer ({type(error).__name__})"}
    return health


def _say(as_json: bool, document: dict[str, Any], sentence: str) -> None:
    if as_json:
        print_json(document)
    else:
        console.print(sentence)
