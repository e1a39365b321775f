"""The guide to learners, done as printed: written, started, taught, promoted, replayed."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.installation import COMMAND, environment
from tests.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.e2e
GUIDE = Path(__file__).parents[2] / "docs/writing-a-learner.md"
ADDRESS = "http://127.0.0.1:8700"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE.read_text(), re.S)


def commands() -> list[list[str]]:
    """Return the arguments of each printed command."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith("$ everloop ") for line in lines)
    return [line.removeprefix("$ everloop ").split() for line in lines]


def decided(url: str, rollout: str) -> dict[str, Any]:
    """Return what is decided for a new rollout."""
    asked = {
        "rollout_id": rollout,
        "policy": "reply-policy",
        "candidates": [{"id": "refund"}, {"id": "wait"}],
    }
    answer: dict[str, Any] = httpx.post(f"{url}/everloop/v1/decisions", json=asked).json()
    return answer


def test_the_guide_leads_to_a_promoted_version_and_an_identical_replay(tmp_path: Path) -> None:
    module, test, traffic = blocks("python")[1:]
    (tmp_path / "mean_learner.py").write_text(module)
    (tmp_path / "everloop.toml").write_text(blocks("toml")[0])
    variables = environment(tmp_path / ".everloop")
    variables["EVERLOOP_CONFIG"] = str(tmp_path / "everloop.toml")
    variables.pop("EVERLOOP_APPS__SIMULATOR__PORT", None)  # of the example, which is not here

    def everloop(*arguments: str) -> str:
        done = subprocess.run(
            [COMMAND, *arguments],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def python(code: str) -> None:
        program = [sys.executable, "-c", code]
        done = subprocess.run(
            program, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr

    def state_of(version: str) -> list[dict[str, Any]]:
        listed = json.loads(everloop("checkpoints", "--json"))
        return [c for c in listed if c["state"] == version and c["name"] == "reply-policy"]

    (up, *afterwards) = commands()
    python(test)
    process = subprocess.Popen(
        [COMMAND, *up],
        cwd=tmp_path,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:

        def address() -> str | None:
            assert process.poll() is None, process.communicate()[1]
            status = json.loads(everloop("status", "--json"))
            return str(status["urls"]["gateway"]) if status["running"] else None

        url = eventually(address, "the gateway")
        assert ADDRESS in traffic
        python(traffic.replace(ADDRESS, url))
        (promoted, *_) = eventually(lambda: state_of("promoted"), "a promoted version")
        served = [decided(url, f"afterwards-{number}") for number in range(40)]
        by_it = [d for d in served if d["policy_version"] == promoted["version"]]
        assert len(by_it) > 20, "all but a control, and the share of the next version on trial"
        assert by_it[0]["probabilities"][0] > 0.9, "it prefers what earned more"
        printed = {arguments[0]: everloop(*arguments) for arguments in afterwards}
        assert promoted["version"][:6] in printed["checkpoints"]
        assert "identical to the live ones" in printed["replay"]
        assert "Report:" in printed["report"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
