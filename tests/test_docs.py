"""What the documents say can be done can be done."""

import ast
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.config.settings import Settings, load_settings
from infra.installation.processors import learning_processors
from learners.contract import Learner, distribution
from learners.policies import PolicyLoader
from schemas.examples import Replaced
from schemas.rewards import RewardEvent
from schemas.rollouts import RolloutEvent, RolloutState
from schemas.serialization import decode
from schemas.topics import PREFIX, REWARDS, ROLLOUTS, TOPICS, Topic
from streams.processors.promotion_state import baseline_route
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from tests import events
from tests.conftest import serving
from tests.infra.conftest import model_route, publish, running_gateway
from tests.infra.upstream import Upstream

ROOT = Path(__file__).parents[1]


def code(page: str, number: int) -> str:
    """Return the n-th Python block of a page."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    return str(blocks[number])


def test_readme_and_adopting_show_the_same_five_lines() -> None:
    assert code("README.md", 0) == code("docs/adopting.md", 0)


def test_five_lines_make_an_agents_traffic_a_rewarded_rollout(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with serving(Upstream().app) as url:
        publish(
            settings.log_path,
            model_route("assistant_llm", url),
            baseline_route("support-policy"),
        )
        with running_gateway(settings) as gateway:
            scope: dict[str, Any] = {"httpx": httpx}
            for block in (0, 2):
                exec(
                    code("docs/adopting.md", block).replace("http://127.0.0.1:8700", gateway.url),
                    scope,
                )
            scope["client"].close()
    assert scope["chosen"] in (0, 1)
    with EmbeddedLog(settings.log_path) as log:
        (reward,) = [
            decode(RewardEvent, record.value).payload for record in read_all(log, REWARDS.name)
        ]
        states = [
            decode(RolloutEvent, record.value).payload.state
            for record in read_all(log, ROLLOUTS.name)
        ]
    assert reward.value == 0.8
    assert states[0] == RolloutState.STARTED
    assert RolloutState.SUCCEEDED in states


def test_the_learner_of_the_guide_learns_corrects_and_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written as printed to a folder of its own, named by the settings as printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mean_learner.py").write_text(code("docs/writing-a-learner.md", 1))
    page = (ROOT / "docs/writing-a-learner.md").read_text()
    (toml,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "everloop.toml").write_text(toml)
    learners = {p.learner.target: p.learner for p in learning_processors(load_settings())}
    learner, given = (
        learners["reply-policy"],
        [events.example(["a", "b"], number % 2, 0.25) for number in range(10)],
    )
    state = learner.initial()
    for event in given:
        state = learner.fold(state, event)
    assert learner.examples(state) == 10
    announced = learner.checkpoint(state)
    assert announced is not None
    policy = PolicyLoader([learner.policy_type]).load(announced.artifact, announced.media_type)
    decision = events.decision_of(["a", "b"], 0)
    assert distribution(policy, decision) == pytest.approx([0.95, 0.05])
    assert learner.encode(learner.decode(learner.encode(state))) == learner.encode(state)
    for event in given:
        replaces = Replaced(reward=event.payload.reward, first=event.time)
        again = {"reward_revision": 2, "retracted": True, "replaces": replaces}
        gone = event.payload.model_copy(update=again)
        state = learner.fold(state, event.model_copy(update={"payload": gone}))
    assert learner.examples(state) == 0
    assert state == {"junior-0": [0, 0], "junior-1": [0, 0]}


def kept(topic: Topic) -> str:
    if topic.cleanup == "compact":
        return "last of each key"
    return f"{topic.retention.days} days" if topic.retention else "always"


def test_the_page_on_topics_lists_them_as_they_are() -> None:
    page = (ROOT / "docs/events-and-topics.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| ([\w ]+) \| (\d+) \| ([\w ]+) \|", page, re.M)
    assert rows == [
        (
            topic.name.removeprefix(PREFIX),
            topic.key.replace("_", " "),
            str(topic.partitions),
            kept(topic),
        )
        for topic in TOPICS.values()
    ]


def test_the_contract_in_the_guide_is_the_contract() -> None:
    tree = ast.parse(code("docs/writing-a-learner.md", 0))
    shown = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert shown == {
        name for name in vars(Learner) if callable(vars(Learner)[name]) and not name.startswith("_")
    }
