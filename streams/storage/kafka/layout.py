"""The layout of states on Kafka: the name of a group's changelog and the keys in it."""

STATE_PREFIX = b"state:"


def changelog_of(group: str) -> str:
    """Return the name of the topic that keeps a group's states."""
    return f"{group}-states-changelog"


def state_key(key: str) -> bytes:
    """Return the key of a state in its changelog."""
    return STATE_PREFIX + key.encode()
