"""Commands that read a log on which some records cannot be read."""

import subprocess
import sys
from pathlib import Path

import pytest

from schemas.topics import TOPICS
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.records import NewRecord

EVERLOOP = Path(sys.executable).with_name("everloop")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("explain decision d", 2),
        ("explain policy p", 2),
        ("ope --policy uniform --against uniform", 2),
        ("replay --reward os.path:getsize", 2),
        ("dead-letters list", 0),
    ],
)
def test_a_command_skips_what_cannot_be_read(tmp_path: Path, command: str, status: int) -> None:
    (tmp_path / "everloop.toml").write_text('[bandit]\ntargets = ["p"]\n')
    (tmp_path / "data").mkdir()
    with EmbeddedLog(tmp_path / "data" / "log.db") as log:
        log.append([NewRecord(topic, b"p", b"nonsense") for topic in TOPICS])
    done = subprocess.run(
        [EVERLOOP, "--data-dir", "data", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "record skipped" in done.stderr
    if status:
        assert done.stderr.splitlines()[-1].startswith("everloop: ")
