"""The installed command, as its user runs it: every command works, and every mistake is one line
and exit 2.
"""

import json
import sqlite3
from pathlib import Path

import pytest

from streams.storage.embedded.log import EmbeddedLog
from tests.e2e.installation import assert_one_line, everloop, everloop_json

pytestmark = pytest.mark.e2e


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


@pytest.mark.parametrize(
    ("arguments", "more", "says"),
    [
        (("report",), {}, "there is no log at"),
        (("gossip",), {}, "no such command 'gossip'; see `everloop --help`"),
        (("ope",), {}, "missing option '--policy'; see `everloop ope --help`"),
        (("ope", "--policy", "v1", "--gain", "much"), {}, "invalid value for '--gain'"),
        (("ope", "--polcy", "v1"), {}, "no such option: --polcy"),
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
