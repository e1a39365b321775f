"""The four phases on the research society: gather, SFT, PPO, bandit, each switched to before the
next begins.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from research_society.roles import PEER_REVIEWER, SAFETY_OFFICER
from research_society.simulator.roles import JUNIORS, answer
from research_society.tasks import ResearchTask, load_tasks

from tests.e2e.installation import everloop_json
from tests.training.tiny import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TARGET, POLICY = "reviewer_llm", "supervisor-policy"
CONFIGURATION = """
[models.reviewer_llm]
base_url = "app://simulator/v1"
model = "society-simulator"
[pipeline.options]
models = { peer_reviewer = "reviewer_llm", safety_officer = "reviewer_llm" }
[adapter]
sft_credit = "all"
[adapter.sft]
reviewer_llm = ["peer_reviewer", "safety_officer"]
[adapter.rl]
reviewer_llm = ["peer_reviewer", "safety_officer"]
[batches]
examples = 100000
[gate]
confidence = 0.75
tolerance = 0.5  # a model this small breaks some rollouts, and the gate counts them
canary_share = 0.5
failure_tolerance = 0.5
missing_tolerance = 0.5
[training.check]
most_latency = 1e6  # what serves first is a script
[training.serving]
start_timeout_s = 120
drain_s = 0.5
[[training.models.reviewer_llm]]
method = "sft"
base = "{base}"
lora = false
learning_rate = 3e-3
batch = 8
micro_batch = 8
steps = 120
max_length = 1024
[training.models.reviewer_llm.dataset]
least_reward = 0.0
[[training.models.reviewer_llm]]
method = "ppo"
base = "{base}"
lora = false
estimator = "gae"
learning_rate = 1e-5
batch = 8
micro_batch = 8
[pipeline]
held_out = 6
training_s = 600
phases = [
    { name = "gather", rollouts = 20 },
    { name = "reviewers", rollouts = 4, target = "reviewer_llm", method = "sft" },
    { name = "reviewers-rl", rollouts = 8, target = "reviewer_llm", method = "ppo" },
    { name = "supervisor", rollouts = 30, target = "supervisor-policy", method = "bandit" },
]
"""


def spoken(task: ResearchTask) -> list[str]:
    """Return what the reviewers are asked and say about a task, for the tokenizer."""
    papers = orjson.dumps(
        [{"id": task.id, "sections": [s.model_dump() for s in task.sections]}]
    ).decode()
    goal = {"research_goal": task.goal}
    hypothesis = answer(JUNIORS[0], goal, [papers])["hypothesis"]
    refined = answer("Hypothesis Refiner", {"selected_hypothesis": hypothesis}, [])
    protocol = answer("Protocol Designer", goal | refined, [])
    given = refined | {"protocol": protocol}
    said = [answer(role.title, given, []) for role in (PEER_REVIEWER, SAFETY_OFFICER)]
    return [
        f"<|system|>{PEER_REVIEWER.system_prompt}<|end|>\n<|user|>Input:\n{orjson.dumps(given).decode()}<|end|>",
        *(f"<|assistant|>{orjson.dumps(document).decode()}<|end|>" for document in said),
        f"<|system|>{SAFETY_OFFICER.system_prompt}<|end|>",
    ]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return an untrained model whose words are the reviewers'."""
    corpus = [text for task in load_tasks(None) for text in spoken(task)]
    return make_model(tmp_path / "base", corpus=corpus, vocabulary=2048, context=2048)


def test_each_phase_is_switched_to_before_the_next_begins(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    (tmp_path / "everloop.toml").write_text(CONFIGURATION.replace("{base}", str(base)))
    config = f"{tmp_path / 'everloop.toml'}{os.pathsep}research_society"
    monkeypatch.setenv("EVERLOOP_CONFIG", config)
    document: dict[str, Any] = everloop_json(tmp_path / "data", "pipeline", timeout_s=1100)
    record_property("figures", json.dumps(document["phases"]))
    gather, sft, ppo, bandit = document["phases"]
    assert (gather["state"], gather["success_rate"]) == (None, 1.0)
    assert (sft["state"], ppo["state"]) == ("promoted", "promoted"), document["phases"]
    assert bandit["state"] in ("promoted", "kept", "rejected"), bandit
    assert ppo["success_rate"] >= 0.8, (
        "what was trained twice still writes what the society can read"
    )
    switched = [switch["after"] for switch in document["switches"] if switch["name"] == TARGET]
    assert [sft["version"]] in switched
    assert switched[-1] == [ppo["version"]]
    assert Path(document["report_html"]).stat().st_size > 10_000
    runs = everloop_json(tmp_path / "data", "trainings")
    assert [(run["method"], run["state"]) for run in runs] == [
        ("sft", "succeeded"),
        ("ppo", "succeeded"),
    ]
    assert runs[1]["parent"] == sft["version"], "what served when it began"
