"""The one generator of identifiers: event ids (UUIDv7, RFC 9562) and W3C trace context ids."""

import hashlib
import random
import uuid
from datetime import datetime

import uuid_utils

# seeded by the system; these ids are no secrets, and one is made for each call
_random = random.Random()  # noqa: S311


def new_event_id() -> str:
    """Return a fresh UUIDv7 in its canonical 36-character form; ids sort by creation time."""
    return str(uuid_utils.uuid7())


def derived_event_id(time: datetime, *source: str | int) -> str:
    """Return the UUIDv7 that these parts always give.

    A processor names its outputs by where they came from (processor, topic, partition, offset,
    index), so that an output written again after a crash carries the same id and the next stage can
    ignore it.

    Args:
        time: event time of the source; fills the 48-bit millisecond field, so derived ids sort with
            fresh ones.
        source: what makes the output unique. Parts are joined with a separator that no part may
            contain.
    """
    parts = [str(part) for part in source]
    if any("\x1f" in part for part in parts):
        raise ValueError(f"identifier parts may not contain the unit separator: {parts!r}")
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=10).digest()
    milliseconds = int(time.timestamp() * 1000) & ((1 << 48) - 1)
    value = (milliseconds << 80) | int.from_bytes(digest)
    value = value & ~(0xF << 76) | (7 << 76)
    value = value & ~(0x3 << 62) | (2 << 62)
    return str(uuid.UUID(int=value))


def new_trace_id() -> str:
    """Return a random W3C trace id: 32 lowercase hexadecimal digits, not all zero."""
    return f"{_random.getrandbits(128) or 1:032x}"


def new_span_id() -> str:
    """Return a random W3C span id: 16 lowercase hexadecimal digits, not all zero."""
    return f"{_random.getrandbits(64) or 1:016x}"
