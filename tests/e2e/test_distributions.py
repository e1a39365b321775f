"""The wheels of this repository, installed as their users install them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from infra.config.settings import Settings
from schemas.rewards import RewardEvent
from schemas.rollouts import RolloutEvent
from schemas.spans import SpanEvent
from schemas.topics import REWARDS, ROLLOUTS, SPANS
from streams.processors.promotion_state import baseline_route
from tests.conftest import serving
from tests.docs.pages import ROOT, blocks_of
from tests.environments import is_uv_here, uv
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.upstream import Upstream

pytestmark = [
    pytest.mark.slow,  # they build wheels and fill environments
    pytest.mark.skipif(not is_uv_here(), reason="uv is not here; `make setup` brings it"),
]
CLIENT_ALONE = """
import importlib.util, sys
from everloop_client import Client
gateway = sys.argv[1]
with Client(gateway) as client, client.rollout(id="alone") as rollout:
    rollout.reward(0.8)
for name in ("schemas", "infra", "streams", "learners", "research_society", "pydantic"):
    assert importlib.util.find_spec(name) is None, name
"""
OWNERS = """
from importlib.metadata import files, packages_distributions
assert packages_distributions()["agents"] == ["openai-agents"], packages_distributions()["agents"]
for distribution in ("everloop", "everloop-client"):
    owned = [str(file) for file in files(distribution) if str(file).startswith("agents/")]
    assert not owned, (distribution, owned)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels, by the name of their distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    for package in ("everloop", "everloop-client"):
        _uv("build", "--wheel", "--package", package, "--out-dir", str(folder))
    return {file.name.split("-")[0]: file for file in folder.glob("*.whl")}


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    settings = Settings(data_dir=tmp_path / "data")
    with serving(Upstream().app) as url:
        publish(
            settings.log_path,
            model_route("assistant_llm", url),
            baseline_route("support-policy"),
        )
        with running_gateway(settings) as running:
            yield running


def test_the_client_installs_and_works_without_everloop(
    wheels: dict[str, Path], tmp_path: Path, gateway: Gateway
) -> None:
    python = _environment(tmp_path / "alone", str(wheels["everloop_client"]))
    _run(python, tmp_path, CLIENT_ALONE, gateway.url)
    (reward,) = gateway.events(REWARDS, RewardEvent)
    assert reward.rollout_id == "alone"


def test_the_clients_wheel_is_typed_and_needs_httpx_only(wheels: dict[str, Path]) -> None:
    with ZipFile(wheels["everloop_client"]) as wheel:
        names = wheel.namelist()
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        said = Parser().parsestr(wheel.read(metadata).decode())
    assert "everloop_client/py.typed" in names
    needed = [line for line in said.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert needed == ["httpx>=0.28"]
    assert said.get_all("Provides-Extra") == ["langchain"]


def test_everloop_its_client_and_openais_agents_sdk_share_an_environment(
    wheels: dict[str, Path], tmp_path: Path, gateway: Gateway
) -> None:
    python = _environment(tmp_path / "both", *map(str, wheels.values()), "openai-agents==0.24.0")
    _run(python, tmp_path, OWNERS)
    _run(python, tmp_path, _code("docs/adopting.md", "from agents import", gateway))
    _run(python, tmp_path, _code("agents/client/README.md", "everloop_client", gateway))
    _run(python, tmp_path, "import infra.cli, streams, learners, schemas")
    spans = gateway.soon(SPANS, SpanEvent, 2)
    (reward,) = gateway.events(REWARDS, RewardEvent)
    ended = [event for event in gateway.events(ROLLOUTS, RolloutEvent) if event.payload.output]
    assert [event.rollout_id for event in ended] == [reward.rollout_id]
    assert reward.rollout_id in {span.rollout_id for span in spans}


def _code(page: str, phrase: str, gateway: Gateway) -> str:
    """Return a page's Python block with a phrase, as it is printed but for the gateway's port."""
    (block,) = [
        block
        for block in blocks_of(ROOT / page)
        if block.language == "python" and phrase in block.text
    ]
    return block.text.replace("http://127.0.0.1:8700", gateway.url)


def _environment(folder: Path, *packages: str) -> Path:
    python = folder / "bin" / "python"
    _uv("venv", "--python", sys.executable, str(folder))
    # built wheels name each other by version, and no index has them
    links = [f"--find-links={Path(one).parent}" for one in packages if one.endswith(".whl")][:1]
    _uv("pip", "install", "--python", str(python), *links, *packages)
    return python


def _uv(*arguments: str) -> None:
    done = subprocess.run([uv(), *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _run(python: Path, folder: Path, code: str, *arguments: str) -> None:
    """Run code in an environment, from a folder that holds nothing of ours."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EVERLOOP_", "COVERAGE", "PYTHON"))
    }
    done = subprocess.run(
        [str(python), "-c", code, *arguments],
        cwd=folder,
        env=kept | {"OPENAI_AGENTS_DISABLE_TRACING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
