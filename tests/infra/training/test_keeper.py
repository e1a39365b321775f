"""What cannot be served again is given up where something else can answer, and only there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.serving.settings import ServingSettings
from infra.training import keeper as keeping
from infra.training.keeper import ATTEMPTS, Keeper
from infra.training.views import TrainingViews
from schemas.checkpoints import Artifact, Checkpoint, CheckpointState
from schemas.endpoints import Endpoint
from schemas.routes import Route, RouteTarget
from streams.storage.artifacts import FOLDER_TYPE, ArtifactStore

GONE = Artifact(sha256="0" * 64, size=3, media_type=FOLDER_TYPE)
ENDPOINT = Endpoint(base_url="http://127.0.0.1:9/v1", model="m1")


def keeper(folder: Path, state: CheckpointState, fallbacks: list[RouteTarget]) -> Keeper:
    """Return one that is to serve a checkpoint whose weights are gone."""
    known = TrainingViews(["writer"])
    known.checkpoints.all["writer", "m1"] = Checkpoint(
        name="writer", version="m1", kind="model", state=state, artifact=GONE, endpoint=ENDPOINT
    )
    target = RouteTarget(version="m1", endpoint=ENDPOINT)
    known.routes.current["writer"] = Route(
        name="writer", kind="model", targets=[target], fallbacks=fallbacks
    )
    return Keeper(ServingSettings(), folder, ArtifactStore(folder / "artifacts"), known)


@pytest.mark.parametrize(
    ("state", "becomes"),
    [
        (CheckpointState.CANARY, CheckpointState.ROLLED_BACK),
        (CheckpointState.PROMOTED, CheckpointState.ROLLED_BACK),
        (CheckpointState.CANDIDATE, CheckpointState.REJECTED),
    ],
)
def test_after_some_attempts_it_is_given_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: CheckpointState,
    becomes: CheckpointState,
) -> None:
    monkeypatch.setattr(keeping, "RETRY_S", 0.0)
    other = RouteTarget(version="parent", endpoint=ENDPOINT)
    kept = keeper(tmp_path, state, [other])
    assert [kept.keep() for _ in range(ATTEMPTS - 1)] == [[]] * (ATTEMPTS - 1)
    (given_up,) = kept.keep()
    assert (given_up.version, given_up.state) == ("m1", becomes)
    assert given_up.reason.startswith("cannot be served any more: ")


def test_it_is_tried_for_ever_where_nothing_else_would_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "RETRY_S", 0.0)
    kept = keeper(tmp_path, CheckpointState.PROMOTED, [])
    assert [kept.keep() for _ in range(2 * ATTEMPTS)] == [[]] * (2 * ATTEMPTS)


def test_the_note_of_a_server_that_is_gone_is_thrown_away(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    note = tmp_path / "logs" / "models" / "m0.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"weights": "w", "port": 9, "pid": gone.pid, "created": 0.0}))
    kept = keeper(tmp_path, CheckpointState.RETIRED, [])
    assert (kept.servers.servers, note.exists()) == ({}, False)


def test_it_is_left_alone_for_a_while_after_each_attempt(tmp_path: Path) -> None:
    kept = keeper(
        tmp_path, CheckpointState.CANARY, [RouteTarget(version="parent", endpoint=ENDPOINT)]
    )
    assert [kept.keep() for _ in range(2 * ATTEMPTS)] == [[]] * (2 * ATTEMPTS), (
        "half a minute has not passed"
    )
