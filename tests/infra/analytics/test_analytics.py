"""Analytics: rows count once however often a batch comes, reports and pages say what is on the
log.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.analytics.client import connect
from infra.analytics.page import write_report
from infra.analytics.report import CheckpointReport, Report, build_report
from infra.analytics.sink import GROUP, Sink
from infra.config.settings import Settings
from infra.installation.apps import analytics_app
from infra.runtime.errors import ConfigError
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState, OffsetRange
from schemas.clock import now
from schemas.envelope import AnyEvent
from schemas.gates import GateEvent, GateStatus
from schemas.identifiers import new_event_id
from schemas.manifests import Manifest
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.topics import CHECKPOINTS, GATES, ROUTES, SPANS, TRAININGS, TRAJECTORIES
from schemas.trainings import Training, TrainingEvent, TrainingState
from streams.processors.trajectories import TrajectoryJoin
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.records import NewRecord, Outgoing
from tests import events
from tests.conftest import serving
from tests.infra.conftest import metrics_of
from tests.waiting import eventually

REWARDS = (0.2, 0.4, 0.9)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    client = connect(f"chdb://{tmp_path / 'analytics'}")
    yield client
    client.close()


def filled(log: EmbeddedLog) -> EmbeddedLog:
    """Put three rewarded rollouts, a failed one, two checkpoints, a switch and a broken record on a
    log.
    """
    for number, reward in enumerate(REWARDS):
        name = f"r{number}"
        output = {"final_decision": "GO" if number else "NO-GO"}
        happened: list[AnyEvent] = [
            events.started(name),
            events.model_span(name, "geneticist", "it does").model_copy(
                update={"time": now()}
            ),  # old spans expire
            events.decision(name, ["a", "b"], 0),
            events.succeeded(name, output=output, turns=9 + number),
            events.reward(name, reward),
        ]
        log.append([events.new_record(event) for event in happened])
    failed = [events.started("r9"), events.rollout("r9", "failed", error="it broke")]  # type: ignore[arg-type]
    log.append([events.new_record(event) for event in failed])
    log.append([NewRecord(SPANS.name, b"r9", b"no event")])
    for state in (CheckpointState.CANDIDATE, CheckpointState.REJECTED):
        checkpoint = Checkpoint(
            name="supervisor-policy", version="v1", kind="policy", state=state, reason="why not"
        )
        log.append(
            [
                Outgoing.of(
                    CHECKPOINTS, "supervisor-policy", CheckpointEvent(payload=checkpoint)
                ).record()
            ]
        )
    for version in ("uniform", "v1", "v1"):
        route = Route(
            name="supervisor-policy", kind="policy", targets=[RouteTarget(version=version)]
        )
        log.append([Outgoing.of(ROUTES, route.name, RouteEvent(payload=route)).record()])
    runner = EmbeddedRunner(log, TrajectoryJoin(), "test")
    while runner.run_once():
        pass
    return log


def test_a_field_that_is_not_set_is_empty_and_others_are_as_the_event_has_them(
    log: EmbeddedLog, store: Any
) -> None:
    manifest = Manifest(
        target="tiny",
        head="sft",
        ranges=[OffsetRange(topic="examples", partition=0, first=0, last=9)],
        examples=7,
        number=1,
    )
    training = Training(
        job="j1",
        order=new_event_id(),
        target="tiny",
        method="sft",
        state=TrainingState.RUNNING,
        manifest=manifest,
        config_sha256="0" * 64,
        metrics={"loss": 0.5},
    )
    status = GateStatus(name="p", phase="waiting", evidence=3, text="too few")
    outcomes = [
        events.outcome("r1", "v1", None, state="failed", fault="endpoint"),
        events.outcome("r2", "v1", 0.5),
    ]
    log.append([Outgoing.of(TRAININGS, "tiny", TrainingEvent(payload=training)).record()])
    log.append([Outgoing.of(GATES, "p", GateEvent(payload=status)).record()])
    log.append([events.new_record(event, "p") for event in outcomes])
    Sink(log, store).catch_up()

    def rows(query: str) -> list[Any]:
        return [tuple(row) for row in store.query(query).result_rows]

    assert rows("SELECT state, parent, examples, metrics, version FROM trainings FINAL") == [
        ("running", "", 7, {"loss": 0.5}, "")
    ]
    assert rows("SELECT phase, version, evidence, needed, per_hour FROM gates FINAL") == [
        ("waiting", "", 3, None, None)
    ]
    assert rows("SELECT state, fault, reward FROM outcomes FINAL ORDER BY rollout_id") == [
        ("failed", "endpoint", None),
        ("succeeded", "", 0.5),
    ]


def test_the_report_says_what_happened(log: EmbeddedLog, store: Any) -> None:
    Sink(filled(log), store).catch_up()
    report = build_report(store)
    (group,) = report.groups
    assert (group.rollouts, group.succeeded, group.success_rate) == (4, 3, 0.75)
    assert group.curve == list(REWARDS)
    assert group.rolling == pytest.approx([0.2, 0.3, 0.5])
    assert (group.reward_first_third, group.reward_last_third) == (0.2, 0.9)
    assert group.decision_alignment == pytest.approx(2 / 3)
    assert group.mean_turns == 10
    (node,) = report.nodes
    assert (node.node, node.operation, node.calls, node.errors) == ("geneticist", "chat", 3, 0)
    (checkpoint,) = report.checkpoints
    assert (checkpoint.version, checkpoint.state, checkpoint.reason) == (
        "v1",
        "rejected",
        "why not",
    )
    (switch,) = report.switches
    assert (switch.before, switch.after) == (["uniform"], ["v1"])
    assert report.dead_letters == 1


def test_a_batch_that_comes_again_counts_once(log: EmbeddedLog, store: Any) -> None:
    sink = Sink(filled(log), store)
    sink.catch_up()
    first = build_report(store)
    with log.transaction():  # as if the process had died between inserting and committing
        log.connection.execute("DELETE FROM offsets WHERE consumer_group = ?", (GROUP,))
    Sink(log, store).catch_up()
    assert build_report(store) == first


def test_a_report_of_nothing_is_empty_and_can_be_drawn(
    log: EmbeddedLog, store: Any, tmp_path: Path
) -> None:
    Sink(log, store).catch_up()
    report = build_report(store)
    assert report == Report(
        groups=[], nodes=[], checkpoints=[], gates=[], switches=[], dead_letters=0, events=0
    )
    html, _ = write_report(report, tmp_path)
    assert "no rewards on the log yet" in re.sub(r"<!-- (.*?) -->", r"\1", html.read_text())


def test_the_page_carries_its_charts_and_the_picture_is_one(
    log: EmbeddedLog, store: Any, tmp_path: Path
) -> None:
    Sink(filled(log), store).catch_up()
    html, png = write_report(build_report(store), tmp_path, "models simulated <script>")
    page = html.read_text()
    assert page.count("<svg") == 2
    assert "models simulated &lt;script&gt;" in page
    assert "why not" in page
    assert "http" not in re.sub(
        r'(xmlns|rdf|resource|about)[^>]*"http[^"]*"', "", page.partition("<svg")[0]
    )
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_process_that_owns_the_store_answers_reports(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with EmbeddedLog(settings.log_path) as log:
        filled(log)
    with serving(analytics_app(settings)) as url:
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        assert httpx.get(f"{url}/").text.count("<svg") == 2
        lag = metrics_of(httpx.get(f"{url}/metrics").text, "everloop_consumer_lag")
        assert sum(value for labels, value in lag if labels["group"] == TrajectoryJoin().group) == 0
        assert sum(value for labels, value in lag if labels["topic"] == TRAJECTORIES.name) > 0

        def rollouts() -> int:
            report = Report.model_validate_json(httpx.get(f"{url}/report").content)
            return sum(group.rollouts for group in report.groups)

        eventually(lambda: rollouts() == 4, "four rollouts in the report")


def test_a_store_that_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as refusal:
        connect(f"chdb://{tmp_path / 'file'}")
    assert "\n" not in str(refusal.value)


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(ConfigError) as refusal:
        connect("clickhouse://user:secret@127.0.0.1:9/default")
    assert "127.0.0.1:9" in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_rejected_versions_are_one_line_with_the_reason_of_the_last() -> None:
    rows = [("v1", "rejected", "a"), ("v2", "promoted", "b"), ("v3", "rejected", "c")]
    checkpoints = [
        CheckpointReport(name="p", version=v, state=state, announced=events.START, reason=reason)
        for v, state, reason in rows
    ]
    report = Report(
        groups=[],
        nodes=[],
        checkpoints=checkpoints,
        gates=[],
        switches=[],
        dead_letters=0,
        events=0,
    )
    lines = [(c.version, c.state, c.reason) for c in report.grouped_checkpoints]
    assert lines == [("v2", "promoted", "b"), ("2 versions", "rejected", "the last, v3: c")]
