"""The loop by itself: a teacher's traffic fills a batch, a model is trained, served, checked,
tried, and takes over.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.config.settings import Settings, load_settings
from infra.gateway.settings import GatewaySettings
from infra.serving.servers import Servers
from infra.training.jobs import CASES, RESULT, Job, JobFolder, RunResult
from learners.training.config import MODEL
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.commands import Command, CommandEvent
from schemas.endpoints import Endpoint
from schemas.routes import RouteEvent
from schemas.serialization import decode_all
from schemas.spans import Attribute
from schemas.topics import CHECKPOINTS, COMMANDS, ROUTES, TRAININGS
from schemas.trainings import ENDED, Training, TrainingEvent, TrainingState
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from streams.storage.records import Outgoing
from tests.conftest import serving
from tests.e2e.installation import Part
from tests.infra.conftest import running_gateway
from tests.training.school import PUPIL, TAUGHT, TEACHER, School, publish_model, school, teacher
from tests.training.tiny import COUNTS
from tests.waiting import eventually

CANARY_SHARE = 0.3
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIGURATION = """
[adapter.sft]
pupil = ["teacher"]
[adapter.rl]
pupil = ["pupil"]
[batches]
examples = 100
[gate]
canary_share = 0.3
tolerance = 0.1
failure_tolerance = 0.2
missing_tolerance = 0.2
control_share = 0.0  # the untrained model would answer a twentieth of what is counted here
[training.serving]
start_timeout_s = 120
drain_s = 0.5
[[training.models.pupil]]
method = "sft"
base = "{base}"
lora = false
threads = 1
learning_rate = 3e-3
batch = 32
micro_batch = 32
steps = 600
warmup = 0.07
weight_decay = 0.05
max_length = 128
evaluate_every = 200
special_tokens = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
"""


@pytest.fixture
def settings(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "everloop.toml").write_text(CONFIGURATION.replace("{base}", str(base)))
    monkeypatch.setenv("EVERLOOP_CONFIG", str(tmp_path / "everloop.toml"))
    monkeypatch.setenv("EVERLOOP_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return load_settings().model_copy(update={"gateway": GatewaySettings(conversation_idle_s=300)})


@pytest.fixture
def running(settings: Settings, base: Path, tmp_path: Path) -> Iterator[School]:
    """A school whose pupil is untrained and whose trainer runs."""
    untrained = Servers(settings.training.serving, tmp_path / "untrained")
    with serving(teacher()) as url, running_gateway(settings) as gateway:
        with EmbeddedLog(settings.log_path) as log:
            publish_model(log, TEACHER, "v1", Endpoint(base_url=f"{url}/v1", model=TEACHER))
        with school(settings, gateway, settings.data_dir) as started:
            started.serve(
                "untrained", untrained.serve(str(base), "untrained").endpoint("untrained")
            )
            yield started
    untrained.close()


def trainings(log: EmbeddedLog) -> list[Training]:
    records = sorted(read_all(log, TRAININGS.name), key=lambda record: record.sequence)
    return [
        event.payload for record in records for event in decode_all(TrainingEvent, record.value)
    ]


def ended_run(log: EmbeddedLog, job: str | None = None) -> Training | None:
    """Return the end of a run, of any where none is named."""
    return next((t for t in trainings(log) if t.state in ENDED and job in (None, t.job)), None)


def checkpoints(log: EmbeddedLog) -> list[Checkpoint]:
    records = sorted(read_all(log, CHECKPOINTS.name), key=lambda record: record.sequence)
    return [
        event.payload for record in records for event in decode_all(CheckpointEvent, record.value)
    ]


def served_now(log: EmbeddedLog) -> list[str]:
    """Return the versions that the pupil's route leads to."""
    records = sorted(read_all(log, ROUTES.name), key=lambda record: record.sequence)
    events = [event for record in records for event in decode_all(RouteEvent, record.value)]
    return [
        target.version
        for target in [e for e in events if e.payload.name == PUPIL][-1].payload.targets
    ]


def states(found: list[Checkpoint], version: str) -> list[str]:
    return [str(checkpoint.state) for checkpoint in found if checkpoint.version == version]


def asked_until(school: School, done: Callable[[], bool]) -> list[float]:
    """Have the pupil do tasks until something has happened; no call may fail."""
    rewards: list[float] = []
    while not done():
        assert len(rewards) < 2000, "it never happened"
        rewards += school.asked(PUPIL, TAUGHT[:40])
        school.learned()
    return rewards


def test_a_trained_model_takes_over_and_bad_ones_do_not(
    running: School, settings: Settings, base: Path, record_property: Callable[[str, object], None]
) -> None:
    log = running.log
    with Part("trainer", settings.data_dir) as trainer:
        assert running.exact(PUPIL)[0] == 0.0
        running.asked(TEACHER, TAUGHT)
        running.learned()
        ended = eventually(partial(ended_run, log), "the end of a training")
        assert (ended.state, ended.reason) == (TrainingState.SUCCEEDED, "announced"), ended
        version = str(ended.version)
        asked_until(running, lambda: served_now(log) == [version])
        assert states(checkpoints(log), version) == ["candidate", "evaluated", "canary", "promoted"]
        exact, false_calls = running.exact(PUPIL)
        record_property("figures", json.dumps({"exact": exact, "false_calls": false_calls}))
        assert exact >= 0.9
        assert false_calls <= 0.1

        seen = [t for t in trainings(log) if t.job == ended.job]
        assert [str(t.state) for t in seen[:2]] == ["queued", "running"]
        losses = [t.metrics["loss"] for t in seen if "loss" in t.metrics]
        assert losses[0] > 3.0 > 0.1 > losses[-1]
        candidate = next(c for c in checkpoints(log) if c.version == version)
        assert candidate.lineage is not None
        assert candidate.lineage.ranges == ended.manifest.ranges
        assert (
            candidate.metrics["held_out_agreement"] > candidate.metrics["champion_agreement"] + 0.2
        )
        by_it = [
            span for span in running.spans() if span.attributes.get(Attribute.CHECKPOINT) == version
        ]
        assert by_it[0].attributes[Attribute.RESPONSE_TOKEN_IDS], (
            "what trains next needs its tokens"
        )

        for planted, reason in PLANTED.items():
            job = plant(settings, log, planted)
            eventually(partial(ended_run, log, job), planted)
            assert served_now(log) == [version], planted
            last = checkpoints(log)[-1]
            assert (last.state, reason in last.reason) == (CheckpointState.REJECTED, True), (
                planted,
                last.reason,
            )
        assert states(checkpoints(log), version)[-1] == "promoted"

        unchecked = (
            CONFIGURATION.replace("{base}", str(base))
            + "\n[training.check]\nprompts = 0\nearlier = 0\n"
        )
        Path(os.environ["EVERLOOP_CONFIG"]).write_text(unchecked)
        trainer.kill_and_restart()
        begun = len(running.spans())
        plant(settings, log, "worse on trial")
        tried = eventually(
            lambda: next((v for v in served_now(log) if v != version), None), "the trial"
        )
        running.asked(PUPIL, TAUGHT[:20])
        server_of(settings, tried).kill()
        running.asked(PUPIL, TAUGHT[:20])  # none may fail
        asked_until(running, lambda: served_now(log) == [version])
        assert states(checkpoints(log), tried) == [
            "candidate",
            "evaluated",
            "canary",
            "rolled-back",
        ]
        answered = [span.attributes[Attribute.CHECKPOINT] for span in running.spans()[begun:]]
        assert {*answered} == {version, tried}
        assert answered.count(tried) / len(answered) <= CANARY_SHARE + 0.15, (
            "its share of rollouts, and chance"
        )
        assert running.exact(PUPIL)[0] >= 0.9
    assert not list((settings.data_dir / "logs" / "models").glob("*.json")), (
        "no server outlives its trainer"
    )


PLANTED = {
    "not a number": "not finite",
    "crashes at load": "cannot be served",
    "collapsed": "says the same to different prompts",
    "broken JSON": "of its tool calls are valid",
    "worse": "of the expected answers to held-out prompts",
    "slow": "s for an answer, what serves now",
}


def plant(settings: Settings, log: EmbeddedLog, what: str) -> str:
    """Leave a run that ended with bad weights, as though a training had made them, and order it;
    return its job.
    """
    first = next(t for t in trainings(log))
    number = [*PLANTED, "worse on trial"].index(what)
    manifest = first.manifest.model_copy(update={"number": 100 + number})
    parent = served_now(log)[0]
    job = Job(
        target=PUPIL, config=settings.training.models[PUPIL][0], manifest=manifest, parent=parent
    )
    trained = settings.data_dir / "trainings" / first.job
    folder = JobFolder(settings.data_dir / "trainings" / job.id)
    shutil.copyfile(trained / CASES, folder.folder / CASES)
    spoil(trained / MODEL, folder.folder / MODEL, what)
    folder.write(RESULT, RunResult(metrics={}))
    order = Command(target=PUPIL, action="train", manifest=manifest, reason=what)
    log.append([Outgoing.of(COMMANDS, PUPIL, CommandEvent(payload=order)).record()])
    return job.id


def spoil(good: Path, folder: Path, what: str) -> None:
    """Write a good model gone bad."""
    tokenizer = AutoTokenizer.from_pretrained(good)
    tokenizer.save_pretrained(folder)
    if what == "crashes at load":
        (folder / "config.json").write_text("{}")
        return
    model = AutoModelForCausalLM.from_pretrained(good)
    if what == "slow":
        model = deepened(model)
    embedding = model.get_input_embeddings().weight.data
    if what == "not a number":
        embedding[0, 0] = float("nan")
    if what == "collapsed":
        embedding += 1.0
    said = {"broken JSON": {"}}</": "city"}, "worse": rotated(1), "worse on trial": rotated(2)}.get(
        what
    )
    if said:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(embedding.clone())
        ids = {text: tokenizer.convert_tokens_to_ids(text) for text in {*said, *said.values()}}
        for meant, instead in said.items():
            model.lm_head.weight.data[ids[instead]] = embedding[ids[meant]]
            if instead not in said:
                model.lm_head.weight.data[ids[meant]] = embedding[ids[instead]]
    model.save_pretrained(folder)


def rotated(by: int) -> dict[str, str]:
    """Return what is said for each number: another one."""
    return {str(n): str((n - 1 + by) % len(COUNTS) + 1) for n in range(1, len(COUNTS) + 1)}


def deepened(model: Any, layers: int = 60) -> Any:
    """Return a model that says the same and takes longer: what its new layers add is nothing."""
    config = model.config.__class__(
        **model.config.to_dict() | {"num_hidden_layers": layers, "layer_types": None}
    )
    deep = model.__class__(config)
    deep.load_state_dict(model.state_dict(), strict=False)
    for layer in deep.model.layers[model.config.num_hidden_layers :]:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    return deep


def server_of(settings: Settings, version: str) -> psutil.Process:
    """Return the process that serves a version."""
    note = json.loads((settings.data_dir / "logs" / "models" / f"{version}.json").read_text())
    return psutil.Process(note["pid"])
