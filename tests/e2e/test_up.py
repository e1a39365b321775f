"""`everloop up`: what runs, what is started again, and what is left behind."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from schemas.topics import TOPICS
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.records import NewRecord
from tests.e2e.installation import assert_one_line, everloop, everloop_json, started
from tests.waiting import eventually

pytestmark = pytest.mark.e2e


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A running `everloop up`, as `everloop status --json` describes it."""
    process = started(tmp_path, "up", "--json")

    def up() -> dict[str, Any] | None:
        assert process.poll() is None, process.communicate()
        status: dict[str, Any] = everloop_json(tmp_path, "status")
        return status if status["running"] else None

    yield eventually(up, "the installation")
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(output)["pid"] == process.pid


def alive(status: dict[str, Any]) -> list[int]:
    return [pid for part in status["processes"].values() if psutil.pid_exists(pid := part["pid"])]


def test_a_plain_installation_runs_nothing_that_nobody_configured_and_a_stand_in_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "everloop.toml").write_text("")
    monkeypatch.setenv("EVERLOOP_CONFIG", str(tmp_path / "everloop.toml"))
    data = tmp_path / "data"
    process = started(data, "up")
    try:
        status = eventually(lambda: running_status(data), "the installation")
        assert set(status["processes"]) == {"gateway", "worker", "analytics"}
        assert everloop_json(data, "routes", "list") == []
        gateway = status["urls"]["gateway"]
        for stream in (False, True):
            body = {
                "model": "anything",
                "stream": stream,
                "messages": [{"role": "user", "content": "Hello"}],
            }
            answer = httpx.post(f"{gateway}/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-everloop-checkpoint"] == "stand-in"
            assert "models.NAME.base_url" in answer.text
        assert "a stand-in answers" in " ".join(everloop(data, "status").stdout.split())
        refused = httpx.post(f"{gateway}/v1/embeddings", json={"model": "any", "input": "hi"})
        assert refused.status_code == 501
    finally:
        everloop(data, "down")
        output, errors = process.communicate(timeout=60)
    assert "No model is configured" in output, errors


def running_status(data: Path) -> dict[str, Any] | None:
    status: dict[str, Any] = everloop_json(data, "status")
    return status if status["running"] else None


def test_an_installation_serves_says_so_and_leaves_nothing_behind(
    installation: dict[str, Any], tmp_path: Path
) -> None:
    gateway = installation["urls"]["gateway"]
    assert installation["gateway"]["status"] == "ok"
    assert set(installation["processes"]) == {
        "gateway",
        "simulator",
        "worker",
        "learner",
        "analytics",
    }
    created = httpx.post(f"{gateway}/everloop/v1/rollouts", json={"rollout_id": "r1"})
    assert "supervisor-policy" in created.json()["checkpoints"]
    httpx.post(f"{gateway}/everloop/v1/rollouts/r1/end", json={"state": "succeeded"})
    eventually(lambda: everloop_json(tmp_path, "report")["groups"], "a rollout in the report")
    assert everloop(tmp_path, "up").returncode == 2
    assert everloop_json(tmp_path, "down") == {"stopped": True}
    assert alive(installation) == []


def test_every_process_that_is_killed_is_started_again(
    installation: dict[str, Any], tmp_path: Path
) -> None:
    for name, part in installation["processes"].items():
        os.kill(part["pid"], signal.SIGKILL)
        eventually(
            lambda name=name: everloop_json(tmp_path, "status")["processes"][name]["restarts"] == 1,  # type: ignore[misc]
            f"another {name}",
        )
    answer = httpx.get(f"{installation['urls']['gateway']}/readyz", timeout=30)
    assert answer.json()["ready"]


def test_a_malformed_event_on_any_topic_becomes_a_dead_letter_and_the_rest_goes_on(
    installation: dict[str, Any], tmp_path: Path
) -> None:
    broken = [
        NewRecord(name, b"r1", b"\xff{") for name in TOPICS if name != "everloop.dead-letters"
    ]
    with EmbeddedLog(tmp_path / "log.db") as log:
        log.append(broken)
        read = {name.removeprefix("everloop.") for name in TOPICS} - {"dead-letters"}

        def letters() -> set[str]:
            lines = everloop(
                tmp_path, "events", "tail", "dead-letters", "--count", "50", "--json"
            ).stdout.splitlines()
            values = [json.loads(json.loads(line)["value"])["payload"] for line in lines]
            return {value["topic"].removeprefix("everloop.") for value in values}

        eventually(lambda: read <= letters(), f"dead letters from {read}")
    listed = everloop_json(tmp_path, "dead-letters", "list")
    assert {row["topic"].removeprefix("everloop.") for row in listed} >= read
    assert everloop_json(tmp_path, "dead-letters", "show", "0")["value"] == "\\xff{"
    assert everloop_json(tmp_path, "dead-letters", "replay", "0") == {"replayed": 1}
    eventually(
        lambda: len(everloop_json(tmp_path, "dead-letters", "list")) > len(listed),
        "the letter's return",
    )
    assert everloop(tmp_path, "dead-letters", "show", "0").returncode == 0
    assert_one_line(
        everloop(tmp_path, "dead-letters", "show", "999"), "there is no dead letter 999"
    )
    assert_one_line(everloop(tmp_path, "dead-letters", "replay"), "--all")
    gateway = installation["urls"]["gateway"]
    httpx.post(f"{gateway}/everloop/v1/rollouts", json={"rollout_id": "r1"})
    httpx.post(f"{gateway}/everloop/v1/rollouts/r1/end", json={"state": "succeeded"})
    eventually(
        lambda: everloop_json(tmp_path, "report")["groups"], "the rollout after the broken events"
    )
    everloop(tmp_path, "down")


def test_a_port_that_is_taken_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = everloop(tmp_path, "up", more={"EVERLOOP_GATEWAY__PORT": str(port)})
    assert_one_line(done, f"cannot listen on 127.0.0.1:{port}")
