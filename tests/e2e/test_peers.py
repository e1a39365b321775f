"""Other people's programs, unchanged, against the gateway; each in an environment of its own."""

import os
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.config.settings import Settings
from infra.control.keys import create_key
from infra.gateway.settings import GatewaySettings
from schemas.envelope import AnyEvent
from schemas.keys import Scope
from schemas.rewards import RewardEvent
from schemas.rollouts import RolloutEvent
from schemas.spans import Attribute, SpanEvent
from schemas.topics import REWARDS, ROLLOUTS, SPANS
from streams.storage.embedded.log import EmbeddedLog
from tests.environments import environment, is_python_here, is_uv_here
from tests.infra.conftest import (
    Gateway,
    gateway,
    model_route,
    publish,
    running_gateway,
    upstream,
    upstream_url,
)
from tests.infra.upstream import Upstream

__all__ = ["gateway", "upstream", "upstream_url"]
PYTHON = "3.12"
pytestmark = [
    pytest.mark.slow,  # their environments have a Python of their own
    pytest.mark.skipif(not is_uv_here(), reason="uv is not here; `make setup` brings it"),
    pytest.mark.skipif(not is_python_here(PYTHON), reason=f"Python {PYTHON} is not here"),
]
PEERS = Path(__file__).parents[1] / "peers"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Conversations that stay open however slowly an agent goes on with them."""
    return Settings(data_dir=tmp_path / "data", gateway=GatewaySettings(conversation_idle_s=300))


def run(python: str, script: str, *arguments: str) -> str:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("EVERLOOP_", "COVERAGE", "PYTHON"))
    }
    done = subprocess.run(
        [python, str(PEERS / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=PEERS,
        env=environment | {"PYTHONPATH": str(PEERS)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_agent_lightnings_controller_and_rollout_manager_work_unchanged(
    tmp_path: Path, upstream_url: str
) -> None:
    python = environment(PYTHON, "agentlightning==1.0.2", "numpy")
    settings = Settings(data_dir=tmp_path / "data", gateway=GatewaySettings(keys="required"))
    publish(settings.log_path, model_route("tiny", upstream_url))
    with EmbeddedLog(settings.log_path) as log:
        key, _ = create_key(log, "tester", "research", [Scope.ADMIN])
    with running_gateway(settings) as gateway:
        found: Any = orjson.loads(
            run(python, "lightning_client.py", gateway.url, key, upstream_url).splitlines()[-1]
        )
        spans = gateway.events(SPANS, SpanEvent)
        rewards = gateway.events(REWARDS, RewardEvent)
        rollouts = gateway.events(ROLLOUTS, RolloutEvent)
    assert sorted((r["question"], r["state"], r["reward"]) for r in found["trained"]) == [
        ("one", "succeeded", 0.3),
        ("one", "succeeded", 0.3),
        ("two", "succeeded", 0.3),
        ("two", "succeeded", 0.3),
    ]
    tokens = [{"token_ids": [5, 6]}, [1, 2], [-0.5, -0.25], 0.3]
    assert [rollout["triplets"] for rollout in found["trained"]] == [[tokens]] * 4
    assert sorted((r["question"], r["state"]) for r in found["validated"]) == [
        ("fail", "failed"),
        ("three", "succeeded"),
    ]
    assert (len(found["group"]), found["left"]) == (2, 2)
    events: list[AnyEvent] = [*spans, *rewards, *rollouts]
    assert {event.tenant for event in events} == {"research"}
    assert len({event.rollout_id for event in rewards}) >= 7
    tasks = {event.payload.task.id for event in rollouts if event.payload.task is not None}
    assert len(tasks) == 4, "rollouts of one input are attempts at one task"


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_openais_agents_sdk_needs_nothing_but_the_base_url(
    gateway: Gateway, upstream: Upstream, api: str
) -> None:
    python = environment(PYTHON, "openai-agents==0.24.0")
    assert run(python, "openai_agent.py", gateway.url, api).splitlines() == ["hello there"] * 3
    spans = gateway.soon(SPANS, SpanEvent, 3)
    first, second, streamed = (span.rollout_id for span in spans)
    assert first == second
    assert streamed != first
    assert "be kind" in orjson.dumps(spans[0].payload.attributes[Attribute.INPUT_MESSAGES]).decode()
