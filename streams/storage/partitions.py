"""The partition of a key, by Kafka's rule: a key has the same partition number on every log."""

from functools import lru_cache

from kafka.partitioner.default import murmur2


# The murmur2 of kafka-python is plain Python, and the same keys come again and again.
@lru_cache(maxsize=65_536)
def partition_of(key: bytes | None, partitions: int) -> int:
    """Return the partition of a key, by Kafka's default rule (murmur2, sign bit cleared, modulo).

    Records without a key go to partition 0, because their order matters more than their spread.
    """
    if key is None:
        return 0
    # Kafka clears the sign bit, because Java has no unsigned integers.
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
