"""The keeper: keeps trained models served. A model needs a server while a route leads to it, while
it is a candidate, and while a rollback may bring it back.
"""

import json
import time
from collections import Counter
from pathlib import Path

import structlog

from infra.serving.servers import Server, Servers, ServingError
from infra.serving.settings import ServingSettings
from infra.training.views import TrainingViews
from learners.training.config import ADAPTER_FILE
from schemas.checkpoints import Artifact, Checkpoint, CheckpointState
from schemas.endpoints import Endpoint
from streams.storage.artifacts import FOLDER_TYPE, ArtifactStore
from streams.storage.errors import RejectedRecordError

SERVED = frozenset(
    {
        CheckpointState.CANDIDATE,
        CheckpointState.EVALUATED,
        CheckpointState.CANARY,
        CheckpointState.PROMOTED,
    }
)
"""States in which a checkpoint's server must answer."""

RETRY_S = 30.0
"""Seconds until a server that could not be started is tried again."""

ATTEMPTS = 3
"""Failed attempts in a row, after which a version is given up."""

logger = structlog.get_logger(__name__)


class Keeper:
    """Serves checkpoints from the artifact store, as long as something needs them.

    Args:
        data_dir: of the installation; its folder `models` holds the weights.
        known: views of the log. The caller keeps them up to date.
    """

    def __init__(
        self,
        settings: ServingSettings,
        data_dir: Path,
        artifacts: ArtifactStore,
        known: TrainingViews,
    ) -> None:
        self._settings, self._data_dir = settings, data_dir
        self._artifacts, self._known = artifacts, known
        self._idle_since: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self.servers = Servers(settings, data_dir / "logs" / "models")
        self.servers.adopt()  # what is not needed any more is stopped like any other

    def keep(self) -> list[Checkpoint]:
        """Start every server that is needed and does not run. Stop the others.

        Returns:
            Checkpoints that are given up, with the state and the reason to announce.
        """
        given_up = []
        wanted = {
            (c.name, c.version): c
            for c in self._known.checkpoints.all.values()
            if self._must_serve(c)
        }
        for checkpoint in wanted.values():
            # To start a server takes seconds and memory. A broken one is not tried in each round.
            if time.monotonic() < self._not_before.get(checkpoint.version, 0.0):
                continue
            try:
                self.serve(checkpoint)
                self._failures.pop(checkpoint.version, None)
            except (ServingError, RejectedRecordError) as error:
                self._not_before[checkpoint.version] = time.monotonic() + RETRY_S
                self._failures[checkpoint.version] += 1
                if self._failures[checkpoint.version] >= ATTEMPTS and self._replaceable(checkpoint):
                    given_up.append(_withdrawal(checkpoint, str(error)))
                logger.warning(
                    "a model cannot be served",
                    name=checkpoint.name,
                    version=checkpoint.version,
                    error=str(error),
                )
        names = {version for _, version in wanted}
        for weights, server in list(self.servers.servers.items()):
            for adapter in [a for a in server.adapters if a not in names]:
                if self._idle(adapter):
                    self.servers.unload(server, adapter)
            # A base has no checkpoint of its own. Its server is needed as long as an adapter is
            # loaded.
            needed = server.name in names or bool(server.adapters)
            if not needed and self._idle(server.name):
                self.servers.stop(weights)
        for name in [name for name in self._idle_since if name in names]:
            del self._idle_since[name]
        return given_up

    def serve(self, checkpoint: Checkpoint) -> Server:
        """Serve a checkpoint, at the port where it was served before if there was one."""
        folder = self.weights(checkpoint.name, checkpoint.version, checkpoint.artifact)
        assert folder is not None  # noqa: S101 - a checkpoint of ours has an artifact
        # At the same port again: routes already name it.
        port = _port(checkpoint.endpoint)
        if checkpoint.kind != "adapter":
            return self.servers.serve(str(folder), checkpoint.version, port)
        base = _base(folder)
        return self.servers.serve_adapter(base, Path(base).name, checkpoint.version, folder, port)

    def weights(
        self, name: str, version: str | None, artifact: Artifact | None = None
    ) -> Path | None:
        """Return the folder of a version's weights, filled from the artifact store; None for the
        base.

        Raises:
            RejectedRecordError: the version has no weights, or they are damaged.
        """
        if version is None:
            return None
        if artifact is None:
            known = self._known.checkpoints.all.get((name, version))
            artifact = known.artifact if known is not None else None
        if artifact is None or artifact.media_type != FOLDER_TYPE:
            raise RejectedRecordError(f"{name} {version} has no weights")
        return self._artifacts.get_folder(
            artifact, self._data_dir / "models" / artifact.sha256[:16]
        )

    def _must_serve(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint that was trained here needs a server."""
        if (
            checkpoint.endpoint is None
            or checkpoint.artifact is None
            or checkpoint.artifact.media_type != FOLDER_TYPE
        ):
            return False
        route = self._known.routes.current.get(checkpoint.name)
        routed = [target.version for target in route.all_targets] if route else []
        promoted = self._known.promoted(checkpoint.name)
        parent = promoted.lineage.parent if promoted is not None and promoted.lineage else None
        # If the promoted version earns less, its parent serves again.
        return (
            checkpoint.state in SERVED
            or checkpoint.version in routed
            or checkpoint.version == parent
        )

    def _replaceable(self, checkpoint: Checkpoint) -> bool:
        """Return whether a fallback answers the calls that this version does not."""
        route = self._known.routes.current.get(checkpoint.name)
        return checkpoint.state in SERVED and route is not None and bool(route.fallbacks)

    def _idle(self, name: str) -> bool:
        """Return whether a server was not needed for so long that no call is in flight."""
        since = self._idle_since.setdefault(name, time.monotonic())
        if time.monotonic() - since < self._settings.drain_s:
            return False
        del self._idle_since[name]
        return True


def _port(endpoint: Endpoint | None) -> int | None:
    """Return the port that a checkpoint's endpoint names."""
    if endpoint is None:
        return None
    return int(endpoint.base_url.rpartition(":")[2].partition("/")[0])


def _base(folder: Path) -> str:
    """Return the whole weights that an adapter was trained on."""
    return str(json.loads((folder / ADAPTER_FILE).read_text())["base_model_name_or_path"])


def _withdrawal(checkpoint: Checkpoint, error: str) -> Checkpoint:
    answered = checkpoint.state in (CheckpointState.CANARY, CheckpointState.PROMOTED)
    # Only what has served can be rolled back.
    state = CheckpointState.ROLLED_BACK if answered else CheckpointState.REJECTED
    return checkpoint.model_copy(
        update={"state": state, "reason": f"cannot be served any more: {error}"}
    )
