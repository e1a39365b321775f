"""Kafka's jars: resolved by Maven from `pom.xml` once, kept in the user's cache."""

import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

from platformdirs import user_cache_path

from infra.runtime.errors import ConfigError

POM = Path(__file__).parent / "pom.xml"
LEAST_JAVA = 17
RESOLVE_TIMEOUT_S = 600


def java() -> str:
    """Return the path of Java.

    Raises:
        ConfigError: there is none, or it is too old for Kafka 4.
    """
    found = shutil.which("java")
    if found is None:
        raise ConfigError(
            f"a local Kafka needs Java {LEAST_JAVA} or newer, and there is none; install a JRE"
        )
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S603
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < LEAST_JAVA:
        first = said.strip().splitlines()[0] if said.strip() else "nothing"
        raise ConfigError(
            f"a local Kafka needs Java {LEAST_JAVA} or newer; `{found} -version` says {first}"
        )
    return found


def jars() -> Path:
    """Return the folder with the jars, resolving them when they are not there.

    Raises:
        ConfigError: Maven is missing or cannot resolve them.
    """
    # The hash of the POM is in the name: another version of Kafka gets another folder.
    folder = user_cache_path("everloop") / f"kafka-{sha256(POM.read_bytes()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise ConfigError(
            "a local Kafka needs Maven to fetch its jars, and there is none; install Maven 3.6"
            " or newer"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the rename below is atomic.
    partial = Path(mkdtemp(dir=folder.parent))
    command = [
        maven,
        "-q",
        "-B",
        "-f",
        str(POM),
        "dependency:copy-dependencies",
        "-DincludeScope=runtime",
    ]
    resolved = subprocess.run(  # noqa: S603 - our own command
        [*command, f"-DoutputDirectory={partial}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=RESOLVE_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )
    if resolved.returncode:
        shutil.rmtree(partial)
        lines = [line for line in resolved.stdout.splitlines() if line.startswith("[ERROR]")] or [
            "no reason given"
        ]
        raise ConfigError(
            f"Maven cannot resolve Kafka's jars: {lines[0].removeprefix('[ERROR] ')[:300]}"
        )
    try:
        partial.rename(folder)
    except OSError:  # another process was faster, with the same jars
        shutil.rmtree(partial)
    return folder
