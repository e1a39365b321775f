"""Rows as Parquet files, for people to read and for a run to read again."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from learners.datasets import Origin, PreferenceRow, PromptRow, RlRow, SftRow

Row = TypeVar("Row", SftRow, PreferenceRow, PromptRow, RlRow)

JSON_COLUMNS = frozenset({"messages", "prompt", "chosen", "rejected", "tools", "expected"})
"""Columns that hold JSON, because the fields of a message depend on the API it came from."""

_TYPES: dict[str, pa.DataType] = {
    "reward": pa.float64(),
    "margin": pa.float64(),
    "prompt_token_ids": pa.list_(pa.int64()),
    "response_token_ids": pa.list_(pa.int64()),
    "response_logprobs": pa.list_(pa.float64()),
    "event_ids": pa.list_(pa.string()),
    "held_out": pa.bool_(),
}


def write(rows: Sequence[SftRow | PreferenceRow | PromptRow | RlRow], path: Path) -> None:
    """Write rows of one kind, in their order. The same rows give the same bytes."""
    # JSON columns have sorted keys, and the types are given: so equal rows give equal bytes.
    documents = [_flat(row) for row in rows]
    names = list(documents[0]) if documents else []
    schema = pa.schema([(name, _TYPES.get(name, pa.string())) for name in names])
    pq.write_table(pa.Table.from_pylist(documents, schema=schema), path, compression="zstd")


def read(path: Path, kind: type[Row]) -> list[Row]:
    """Return the rows that `write` wrote."""
    return [_row(document, kind) for document in pq.read_table(path).to_pylist()]


def origins(rows: Iterable[SftRow | PreferenceRow | PromptRow | RlRow]) -> list[str]:
    """Return the ids of all events that the rows came from, sorted, each once."""
    return sorted({event_id for row in rows for event_id in row.origin.event_ids})


def _flat(row: SftRow | PreferenceRow | PromptRow | RlRow) -> dict[str, Any]:
    document = asdict(row)
    document |= document.pop("origin")
    return {
        name: orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
        if name in JSON_COLUMNS
        else value
        for name, value in document.items()
    }


def _row(document: dict[str, Any], kind: type[Row]) -> Row:
    values = {
        name: orjson.loads(value) if name in JSON_COLUMNS else value
        for name, value in document.items()
    }
    named = {name: values.pop(name) for name in ("tenant", "node", "task", "held_out")}
    origin = Origin(**named, event_ids=tuple(values.pop("event_ids")))
    return kind(**values, origin=origin)
