"""Which partition a key belongs to: Kafka's own rule, so a key has the same partition number on
every log.
"""

from functools import lru_cache

from kafka.partitioner.default import murmur2


@lru_cache(maxsize=65_536)
def partition_of(key: bytes | None, partitions: int) -> int:
    """Return the partition of `key`, as Kafka's default partitioner does (murmur2, sign bit
    cleared, modulo).

    Records without a key go to partition 0: order is worth more here than spread.
    """
    if key is None:
        return 0
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
