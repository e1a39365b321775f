"""The command that runs the pipeline's phases."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import AsJson, app, console, print_json, print_table
from infra.cli.views import current_report
from infra.config.settings import Settings, load_settings
from infra.installation.log import open_log
from infra.processes.run_file import running_installation

if TYPE_CHECKING:
    from infra.analytics.report import Report
    from infra.pipeline.phases import PhaseResult
    from infra.pipeline.tasks import PipelineTask

# How long the report waits for analytics to read what the phases wrote.
ANALYTICS_TIMEOUT_S = 30.0


@app.command()
def pipeline(
    rounds: Annotated[
        int, typer.Option(min=0, help="How often all phases are run; 0 goes on until Ctrl-C.")
    ] = 1,
    tasks: Annotated[
        str | None,
        typer.Option(help="JSON Lines file or `module:function`, instead of `pipeline.tasks`."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Gather, train, try and switch, phase by phase (`pipeline` in the configuration); then report.

    It uses the installation that runs on this data folder, or starts one for as long as it takes.
    """
    from infra.analytics.page import write_report
    from infra.pipeline.phases import check_pipeline, with_measurements
    from infra.pipeline.tasks import load_tasks

    settings = load_settings()
    check_pipeline(settings.pipeline, settings.policies, settings.training.models)
    known = load_tasks(tasks or settings.pipeline.tasks)
    results = _run_phases(settings, known, rounds)
    report = _report(settings, results)
    results = with_measurements(results, report)
    html, png = write_report(report, settings.data_dir, "the pipeline's phases are the groups")
    if as_json:
        print_json(
            {
                "phases": [result.model_dump(mode="json") for result in results],
                "switches": [switch.model_dump(mode="json") for switch in report.switches],
                "report_html": str(html),
                "report_png": str(png),
            }
        )
        return
    _print_phases(results)
    console.print(
        "Reward, success and alignment are of held-out tasks.\nReport:"
        f" [bold]{html}[/]\nPicture: {png}"
    )


def _run_phases(
    settings: Settings, tasks: "list[PipelineTask]", rounds: int
) -> "list[PhaseResult]":
    """Run the phases, and say each result as it comes. Ctrl-C ends them; what ran is returned."""
    from infra.installation.processors import all_processors
    from infra.pipeline.phases import Pipeline

    results = []
    with (
        _gateway(settings) as url,
        open_log(settings) as log,
        ExitStack() as at_end,
        suppress(KeyboardInterrupt),
    ):
        processors = all_processors(settings)
        phases = Pipeline(settings.pipeline, url, log, processors, tasks, _say)
        # Runs also after Ctrl-C, which ends the loop below.
        at_end.callback(phases.close)
        for result in phases.rounds(rounds or None):
            results.append(result)
            _say(
                f"{result.round}-{result.phase}: {result.state or 'gathered'}"
                f" {result.version or ''} {result.reason}"
            )
    return results


def _print_phases(results: "list[PhaseResult]") -> None:
    columns = {
        "round": "round",
        "phase": "phase",
        "target": "target",
        "method": "method",
        "rollouts": "rollouts",
        "came to": "state",
        "version": "version",
        "reward": "mean_reward",
        "success": "success_rate",
        "alignment": "decision_alignment",
    }
    rows = [[getattr(result, field) for field in columns.values()] for result in results]
    print_table("Phases", tuple(columns), rows)


def _report(settings: Settings, results: "list[PhaseResult]") -> "Report":
    """Return the report once it has every with_measurements rollout.

    Analytics may be far behind. After `ANALYTICS_TIMEOUT_S` the report is returned as it is.
    """
    deadline = time.monotonic() + ANALYTICS_TIMEOUT_S
    while True:
        report = current_report(settings)
        known = {group.group: group.rollouts for group in report.groups}
        if (
            all(known.get(r.group or "", 0) >= r.held_out for r in results)
            or time.monotonic() > deadline
        ):
            return report
        time.sleep(0.5)


def _say(what: str) -> None:
    typer.echo(what, err=True)


@contextmanager
def _gateway(settings: Settings) -> Iterator[str]:
    """Yield the gateway's URL. If no installation runs here, one is started for this block."""
    from infra.processes.supervisor import Supervisor

    state = running_installation(settings.data_dir)
    if state is not None:
        yield state.urls["gateway"]
        return
    supervisor = Supervisor(settings)
    supervisor.start()
    try:
        yield supervisor.gateway_url
    finally:
        supervisor.stop()
