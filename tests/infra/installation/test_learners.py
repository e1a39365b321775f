"""Learners of the user's: named by settings, checked at start, served, gated and replayed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.config.settings import load_settings
from infra.gateway.routes.table import RoutingTable
from infra.installation.processors import learning_processors
from infra.runtime.errors import ConfigError
from learners.settings import policy_loader
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.decisions import DecisionEvent
from schemas.routes import Route, RouteTarget
from schemas.topics import DECISIONS, GATES
from streams.processors.promotion import Promotion
from streams.storage.artifacts import ArtifactStore
from tests import events
from tests.infra.conftest import publish, running_gateway

MODULE = """
import json
import sys
from itertools import count
from hashlib import sha256

from learners.contract import NewCheckpoint
from pydantic import BaseModel

numbers = count()


class Policy:
    feature_version = 0

    def __init__(self, answer):
        self.answer = answer

    def probabilities(self, context, candidates, tenant=""):
        if self.answer == "raise":
            raise TypeError("no such tenant")
        if self.answer == "halves":
            return [0.5] * 3
        return [1 / len(candidates)] * len(candidates)


class Type:
    media_type = "application/vnd.test+json"

    @staticmethod
    def load(content):
        return Policy(json.loads(content)["answer"])


class Learner:
    identity, config_sha256, policy_type = "mine@1", "none", Type

    class Config(BaseModel, extra="forbid"):
        every: int = 10

    def __init__(self, target, config):
        self.target, self.every = target, config.every

    def initial(self): return 0
    def fold(self, state, event): return state + 1
    def examples(self, state): return state
    def encode(self, state): return str(state).encode()
    def decode(self, value): return int(value)
    def checkpoint(self, state): return None


class Bare:
    def __init__(self, target, every=10): self.target = target


class OldLearner(Learner):
    def fold(self, event): return event


class Raises(Learner):
    def __init__(self, target, config): raise RuntimeError("no disk\\non either machine")


class Exits(Learner):
    def __init__(self, target, config): sys.exit(3)


class Elsewhere(Learner):
    def __init__(self, target, config): super().__init__("elsewhere", config)


class AsyncFold(Learner):
    async def fold(self, state, event): return state


class NoBeginning(Learner):
    def initial(self): raise OSError("no beginning")


class Text(Learner):
    def encode(self, state): return str(state)


class Restless(Learner):
    def encode(self, state): return str(next(numbers)).encode()


class Faulty(Learner):
    @property
    def identity(self): raise RuntimeError("no name")


constant = 7
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(9)\n")
    yield tmp_path
    sys.modules.pop("mine", None)


def configure(folder: Path, learner: str) -> None:
    text = 'data_dir = "data"\n[bandit]\ntargets = ["taught", "other"]\n[[learners]]\n'
    (folder / "everloop.toml").write_text(text + learner)


def test_a_named_class_learns_its_target_in_the_bandits_place(mine: Path) -> None:
    configure(mine, 'class = "mine:Learner"\ntargets = ["taught", "third"]\nevery = 3\n')
    settings = load_settings()
    learners = {p.learner.target: p.learner for p in learning_processors(settings)}
    assert {name: one.identity.partition("@")[0] for name, one in learners.items()} == {
        "other": "bandit",
        "taught": "mine",
        "third": "mine",
    }
    assert learners["taught"].every == 3  # type: ignore[attr-defined]
    assert set(settings.policies) == {"taught", "other", "third"}


@pytest.mark.parametrize(
    ("learner", "said"),
    [
        ('class = "mine:Nobody"\ntarget = "p"', "has no attribute 'Nobody'"),
        ('class = "nowhere:Learner"\ntarget = "p"', "No module named 'nowhere'"),
        ('class = "mine.Learner"\ntarget = "p"', "'mine.Learner' must be module:Class"),
        (
            'class = "mine:constant"\ntarget = "p"',
            "module:Class; it is a value of the type int",
        ),
        ('class = "ends:Learner"\ntarget = "p"', "ends:Learner: SystemExit: 9"),
        ('class = "mine:Exits"\ntarget = "p"', "mine:Exits: SystemExit: 3"),
        ('class = "mine:Elsewhere"\ntarget = "p"', "its target is 'elsewhere'"),
        ('class = "mine:AsyncFold"\ntarget = "p"', "mine:AsyncFold.fold is async"),
        ('class = "mine:NoBeginning"\ntarget = "p"', "mine:NoBeginning: OSError: no beginning"),
        ('class = "mine:Text"\ntarget = "p"', "encode gives str, not bytes"),
        ('class = "mine:Restless"\ntarget = "p"', "encode gives other bytes for the same state"),
        ('class = "mine:Faulty"\ntarget = "p"', "mine:Faulty: RuntimeError: no name"),
        ('class = "mine:Learner"', "needs target"),
        ('class = "mine:Learner"\ntarget = "p"\nevry = 3', "evry"),
        ('class = "mine:Bare"\ntarget = "p"\nevry = 3', "unexpected keyword argument 'evry'"),
        ('class = "mine:Bare"\ntarget = "p"', "its identity is None"),
        (
            'class = "mine:OldLearner"\ntarget = "p"',
            "fold must take 2 arguments",
        ),
        ('class = "mine:Raises"\ntarget = "p"', "RuntimeError: no disk on either machine"),
        (
            'class = "mine:Learner"\ntarget = "p"\n[[learners]]\n'
            'class = "mine:Learner"\ntarget = "p"',
            "p has two [[learners]]",
        ),
    ],
)
def test_a_class_that_cannot_be_used_is_said_at_start(mine: Path, learner: str, said: str) -> None:
    configure(mine, learner)
    with pytest.raises(ConfigError) as found:
        load_settings()
    assert said in str(found.value)
    assert "\n" not in str(found.value)
    assert "Value error" not in str(found.value)


def test_a_command_says_it_in_one_line_and_exits_with_2(mine: Path) -> None:
    configure(mine, 'class = "mine:Nobody"\ntarget = "p"')
    everloop = Path(sys.executable).with_name("everloop")
    done = subprocess.run([everloop, "up"], cwd=mine, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "mine:Nobody" in done.stderr


def test_its_policies_are_loaded_by_its_own_type(mine: Path) -> None:
    configure(mine, 'class = "mine:Learner"\ntarget = "p"')
    settings = load_settings()
    store = ArtifactStore(settings.artifacts_dir)
    stored = store.put(b'{"answer": 1}', "application/vnd.test+json")
    table = RoutingTable(ArtifactStore(settings.artifacts_dir), policy_loader(settings.learners))
    table.apply(
        Route(name="p", kind="policy", targets=[RouteTarget(version="v1", artifact=stored)])
    )
    assert table.resolve("p", "policy", "r")[0].version == "v1"


def judged(folder: Path, gate: str = "") -> tuple[Promotion, Any, ArtifactStore]:
    """Return a promotion that has sixty held-out rollouts, with its state and artifacts."""
    configure(folder, f'class = "mine:Learner"\ntarget = "supervisor-policy"\n{gate}')
    settings = load_settings()
    store = ArtifactStore(settings.artifacts_dir)
    promotion = Promotion(settings.gate, store, policies=policy_loader(settings.learners))
    state = None
    for number in range(60):
        held_out = events.outcome(
            f"r{number}",
            "uniform",
            1.0,
            begun=100.0 * number,
            split="validation",
            decisions=[events.decision_of(["a", "b"], number % 2)],
        )
        record = events.record(held_out, number, "supervisor-policy", held_out.time)
        state = promotion.handle(state, held_out, record).state
    return promotion, state, store


def announced(
    promotion: Promotion,
    state: Any,
    store: ArtifactStore,
    version: str,
    artifact: bytes,
    become: CheckpointState = CheckpointState.CANDIDATE,
) -> list[Any]:
    """Announce a version; return what promotion says of it."""
    event = CheckpointEvent(
        time=events.START,
        payload=Checkpoint(
            name="supervisor-policy",
            version=version,
            kind="policy",
            state=become,
            artifact=store.put(artifact, "application/vnd.test+json"),
        ),
    )
    outcome = promotion.handle(state, event, events.record(event, 0, "supervisor-policy"))
    return [output.event.payload for output in outcome.records if output.topic is not GATES]


@pytest.mark.parametrize(
    ("artifact", "reason"),
    [
        (b'{"answer": "raise"}', "the policy raised TypeError: no such tenant"),
        (b'{"answer": "halves"}', "the policy returned 3 probabilities for 2 candidates"),
        (b"{}", "loading it raised KeyError"),
    ],
)
def test_promotion_rejects_a_policy_that_does_not_work(
    mine: Path, artifact: bytes, reason: str
) -> None:
    promotion, state, store = judged(mine)
    (change,) = announced(promotion, state, store, "v1", artifact)
    assert change.state is CheckpointState.REJECTED
    assert reason in change.reason


EVEN = b'{"answer": 1}'
BROKEN = b'{"answer": "raise"}'


def test_a_promoted_policy_that_breaks_does_not_keep_its_successors_out(mine: Path) -> None:
    gate = "[gate]\ntolerance = 0.5\ncanary_share = 0.0\n"
    promotion, state, store = judged(mine, gate)
    announced(promotion, state, store, "old", BROKEN, CheckpointState.PROMOTED)
    changes = announced(promotion, state, store, "new", EVEN)
    (promoted,) = [c for c in changes if getattr(c, "state", None) is CheckpointState.PROMOTED]
    assert promoted.version == "new"
    assert "old is promoted and broken (the policy raised TypeError" in promoted.reason
    assert "the uniform baseline stands for it: difference +0.000" in promoted.reason


def test_a_damaged_artifact_of_what_is_promoted_does_not_either(mine: Path) -> None:
    gate = "[gate]\ntolerance = 0.5\ncanary_share = 0.0\n"
    promotion, state, store = judged(mine, gate)
    announced(promotion, state, store, "old", b"{}", CheckpointState.PROMOTED)
    changes = announced(promotion, state, store, "new", EVEN)
    assert [c.version for c in changes if getattr(c, "state", None) == "promoted"] == ["new"]


def test_beside_a_broken_champion_a_broken_candidate_is_rejected_for_its_own_fault(
    mine: Path,
) -> None:
    promotion, state, store = judged(mine)
    announced(promotion, state, store, "old", BROKEN, CheckpointState.PROMOTED)
    (change,) = announced(promotion, state, store, "new", b'{"answer": "halves"}')
    assert change.state is CheckpointState.REJECTED
    assert "the policy returned 3 probabilities for 2 candidates" in change.reason
    assert "old" not in change.reason


def test_a_trial_beside_a_broken_champion_compares_with_its_rollouts(mine: Path) -> None:
    """The baseline chooses in them. They are the champion's all the same, by assignment."""
    promotion, state, store = judged(mine, "[gate]\ntolerance = 0.5\ncanary_share = 0.5\n")
    announced(promotion, state, store, "old", BROKEN, CheckpointState.PROMOTED)
    announced(promotion, state, store, "new", EVEN)
    assert state.comparison is not None
    assert (state.comparison.new, state.comparison.old) == ("new", "uniform")


@pytest.mark.parametrize("artifact", [BROKEN, b'{"answer": "halves"}'])
def test_the_gateway_lets_the_baseline_choose_where_a_policy_does_not_work(
    mine: Path, artifact: bytes
) -> None:
    configure(mine, 'class = "mine:Learner"\ntarget = "supervisor-policy"')
    settings = load_settings()
    stored = ArtifactStore(settings.artifacts_dir).put(artifact, "application/vnd.test+json")
    target = RouteTarget(version="v1", artifact=stored)
    publish(settings.log_path, Route(name="supervisor-policy", kind="policy", targets=[target]))
    body = {
        "rollout_id": "r",
        "policy": "supervisor-policy",
        "candidates": [{"id": "a"}, {"id": "b"}],
    }
    with running_gateway(settings) as gateway:
        answer = gateway.http.post("/everloop/v1/decisions", json=body).raise_for_status().json()
        (logged,) = gateway.soon(DECISIONS, DecisionEvent)
    assert (answer["policy_version"], answer["probabilities"]) == ("uniform", [0.5, 0.5])
    # Its propensity is right for off-policy evaluation only under the name of who chose.
    assert (logged.payload.policy_version, logged.payload.propensity) == ("uniform", 0.5)
