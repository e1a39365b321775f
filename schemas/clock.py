"""The one clock: event times are timezone-aware UTC datetimes, span times unix nanoseconds."""

import time
from datetime import UTC, datetime


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def now_nanoseconds() -> int:
    """Return nanoseconds since the unix epoch, as OpenTelemetry counts them."""
    return time.time_ns()


def from_milliseconds(value: int) -> datetime:
    """Return the UTC datetime of a millisecond timestamp, as logs store them."""
    return datetime.fromtimestamp(value / 1000, UTC)


def to_milliseconds(value: datetime) -> int:
    """Return whole milliseconds since the unix epoch."""
    return int(value.timestamp() * 1000)
