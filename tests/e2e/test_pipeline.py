"""A pipeline of one phase that only gathers, on an installation that runs already."""

import os
from pathlib import Path

import pytest

from infra.processes.run_file import running_installation
from tests.e2e.installation import everloop, everloop_json, started
from tests.waiting import eventually

CONFIGURATION = """
[pipeline]
held_out = 2
phases = [{ name = "gather", rollouts = 4 }]
"""


def test_it_uses_what_runs_and_reports_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "everloop.toml").write_text(CONFIGURATION)
    config = f"{tmp_path / 'everloop.toml'}{os.pathsep}research_society"
    monkeypatch.setenv("EVERLOOP_CONFIG", config)
    data = tmp_path / "data"
    up = started(data, "up")
    try:
        state = eventually(lambda: running_installation(data), "the installation")
        (gather,) = everloop_json(data, "pipeline")["phases"]
        assert (gather["rollouts"], gather["held_out"], gather["success_rate"]) == (4, 2, 1.0)
        after = running_installation(data)
        assert after is not None
        assert after.pid == state.pid, "it goes on running"
    finally:
        everloop(data, "down")
        up.communicate(timeout=60)
