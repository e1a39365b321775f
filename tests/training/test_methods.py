"""Every method raises what its parent earns, measured on answers that the gateway served."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from infra.config.settings import Settings, load_settings
from infra.gateway.settings import GatewaySettings
from infra.serving.servers import Servers
from schemas.endpoints import Endpoint
from streams.storage.embedded.log import EmbeddedLog
from tests.conftest import serving
from tests.e2e.installation import everloop_json
from tests.infra.conftest import running_gateway
from tests.training.school import (
    CARELESS,
    PUPIL,
    TAUGHT,
    TEACHER,
    School,
    publish_model,
    school,
    teacher,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SEEDS = (1, 2, 3)
EXACT = ("exact", "false_calls")
MARKS = '["<think>", "</think>", "<tool_call>", "</tool_call>"]'
CONFIGURATION = """
[adapter.sft]
pupil = ["teacher", "careless"]
[adapter.rl]
pupil = ["pupil"]
[training.serving]
start_timeout_s = 120
"""
COMMON = """
lora = false
base = "{base}"
threads = 1
max_length = 128
evaluate_every = 1000
save_every = 1000
micro_batch = 32
"""
SFT = (
    "learning_rate = 3e-3\nbatch = 32\nwarmup = 0.07\nweight_decay = 0.05\nspecial_tokens = "
    + MARKS
    + "\n"
)
METHODS = {
    "dpo": "learning_rate = 1e-4\nbatch = 32\nsteps = 30\n"
    "[dataset]\nheld_out = 0.0\nmargin = 0.3\n",
    "grpo": 'learning_rate = 3e-4\nbatch = 32\nsteps = 30\ngraders = ["tool-call@1"]\n'
    "response_tokens = 40\n"
    "[dataset]\nheld_out = 0.0\n",
    "ppo": "learning_rate = 3e-4\nbatch = 64\nepochs = 2\n[dataset]\nheld_out = 0.0\n",
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "everloop.toml").write_text(CONFIGURATION)
    monkeypatch.setenv("EVERLOOP_CONFIG", str(tmp_path / "everloop.toml"))
    monkeypatch.setenv("EVERLOOP_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return load_settings().model_copy(update={"gateway": GatewaySettings(conversation_idle_s=300)})


@pytest.fixture
def taught(settings: Settings, base: Path) -> Iterator[tuple[School, Servers]]:
    """A school whose pupil is untrained."""
    servers = Servers(settings.training.serving, settings.data_dir / "logs")
    with serving(teacher()) as url, running_gateway(settings) as gateway:
        with EmbeddedLog(settings.log_path) as log:
            for name in (TEACHER, CARELESS):
                publish_model(log, name, "v1", Endpoint(base_url=f"{url}/v1", model=name))
        with school(settings, gateway, settings.data_dir) as running:
            running.serve("untrained", servers.serve(str(base), "untrained").endpoint("untrained"))
            yield running, servers
    servers.close()


def trained(settings: Settings, method: str, text: str, *more: str) -> dict[str, Any]:
    file = settings.data_dir.parent / f"{method}.toml"
    file.write_text(text)
    command = ("train", method, "--target", PUPIL, "--config", str(file), *more)
    return dict(everloop_json(settings.data_dir, *command))


def test_each_method_raises_what_its_parent_earns(
    settings: Settings,
    base: Path,
    taught: tuple[School, Servers],
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    running, servers = taught
    common = COMMON.format(base=base)
    figures: dict[str, Any] = {"untrained": dict(zip(EXACT, running.exact(PUPIL), strict=True))}
    running.asked(TEACHER, TAUGHT)
    running.learned()

    def served(version: str, folder: str) -> None:
        running.serve(version, servers.serve(folder, version).endpoint(version))

    def measured(version: str, folder: str) -> float:
        served(version, folder)
        reward = running.mean_reward(PUPIL)
        servers.stop(folder)
        return reward

    sft = trained(settings, "sft", f"{common}{SFT}steps = 450\n[dataset]\nnodes = ['teacher']\n")
    served("sft", sft["folder"])
    figures["sft"] = dict(zip(EXACT, running.exact(PUPIL), strict=True))

    running.asked(CARELESS, TAUGHT, samples=3)
    running.learned()
    spoiled = f"{common}{SFT}steps = 15\n[dataset]\nnodes = ['careless']\nleast_reward = 0.0\n"
    parent = trained(settings, "sft", spoiled.replace("3e-3", "1e-3"), "--parent", sft["folder"])[
        "folder"
    ]
    served("parent", parent)
    figures["parent"] = running.mean_reward(PUPIL)
    running.asked(PUPIL, TAUGHT, samples=6)
    running.learned()
    for method, text in METHODS.items():
        runs = [
            trained(settings, method, f"seed = {seed}\n{common}{text}", "--parent", parent)[
                "folder"
            ]
            for seed in SEEDS
        ]
        rewards = [
            measured(f"{method}-{seed}", folder) for seed, folder in zip(SEEDS, runs, strict=True)
        ]
        figures[method] = {"rewards": rewards, "mean": fmean(rewards), "spread": stdev(rewards)}
    record_property("figures", json.dumps(figures))
    with capsys.disabled():
        sys.stdout.write(f"\n{json.dumps(figures, indent=2)}\n")
    assert figures["untrained"]["exact"] == 0.0
    assert figures["sft"]["exact"] >= 0.9
    assert figures["sft"]["false_calls"] <= 0.1
    for method in METHODS:
        assert min(figures[method]["rewards"]) > figures["parent"], (method, figures)
        assert figures[method]["mean"] - figures["parent"] > figures[method]["spread"], (
            method,
            figures,
        )
