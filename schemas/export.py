"""JSON Schemas of all events, and the check that a change does not break readers or stored events.

`python -m schemas.export` writes `schemas/json/`. It refuses an incompatible change unless the
default of the event's `schema_version` was raised.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from schemas.topics import TOPICS, Topic

FOLDER = Path(__file__).parent / "json"

Schema = dict[str, Any]


def file_of(topic: Topic) -> Path:
    """Return where a topic's schema is kept."""
    return FOLDER / f"{topic.event.model_fields['type'].default}.schema.json"


def schema_of(topic: Topic) -> Schema:
    """Return the JSON Schema (2020-12) of a topic's values."""
    schema: Schema = topic.event.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "x-topic": topic.name,
    } | schema


def render(schema: Schema) -> bytes:
    """Return a schema as it is written: indented, keys sorted, ending in a newline."""
    return orjson.dumps(
        schema, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    )


def version_of(schema: Schema) -> int:
    """Return the schema version a writer of this schema stamps on its events."""
    return int(schema["properties"]["schema_version"]["default"])


def incompatibilities(old: Schema, new: Schema) -> list[str]:
    """Return the incompatible changes from `old` to `new`, one line each; empty if compatible.

    A change is incompatible if it removes a property, a definition, an enum value or a union
    branch, makes a property required, changes a type, or narrows a range or a pattern.
    """
    problems = list(_narrowings("event", old, new))
    old_definitions, new_definitions = old.get("$defs", {}), new.get("$defs", {})
    for name, definition in old_definitions.items():
        if name not in new_definitions:
            problems.append(f"{name}: definition removed")
        else:
            problems.extend(_narrowings(name, definition, new_definitions[name]))
    return problems


def _narrowings(where: str, old: Schema, new: Schema) -> Iterator[str]:
    old_properties, new_properties = old.get("properties", {}), new.get("properties", {})
    for name in old_properties.keys() - new_properties.keys():
        yield f"{where}.{name}: property removed"
    for name in set(new.get("required", ())) - set(old.get("required", ())):
        yield f"{where}.{name}: became required"
    for name in old_properties.keys() & new_properties.keys():
        yield from _narrowings(f"{where}.{name}", old_properties[name], new_properties[name])
    # Any other value of these may refuse what was written before.
    for keyword in ("type", "$ref", "const", "pattern", "format"):
        if keyword in new and new[keyword] != old.get(keyword):
            yield f"{where}: {keyword} changed from {old.get(keyword)!r} to {new[keyword]!r}"
    for value in old.get("enum", ()):
        if "enum" in new and value not in new["enum"]:
            yield f"{where}: enum value {value!r} removed"
    if "enum" in new and "enum" not in old:
        yield f"{where}: became an enum"
    for keyword, tighter in (
        ("minimum", max),
        ("exclusiveMinimum", max),
        ("minLength", max),
        ("minItems", max),
        ("maximum", min),
        ("exclusiveMaximum", min),
        ("maxLength", min),
        ("maxItems", min),
    ):
        if keyword in new and (
            keyword not in old or tighter(old[keyword], new[keyword]) != old[keyword]
        ):
            yield f"{where}: {keyword} narrowed from {old.get(keyword)} to {new[keyword]}"
    # A branch that is gone refuses events on the log that used it. New branches are fine.
    for keyword in ("anyOf", "oneOf"):
        for branch in old.get(keyword, ()):
            if keyword in new and branch not in new[keyword]:
                yield f"{where}: {keyword} branch {branch} removed"
    if "items" in old and "items" in new:
        yield from _narrowings(f"{where}[]", old["items"], new["items"])


def main() -> int:
    """Write all schemas; return 1 and write nothing when a change is incompatible."""
    pending: list[tuple[Path, bytes]] = []
    for topic in TOPICS.values():
        path, new = file_of(topic), schema_of(topic)
        if path.exists():
            old = orjson.loads(path.read_bytes())
            problems = incompatibilities(old, new)
            # With a higher version, readers can tell the new form from the old one.
            if problems and version_of(new) <= version_of(old):
                sys.stderr.write(
                    f"{path.name}: incompatible, raise schema_version:\n  "
                    + "\n  ".join(problems)
                    + "\n"
                )
                return 1
        pending.append((path, render(new)))
    # Only now, when every schema has passed: all are written or none.
    FOLDER.mkdir(exist_ok=True)
    for path, content in pending:
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
