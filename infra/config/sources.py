"""Sources: where each setting's value comes from, as `everloop config` shows it."""

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from infra.config.settings import PREFIX, SECRETS_VARIABLE, Settings, config_files

Source = Literal["default", "file", "secret", "environment"]


def sourced_settings(settings: Settings) -> dict[str, tuple[Any, Source]]:
    """Return every setting by its dotted name, with its value and the source of the value."""
    documents = [tomllib.loads(file.read_text()) for file in config_files()]
    rows: dict[str, tuple[Any, Source]] = {}
    for path, value in _leaves(settings.model_dump(mode="json"), ()):
        # Two levels: a variable names a section and a setting. What lies deeper is one JSON value.
        variable = PREFIX + "__".join(path[:2]).upper()
        source: Source = "default"
        if any(name == variable or name.startswith(variable + "__") for name in os.environ) or (
            PREFIX + path[0].upper() in os.environ
        ):
            source = "environment"
        elif (Path(os.environ.get(SECRETS_VARIABLE, os.devnull)) / "__".join(path[:2])).is_file():
            source = "secret"
        elif any(_contains(document, path) for document in documents):
            source = "file"
        rows[".".join(path)] = (value, source)
    return rows


def _leaves(value: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        return [leaf for name, item in value.items() for leaf in _leaves(item, (*path, name))]
    return [(path, value)]


def _contains(document: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if not isinstance(document, dict) or part not in document:
            return False
        document = document[part]
    return True
