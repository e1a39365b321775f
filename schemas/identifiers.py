"""The one generator of identifiers: event ids (UUIDv7, RFC 9562) and W3C trace context ids."""

import hashlib
import random
import uuid
from datetime import datetime

import uuid_utils

# Not from `secrets`: these ids are public, and every call needs one.
_random = random.Random()  # noqa: S311


def new_event_id() -> str:
    """Return a fresh UUIDv7 in its canonical 36-character form; ids sort by creation time."""
    return str(uuid_utils.uuid7())


def derived_event_id(time: datetime, *source: str | int) -> str:
    """Return the UUIDv7 of these parts: the same parts always give the same id.

    A processor derives the id of an output from its source (processor, topic, partition, offset,
    index). If it writes the output again after a crash, the id is the same, and the next stage can
    ignore the repeat.

    Args:
        time: event time of the source. It fills the 48-bit millisecond field, so derived ids sort
            together with new ones.
        source: parts that make the output unique. No part may contain the unit separator.

    Raises:
        ValueError: a part contains the unit separator.
    """
    parts = [str(part) for part in source]
    if any("\x1f" in part for part in parts):
        raise ValueError(f"identifier parts may not contain the unit separator: {parts!r}")
    # Ten bytes: the 80 bits that a UUIDv7 has after its time.
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=10).digest()
    milliseconds = int(time.timestamp() * 1000) & ((1 << 48) - 1)
    value = (milliseconds << 80) | int.from_bytes(digest)
    # RFC 9562, 5.7: four bits of version (7) and two of variant (binary 10) at fixed places.
    value = value & ~(0xF << 76) | (7 << 76)
    value = value & ~(0x3 << 62) | (2 << 62)
    return str(uuid.UUID(int=value))


def new_trace_id() -> str:
    """Return a random W3C trace id: 32 lowercase hexadecimal digits, not all zero."""
    # W3C: a trace id of zeros is invalid.
    return f"{_random.getrandbits(128) or 1:032x}"


def new_span_id() -> str:
    """Return a random W3C span id: 16 lowercase hexadecimal digits, not all zero."""
    return f"{_random.getrandbits(64) or 1:016x}"
