"""The demonstration, and the commands that read what it has left."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.config.settings import load_settings
from infra.installation.processors import all_processors
from tests.e2e.installation import assert_one_line, everloop, everloop_json

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
        # 1 in the mean of many decisions; here are some dozens, and single weights are above 10.
        assert 0.25 < evaluation["diagnostics"]["mean_weight"] < 4.0
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
