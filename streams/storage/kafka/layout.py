"""Where the states of a consumer group lie on Kafka: the name of their topic and their keys."""

STATE_PREFIX = b"state:"


def changelog_of(group: str) -> str:
    """Return the name of the topic that keeps a group's states."""
    return f"{group}-states-changelog"


def state_key(key: str) -> bytes:
    """Return the key that a state lies under in its changelog."""
    return STATE_PREFIX + key.encode()
