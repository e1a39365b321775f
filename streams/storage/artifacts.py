"""The artifact store: bytes addressed by their SHA-256, written once and never changed."""

import os
import shutil
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol

import orjson

from schemas.checkpoints import Artifact
from streams.storage.errors import RejectedRecordError

FOLDER_TYPE = "application/vnd.everloop.folder+json"
"""A list of files by path, hash and size."""


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
        """Store bytes, all or nothing, and return their reference. Equal bytes share one file."""
        digest = sha256(content).hexdigest()
        path = self._path(digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # In the same folder, because a rename is atomic only within one file system.
            with NamedTemporaryFile(dir=path.parent, delete=False) as partial:
                try:
                    partial.write(content)
                    partial.flush()
                    # Flushed before it gets its name: after a power cut the name must not stand for
                    # an empty file.
                    os.fsync(partial.fileno())
                    Path(partial.name).replace(path)
                # Also on Ctrl-C: a partial file would stay in the store for ever.
                except BaseException:
                    with suppress(FileNotFoundError):
                        Path(partial.name).unlink()
                    raise
        return Artifact(sha256=digest, size=len(content), media_type=media_type)

    def get(self, artifact: Artifact) -> bytes:
        """Return the bytes of an artifact.

        Raises:
            RejectedRecordError: it is not in the store, or its bytes do not match its hash.
        """
        path = self._path(artifact.sha256)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise RejectedRecordError(
                f"artifact {artifact.sha256} is not in {self._folder}"
            ) from error
        # Checked at each read: a disk may damage a file long after it was written.
        if sha256(content).hexdigest() != artifact.sha256:
            raise RejectedRecordError(
                f"artifact {path} is damaged: its bytes do not match its hash"
            )
        return content

    def put_folder(self, folder: Path) -> Artifact:
        """Store each file of a folder by its hash. Return the reference of the list of files."""
        files = []
        # Sorted, and the keys below too: equal folders must give equal lists, and so one artifact.
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest = self._keep(path)
            files.append(
                {
                    "path": path.relative_to(folder).as_posix(),
                    "sha256": digest,
                    "size": path.stat().st_size,
                }
            )
        return self.put(orjson.dumps({"files": files}, option=orjson.OPT_SORT_KEYS), FOLDER_TYPE)

    def get_folder(self, artifact: Artifact, folder: Path) -> Path:
        """Write a stored folder's files to `folder` and return it. If it exists, it is complete.

        Raises:
            RejectedRecordError: the artifact is not a folder, or one of its files is missing or
                damaged.
        """
        if folder.exists():
            return folder
        if artifact.media_type != FOLDER_TYPE:
            raise RejectedRecordError(
                f"artifact {artifact.sha256} is {artifact.media_type}, not a folder"
            )
        partial = folder.with_name(f"{folder.name}.partial")
        # Left by a process that was killed while it wrote.
        shutil.rmtree(partial, ignore_errors=True)
        for file in orjson.loads(self.get(artifact))["files"]:
            source, copy = self._path(file["sha256"]), partial / file["path"]
            if not source.exists() or _digest(source) != file["sha256"]:
                raise RejectedRecordError(
                    f"{file['path']} of artifact {artifact.sha256} is missing or damaged"
                )
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                # A link takes no space and no time; the weights of a model are gigabytes.
                copy.hardlink_to(source)
            except OSError:  # another file system
                shutil.copyfile(source, copy)
        # Renamed last, so that a folder of this name is always complete.
        partial.rename(folder)
        return folder

    def _keep(self, path: Path) -> str:
        """Copy a file into the store, in bounded memory; return its hash."""
        digest = _digest(path)
        kept = self._path(digest)
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            # The pid keeps two processes that store the same file out of each other's way.
            partial = kept.with_name(f"{digest}.{os.getpid()}.partial")
            shutil.copyfile(path, partial)
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            # Restored folders are hard links to this file, so nobody may write to it.
            partial.chmod(0o444)
            partial.replace(kept)
        return digest

    def _path(self, digest: str) -> Path:
        # 256 subfolders: one folder with very many files is slow on some file systems.
        return self._folder / digest[:2] / digest[2:]


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()
