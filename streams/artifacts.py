"""The artifact store: bytes addressed by their SHA-256, written once and never changed."""

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol

from schemas.checkpoints import Artifact
from streams.errors import RejectedRecordError


class ArtifactReader(Protocol):
    """Looks up bytes by their hash; the same hash always gives the same bytes."""

    def get(self, artifact: Artifact) -> bytes:
        """Return the bytes of an artifact, checked against its hash."""
        ...


class ArtifactStore:
    """Artifacts as files in a folder, two levels deep by hash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, content: bytes, media_type: str) -> Artifact:
        """Store bytes and return their reference. Atomic, and repeatable: equal bytes are one file."""
        digest = sha256(content).hexdigest()
        path = self._path(digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, delete=False) as partial:
                try:
                    partial.write(content)
                    partial.flush()
                    os.fsync(partial.fileno())
                    Path(partial.name).replace(path)
                except BaseException:
                    with suppress(FileNotFoundError):
                        Path(partial.name).unlink()
                    raise
        return Artifact(sha256=digest, size=len(content), media_type=media_type)

    def get(self, artifact: Artifact) -> bytes:
        """Return the bytes of an artifact.

        Raises:
            RejectedRecordError: it is not here, or its bytes are not those it names.
        """
        path = self._path(artifact.sha256)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise RejectedRecordError(f"artifact {artifact.sha256} is not in {self._folder}") from error
        if sha256(content).hexdigest() != artifact.sha256:
            raise RejectedRecordError(f"artifact {path} is damaged: its hash is not its name")
        return content

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest[2:]
