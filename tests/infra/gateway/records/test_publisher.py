"""Events survive a log that cannot be written: they wait in the spool, in order, and are
forwarded.
"""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from infra.config.settings import Settings
from infra.gateway.records.publisher import Publisher
from schemas.rollouts import RolloutEvent
from schemas.topics import ROLLOUTS
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.errors import LogUnavailableError
from streams.storage.log import read_all
from streams.storage.records import Outgoing
from tests import events
from tests.infra.conftest import metrics_of, model_route, publish, running_gateway
from tests.infra.upstream import Upstream
from tests.waiting import eventually


def outgoing(number: int) -> Outgoing:
    return Outgoing.of(ROLLOUTS, "r", events.succeeded("r", turns=number))


def turns(log_path: Path) -> list[int | None]:
    with EmbeddedLog(log_path) as log:
        return [
            ROLLOUTS.event.model_validate_json(r.value or b"").payload.turns
            for r in read_all(log, ROLLOUTS.name)
        ]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the log's write lock, as a stuck process would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    path = tmp_path / "log.db"
    EmbeddedLog(path).close()
    return path


@contextmanager
def publishing(log_path: Path) -> Iterator[Publisher]:
    publisher = Publisher(
        lambda: EmbeddedLog(log_path, busy_timeout_s=0.1),
        lambda: EmbeddedLog(log_path.with_name("spool.db")),
    )
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.close()


def test_events_are_on_the_log_when_the_publisher_says_so(log_path: Path) -> None:
    with publishing(log_path) as publisher:
        publisher.publish([outgoing(1), outgoing(2)]).result(10)
        assert turns(log_path) == [1, 2]
        assert publisher.status.accepted == {ROLLOUTS.name: 2}


def test_what_comes_while_the_log_is_locked_is_durable_and_comes_later_in_order(
    log_path: Path,
) -> None:
    with publishing(log_path) as publisher:
        publisher.publish([outgoing(0)]).result(10)
        with locked(log_path):
            for number in range(1, 30):
                publisher.publish([outgoing(number)]).result(10)
            assert publisher.status.spooled == 29
            assert "locked" in str(publisher.status.error)
        eventually(lambda: publisher.status.spooled == 0, "an empty spool")
        publisher.publish([outgoing(30)]).result(10)
        assert publisher.status.error is None
    assert turns(log_path) == list(range(31))


def test_a_spool_left_by_a_process_that_died_is_forwarded_by_the_next(log_path: Path) -> None:
    with locked(log_path), publishing(log_path) as publisher:
        publisher.publish([outgoing(1), outgoing(2)]).result(10)
    assert turns(log_path) == []
    with publishing(log_path) as publisher:
        publisher.publish([outgoing(3)]).result(10)
    assert turns(log_path) == [1, 2, 3]


def test_events_that_can_be_written_nowhere_are_counted_and_the_caller_is_told(
    log_path: Path,
) -> None:
    spool = log_path.with_name("spool.db")
    publisher = Publisher(
        lambda: EmbeddedLog(log_path, busy_timeout_s=0.1),
        lambda: EmbeddedLog(spool, busy_timeout_s=0.1),
    )
    publisher.start()
    publisher.publish([outgoing(0)]).result(10)
    with locked(log_path), locked(spool):
        with pytest.raises(LogUnavailableError):
            publisher.publish([outgoing(1)]).result(10)
        assert publisher.status.lost == {ROLLOUTS.name: 1}
    publisher.publish([outgoing(2)]).result(10)
    publisher.close()
    assert turns(log_path) == [0, 2]


def test_the_gateway_serves_on_while_the_log_is_locked_and_says_so(
    settings: Settings, upstream_url: str, upstream: Upstream
) -> None:
    publish(settings.log_path, model_route("tiny", upstream_url))
    with running_gateway(settings) as gateway:
        assert gateway.chat().is_success
        with locked(settings.log_path):
            assert gateway.chat().is_success
            assert (
                gateway.http.post(
                    "/everloop/v1/rewards", json={"rollout_id": "r", "value": 1}
                ).status_code
                == 202
            )
            health = gateway.health()
            assert health["status"] == "spooling"
            assert health["events"]["spooled"] > 0
            metrics = gateway.http.get("/metrics").text
            assert metrics_of(metrics, "everloop_spooled_events") == [
                ({}, health["events"]["spooled"])
            ]
            assert metrics_of(metrics, "everloop_log_writable") == [({}, 0)]
            assert metrics_of(metrics, "everloop_model_requests_total") == [
                ({"outcome": "served"}, 2)
            ]
        eventually(lambda: gateway.health()["status"] == "ok", "the spool's end")
        assert gateway.health()["events"]["lost"] == {}
        assert len(gateway.soon(ROLLOUTS, RolloutEvent, 4)) == 4


def test_a_full_spool_refuses_what_is_new_and_keeps_what_it_has(log_path: Path) -> None:
    publisher = Publisher(
        lambda: EmbeddedLog(log_path, busy_timeout_s=0.1),
        lambda: EmbeddedLog(log_path.with_name("spool.db")),
        spool_max_bytes=400_000,
    )
    publisher.start()
    large = [
        Outgoing.of(ROLLOUTS, "r", events.succeeded("r", turns=number, output="x" * 50_000))
        for number in range(20)
    ]
    kept = 0
    with locked(log_path):
        for event in large:
            try:
                publisher.publish([event]).result(10)
                kept += 1
            except LogUnavailableError as error:
                assert "gateway.spool_max_bytes" in str(error)
    assert 3 < kept < 15
    assert publisher.status.lost == {ROLLOUTS.name: 20 - kept}
    eventually(lambda: publisher.status.spooled == 0, "an empty spool")
    publisher.publish([outgoing(99)]).result(10)
    publisher.close()
    assert turns(log_path) == [*range(kept), 99]


def test_a_spool_takes_no_more_room_for_having_been_used(log_path: Path) -> None:
    with publishing(log_path) as publisher:
        for _ in range(3):
            with locked(log_path):
                publisher.publish([outgoing(number) for number in range(500)]).result(10)
            eventually(lambda: publisher.status.spooled == 0, "an empty spool")
    with EmbeddedLog(log_path.with_name("spool.db")) as spool:
        assert spool.used_bytes() < 200_000


def test_a_caller_who_waits_no_more_does_not_stop_the_publisher(log_path: Path) -> None:
    publisher = Publisher(
        lambda: EmbeddedLog(log_path), lambda: EmbeddedLog(log_path.with_name("spool.db"))
    )

    async def give_up() -> None:
        waiting = asyncio.ensure_future(asyncio.wrap_future(publisher.publish([outgoing(1)])))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())
    publisher.start()
    try:
        publisher.publish([outgoing(2)]).result(10)
    finally:
        publisher.close()
    assert turns(log_path) == [1, 2]
