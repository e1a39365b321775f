"""The exported JSON Schemas are those of the models, and an incompatible change is noticed."""

from typing import Any

import orjson
import pytest

from schemas import export
from schemas.topics import REWARDS, TOPICS, Topic


@pytest.mark.parametrize("topic", TOPICS.values(), ids=lambda topic: topic.name)
def test_the_exported_schema_is_the_models_and_nothing_broke(topic: Topic) -> None:
    exported = orjson.loads(export.file_of(topic).read_bytes())
    current = export.schema_of(topic)
    if export.version_of(current) == export.version_of(exported):
        assert export.incompatibilities(exported, current) == []
    assert export.render(current) == export.file_of(topic).read_bytes(), (
        "run `python -m schemas.export`"
    )


def _changed(path: list[str], value: Any) -> dict[str, Any]:
    schema = orjson.loads(orjson.dumps(export.schema_of(REWARDS)))
    place = schema
    for part in path[:-1]:
        place = place[part]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return dict(schema)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (["properties", "tenant"], None, "tenant: property removed"),
        (["required"], ["rollout_id", "payload", "trace_id"], "trace_id: became required"),
        (["$defs", "Reward", "properties", "value", "maximum"], 0.5, "maximum narrowed"),
        (["$defs", "RewardSource", "enum"], ["human"], "enum value 'judge' removed"),
        (["$defs", "Reward", "properties", "comment", "type"], "integer", "type changed"),
        (["$defs", "Reward"], None, "Reward: definition removed"),
        (["properties", "span_id", "anyOf"], [{"type": "null"}], "branch"),
    ],
)
def test_an_incompatible_change_is_noticed(path: list[str], value: Any, problem: str) -> None:
    problems = export.incompatibilities(export.schema_of(REWARDS), _changed(path, value))
    assert any(problem in found for found in problems), problems


def test_a_new_optional_property_is_compatible() -> None:
    wider = _changed(["properties", "newer"], {"type": "string", "default": ""})
    assert export.incompatibilities(export.schema_of(REWARDS), wider) == []


def test_the_export_refuses_an_incompatible_change(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "FOLDER", tmp_path)
    old = _changed(["properties", "went"], {"type": "string"})
    export.file_of(REWARDS).write_bytes(export.render(old))
    assert export.main() == 1
    assert "went: property removed" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1, "nothing was written"
    export.file_of(REWARDS).unlink()
    assert export.main() == 0
    assert len(list(tmp_path.iterdir())) == len(TOPICS)
