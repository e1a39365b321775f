"""The installed command, as its user runs it: every command works, and every mistake is one line
and exit 2.
"""

import json
import os
import signal
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infra.config.settings import load_settings
from infra.installation.processors import all_processors
from schemas.topics import TOPICS
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.records import NewRecord
from tests.e2e.installation import everloop, everloop_json, started
from tests.waiting import eventually

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a small demonstration printed."""
    document: dict[str, Any] = everloop_json(
        tmp_path_factory.mktemp("demo"), "demo", "--rollouts", "40", "--seed", "7"
    )
    return document


def test_the_demonstration_prints_what_it_did(demo: dict[str, Any]) -> None:
    assert (demo["rollouts"], demo["succeeded"], demo["seed"], demo["tasks"]) == (40, 40, 7, 40)
    assert (demo["failed_requests"], demo["lost_events"], demo["dead_letters"]) == (0, 0, 0)
    assert demo["policy_updates"] > 20
    assert 0 < demo["reward_first_third"] <= 1
    assert 0 < demo["reward_last_third"] <= 1
    assert 0 < demo["reward_random_policy"] < 1
    assert 0 < demo["decision_alignment"] <= 1
    assert demo["checkpoints"]
    assert {checkpoint["state"] for checkpoint in demo["checkpoints"]} <= {
        "candidate",
        "evaluated",
        "promoted",
        "retired",
        "rejected",
    }
    assert demo["events"] > 40 * 2 * 20
    assert "simulated" in demo["models"]
    assert demo["learned_against_random"]["pairs"] == 40
    assert Path(demo["report_html"]).read_text().startswith("<!doctype html>")
    assert Path(demo["report_png"]).stat().st_size > 10_000


def test_the_same_data_folder_reports_and_lists_and_replays(demo: dict[str, Any]) -> None:
    data_dir = Path(demo["data_dir"])
    report = everloop_json(data_dir, "report")
    assert {group["group"]: group["rollouts"] for group in report["groups"]} == {
        "learned": 40,
        "random": 40,
    }
    listed = everloop_json(data_dir, "checkpoints")
    assert len(listed) == len(demo["checkpoints"])
    replayed = everloop_json(data_dir, "replay", "--learner", "supervisor-policy")
    assert replayed["identical"]
    assert replayed["weights_sha256"] == demo["weights_sha256"]
    for text in (("report",), ("checkpoints",), ("replay", "--learner", "bandit"), ("status",)):
        done = everloop(data_dir, *text)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    status = everloop_json(data_dir, "status")
    assert status["running"] is False
    ours = {processor.group for processor in all_processors(load_settings())}
    assert status["groups"].keys() == ours
    assert not any(status["groups"].values()), "a demonstration ends when nobody is behind"


def test_replay_can_begin_later(demo: dict[str, Any]) -> None:
    data_dir = Path(demo["data_dir"])
    whole = everloop_json(data_dir, "replay")["examples"]
    assert everloop_json(data_dir, "replay", "--from", "1000000")["examples"] == 0
    assert everloop_json(data_dir, "replay", "--from", "2020-01-01")["examples"] == whole
    assert everloop_json(data_dir, "replay", "--from", "2999-01-01T00:00")["examples"] == 0


def test_events_are_tailed_one_a_line(demo: dict[str, Any]) -> None:
    data_dir = Path(demo["data_dir"])
    lines = everloop(
        data_dir, "events", "tail", "rollouts", "rewards", "--count", "5", "--json"
    ).stdout.splitlines()
    assert [json.loads(line)["topic"] for line in lines].count("everloop.rewards") > 0
    assert len(lines) == 5
    assert len(everloop(data_dir, "events", "tail", "--count", "3").stdout.splitlines()) == 3


def test_commands_that_need_no_installation(tmp_path: Path) -> None:
    assert everloop_json(tmp_path, "config")["gateway.port"] == {
        "value": 0,
        "source": "environment",
    }
    checks = {check["check"]: check for check in everloop_json(tmp_path, "doctor")}
    assert checks["embedded analytics (chdb)"]["ok"]
    picture = tmp_path / "graph.png"
    drawn = everloop_json(tmp_path, "graph", "--out", str(picture))
    assert "peer_reviewer" in drawn["mermaid"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert everloop_json(tmp_path, "down") == {"stopped": False}
    for text in (
        ("config",),
        ("doctor",),
        ("graph", "--out", str(picture)),
        ("down",),
        ("status",),
    ):
        assert everloop(tmp_path, *text).returncode == 0


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


@pytest.mark.parametrize(
    ("configuration", "command", "says"),
    [
        ("[apps.mine]\napp = 'nowhere:app'", "up", "apps.mine.app: nowhere:app"),
        ("[judge]\ngrader = 'nowhere:grade'", "up", "judge.grader: nowhere:grade"),
        ("", "pipeline", "there are no phases"),
        ("[pipeline]\nphases = [{name = 'a', rollouts = 1}]", "pipeline", "there is no agent"),
        ("", "replay", "nothing learns here"),
    ],
)
def test_what_a_setting_names_and_is_not_there_is_one_line_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configuration: str, command: str, says: str
) -> None:
    (tmp_path / "everloop.toml").write_text(configuration)
    monkeypatch.setenv("EVERLOOP_CONFIG", str(tmp_path / "everloop.toml"))
    assert_one_line(everloop(tmp_path / "data", command), says)


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


def assert_one_line(done: Any, says: str) -> None:
    assert done.returncode == 2, done
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("everloop: ")
    assert says in lines[0]


@pytest.mark.parametrize(
    ("arguments", "more", "says"),
    [
        (("report",), {}, "there is no log at"),
        (("config",), {"EVERLOOP_GATEWAY__PROT": "1"}, "names no setting"),
        (("--config", "/nowhere.toml", "config"), {}, "/nowhere.toml"),
        (("demo", "--tasks", "/nowhere.json"), {}, "/nowhere.json"),
        (("replay", "--learner", "oracle"), {}, "there is no learner 'oracle'"),
        (("topics", "plan"), {}, "the log is embedded"),
        (("topics", "plan"), {"EVERLOOP_LOG": "kafka://127.0.0.1:9"}, "no Kafka at 127.0.0.1:9"),
        (("up",), {"EVERLOOP_LOG": "kafka://127.0.0.1:9"}, "no Kafka at 127.0.0.1:9"),
        (("demo", "--log", "paper"), {}, "--log is 'paper'"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], more: dict[str, str], says: str
) -> None:
    assert_one_line(everloop(tmp_path, *arguments, more=more), says)


def test_an_unreadable_log_is_one_line_and_exit_2(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"this is not a database, whatever its name says" * 100)
    assert_one_line(everloop(tmp_path, "report"), "is not an Everloop log")
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE customers (id)")
    other.close()
    assert_one_line(everloop(tmp_path, "up"), "another program's SQLite file")


def test_a_topic_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    EmbeddedLog(tmp_path / "log.db").close()
    assert_one_line(everloop(tmp_path, "events", "tail", "gossip"), "rollouts")
    assert_one_line(everloop(tmp_path, "replay", "--from", "yesterday"), "must be `beginning`")


def test_a_task_file_with_a_field_missing_says_which(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.json"
    tasks.write_text(
        json.dumps({"1": {"QUESTION": "Does it?", "LABELS": ["RESULTS"], "final_decision": "yes"}})
    )
    assert_one_line(everloop(tmp_path, "demo", "--tasks", str(tasks)), "CONTEXTS")


def test_a_policy_is_evaluated_on_decisions_that_were_made_anyway(demo: dict[str, Any]) -> None:
    data_dir = Path(demo["data_dir"])
    version = demo["checkpoints"][-1]["version"]
    found = everloop_json(
        data_dir, "ope", "--policy", version, "--against", "uniform", "--all", "--gain", "0.05"
    )
    assert (found["name"], found["decisions"] > 20) == ("supervisor-policy", True)
    baseline = found["policies"]["uniform"]
    assert baseline["interval"]["low"] <= baseline["doubly_robust"] <= baseline["interval"]["high"]
    # The version learned from most of these decisions, so its own bounds may be far too good.
    for evaluation in found["policies"].values():
        assert evaluation["interval"]["low"] <= evaluation["interval"]["high"]
        assert evaluation["diagnostics"]["mean_weight"] == pytest.approx(1, abs=0.5)
    assert found["difference"]["interval"]["low"] < found["difference"]["difference"]
    assert found["decisions_needed_to_tell"]["0.05"] > 100
    assert (
        f"{version} minus uniform: "
        in everloop(data_dir, "ope", "--policy", version, "--all").stdout
    )
    for wrong, says in (
        (("--policy", "v9"), "no checkpoint 'v9'"),
        (("--policy", "uniform", "--since", "x"), "--since"),
    ):
        done = everloop(data_dir, "ope", *wrong)
        assert (done.returncode, says in done.stderr) == (2, True)
    too_late = everloop(data_dir, "ope", "--policy", "uniform", "--since", "2199-01-01")
    assert "0 rewarded decisions" in too_late.stderr


def test_history_is_learned_again_with_another_reward_and_another_configuration(
    demo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = Path(demo["data_dir"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(
        "def complete(example):\n    return example.criteria.get('completeness')\n\ndef"
        " wrong(example):\n    return 7\n"
    )
    (tmp_path / "bold.toml").write_text("[bandit]\nexploration = 'thompson'\n")
    chart = tmp_path / "chart.png"
    found = everloop_json(
        data_dir,
        "replay",
        "--reward",
        "rewards:complete",
        "--config",
        "bold.toml",
        "--chart",
        str(chart),
    )
    assert chart.stat().st_size > 10_000
    assert set(found["policies"]) == {"as it is", "what if"}
    for policy in found["policies"].values():
        assert policy["examples"] == demo["policy_updates"]
        assert (
            0.0
            <= policy["evaluation"]["interval"]["low"]
            <= policy["evaluation"]["interval"]["high"]
            <= 1.0
        )
        assert policy["replay_method"]["matched"] <= policy["replay_method"]["shown"]
        assert [point["examples"] for point in policy["curve"]][-1] == policy["examples"]
    assert (
        "what if minus as it is"
        in everloop(data_dir, "replay", "--reward", "rewards:complete").stdout
    )
    for wrong, says in (
        (("--reward", "rewards"), "must be module:function"),
        (("--reward", "rewards:missing"), "has no attribute 'missing'"),
        (("--reward", "rewards:wrong"), "returned 7"),
        (("--config", "rewards.py"), "rewards.py"),
        (("--config", "nowhere.toml"), "No such file"),
    ):
        assert_one_line(everloop(data_dir, "replay", *wrong), says)


def test_decisions_and_policies_are_explained(demo: dict[str, Any]) -> None:
    data_dir = Path(demo["data_dir"])
    version = demo["checkpoints"][-1]["version"]
    (decision,) = everloop_json(
        data_dir, "explain", "decision", "demo-7-00030-learned", "--version", version
    )
    assert len(decision["candidates"]) == 3
    assert sum(candidate["probability"] for candidate in decision["candidates"]) == pytest.approx(
        1.0
    )
    assert all(len(candidate["contributions"]) == 5 for candidate in decision["candidates"])
    assert "because of" in everloop(
        data_dir, "explain", "decision", decision["decision_id"], "--version", version
    ).stdout.replace("\n", " ")
    policy = everloop_json(data_dir, "explain", "policy", "--top", "3")
    assert len(policy["importance"]) > 1
    assert all(len(of) == 3 for of in policy["importance"].values())
    assert set(policy["candidates"]) == {"geneticist", "pharmacologist", "neurologist"}
    assert len(policy["regret"]) == 4
    assert "Missed a decision" in everloop(data_dir, "explain", "policy").stdout
    assert_one_line(everloop(data_dir, "explain", "decision", "nobody"), "no decision 'nobody'")
    assert_one_line(
        everloop(data_dir, "explain", "decision", "demo-7-00000-random"), "chose by chance"
    )
    assert_one_line(everloop(data_dir, "explain", "policy", "nobody"), "too few to say")


def test_keys_and_routes_are_changed_by_hand_and_the_audit_trail_says_so(tmp_path: Path) -> None:
    endpoint = ["--base-url", "http://127.0.0.1:9/v1", "--model"]
    first = everloop_json(
        tmp_path, "routes", "set", "writer", *endpoint, "one", "--reason", "begin"
    )
    assert [target["version"] for target in first["targets"]] == ["manual:one"]
    everloop_json(tmp_path, "routes", "set", "writer", *endpoint, "two")
    back = everloop_json(tmp_path, "routes", "rollback", "writer", "--reason", "worse")
    assert ([target["version"] for target in back["targets"]], back["held"]) == (
        ["manual:one"],
        True,
    )
    assert everloop_json(tmp_path, "routes", "release", "writer")["held"] is False
    assert [route["name"] for route in everloop_json(tmp_path, "routes", "list")] == ["writer"]

    created = everloop_json(
        tmp_path, "keys", "create", "--scope", "agent", "--tenant", "acme", "--budget", "5"
    )
    assert created["key"].startswith(f"evl_{created['id']}_")
    assert "sha256" not in created
    (listed,) = everloop_json(tmp_path, "keys", "list")
    assert (listed["tenant"], listed["scopes"], listed["budget"], listed["revoked"]) == (
        "acme",
        ["agent"],
        5.0,
        False,
    )
    assert (
        everloop_json(tmp_path, "keys", "revoke", created["id"], "--reason", "leaked")["revoked"]
        is True
    )

    trail = everloop_json(tmp_path, "audit")
    assert [(line["action"], line["reason"]) for line in trail] == [
        ("routes.set", "begin"),
        ("routes.set", ""),
        ("routes.rollback", "worse"),
        ("routes.release", ""),
        ("keys.create", ""),
        ("keys.revoke", "leaked"),
    ]
    assert all("@" in line["actor"] for line in trail)
    assert created["key"] not in json.dumps(trail)
    for command in (("routes", "list"), ("keys", "list"), ("audit",)):
        assert everloop(tmp_path, *command).returncode == 0
    wrong = everloop(tmp_path, "routes", "promote", "writer", "v9")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "there is no checkpoint 'v9'" in wrong.stderr
