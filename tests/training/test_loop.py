"""The loop by itself: a teacher's traffic fills a batch, a model is trained, served, checked, tried, and takes over."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.config import GatewaySettings, Settings, load_settings
from infra.serving.servers import Servers
from infra.training.jobs import RESULT, Job, JobFolder, Result
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.commands import Command, CommandEvent
from schemas.endpoints import Endpoint
from schemas.routes import RouteEvent
from schemas.serialization import decode_all
from schemas.spans import Attribute, SpanEvent
from schemas.topics import CHECKPOINTS, COMMANDS, ROUTES, SPANS, TRAININGS
from schemas.trainings import ENDED, Training, TrainingEvent, TrainingState
from streams.embedded.log import EmbeddedLog
from streams.log import read_all
from streams.records import Outgoing
from tests.conftest import serving
from tests.e2e.installation import Part
from tests.infra.conftest import running_gateway
from tests.training.school import PUPIL, TAUGHT, TEACHER, School, publish_model, school, teacher
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIGURATION = """
[adapter.sft]
pupil = ["teacher"]
[adapter.rl]
pupil = ["pupil"]
[batches]
lessons = 100
[gate]
canary_share = 0.5
tolerance = 0.1
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
            started.serve("untrained", untrained.serve(str(base), "untrained").endpoint("untrained"))
            yield started
    untrained.close()


def trainings(log: EmbeddedLog) -> list[Training]:
    records = sorted(read_all(log, TRAININGS.name), key=lambda record: record.sequence)
    return [event.payload for record in records for event in decode_all(TrainingEvent, record.value)]


def ended_run(log: EmbeddedLog, job: str | None = None) -> Training | None:
    """Return the end of a run, of any where none is named."""
    return next((t for t in trainings(log) if t.state in ENDED and job in (None, t.job)), None)


def checkpoints(log: EmbeddedLog) -> list[Checkpoint]:
    records = sorted(read_all(log, CHECKPOINTS.name), key=lambda record: record.sequence)
    return [event.payload for record in records for event in decode_all(CheckpointEvent, record.value)]


def served_now(log: EmbeddedLog) -> list[str]:
    """Return the versions that the pupil's route leads to."""
    records = sorted(read_all(log, ROUTES.name), key=lambda record: record.sequence)
    events = [event for record in records for event in decode_all(RouteEvent, record.value)]
    return [target.version for target in [e for e in events if e.payload.name == PUPIL][-1].payload.targets]


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
        assert candidate.metrics["held_out_agreement"] > candidate.metrics["champion_agreement"] + 0.2
        last = [e for r in read_all(log, SPANS.name) for e in decode_all(SpanEvent, r.value)]
        by_it = [s for s in last if s.payload.attributes.get(Attribute.CHECKPOINT) == version]
        assert by_it
        assert by_it[0].payload.attributes[Attribute.RESPONSE_TOKEN_IDS], "what trains next needs its tokens"

        for planted, reason in PLANTED.items():
            job = plant(settings, log, base, planted)
            eventually(partial(ended_run, log, job), planted)
            assert served_now(log) == [version], planted
            bad = [c for c in checkpoints(log) if c.state is CheckpointState.REJECTED and reason in c.reason]
            assert bad, (planted, [c.reason for c in checkpoints(log)][-3:])
        running.asked(PUPIL, TAUGHT[:10])

        trainer.kill_and_restart()
        running.asked(PUPIL, TAUGHT[:10])
        assert running.exact(PUPIL)[0] >= 0.9


PLANTED = {
    "not a number": "not finite",
    "no weights": "cannot be served",
    "untrained": "of the expected answers to held-out prompts",
}


def plant(settings: Settings, log: EmbeddedLog, base: Path, what: str) -> str:
    """Leave a run that ended with bad weights, as though a training had made them, and order it; return its job."""
    first = next(t for t in trainings(log))
    manifest = first.manifest.model_copy(update={"number": 100 + list(PLANTED).index(what)})
    parent = served_now(log)[0]
    job = Job(target=PUPIL, config=settings.training.models[PUPIL][0], manifest=manifest, parent=parent)
    folder = JobFolder(settings.data_dir / "trainings" / job.id)
    model = folder.folder / "model"
    done = next((settings.data_dir / "trainings" / first.job).glob("held_out.jsonl"))
    shutil.copyfile(done, folder.folder / "held_out.jsonl")
    if what == "no weights":
        model.mkdir()
        (model / "config.json").write_text("{}")
    else:
        bad = AutoModelForCausalLM.from_pretrained(base)
        if what == "not a number":
            next(bad.parameters()).data[0, 0] = float("nan")
        else:
            next(bad.parameters()).data += torch.ones(1)
        bad.save_pretrained(model)
        AutoTokenizer.from_pretrained(base).save_pretrained(model)
    folder.write(RESULT, Result(metrics={}))
    order = Command(target=PUPIL, action="train", manifest=manifest, reason=what)
    log.append([Outgoing.of(COMMANDS, PUPIL, CommandEvent(payload=order)).record()])
    return job.id
