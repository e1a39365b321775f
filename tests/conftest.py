"""Fixtures for all tests."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI

from infra.runtime.http import bound_socket, server
from streams.storage.embedded.log import EmbeddedLog
from tests.kafka import cluster

Serve = Callable[[FastAPI], str]
LONG = ("slow", "e2e")
"""Marks of tests that take long."""


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs Kafka: such tests run one at a time, since brokers of several starve each
    other. Let the files that take long begin first: one that begins last keeps one core busy for
    minutes while the other has nothing to do.
    """
    for item in items:
        if "kafka" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.kafka)
    long = {item.path for item in items for mark in LONG if item.get_closest_marker(mark)}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the developer's own configuration out of the tests."""
    monkeypatch.setenv("EVERLOOP_DATA_DIR", str(tmp_path / "data"))
    for name in ("EVERLOOP_CONFIG", "EVERLOOP_SECRETS_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    """Return a fresh log."""
    with EmbeddedLog(tmp_path / "log.db") as opened:
        yield opened


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a Kafka for this session, started when the first test asks for it."""
    with cluster(tmp_path_factory.mktemp("kafka")) as bootstrap:
        yield bootstrap


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an application over real HTTP on loopback and yield its URL."""
    listener = bound_socket("127.0.0.1", 0, "port")
    running = server(app, grace_s=2)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    while not running.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        threading.Event().wait(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()
        listener.close()
