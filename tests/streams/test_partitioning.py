"""Keys land in the partitions Kafka would put them in."""

import pytest

from streams.storage.partitions import partition_of


@pytest.mark.parametrize(
    ("key", "hash_"),
    [
        # From Apache Kafka's UtilsTest.testMurmur2.
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_a_key_has_kafkas_partition(key: bytes, hash_: int) -> None:
    for partitions in (1, 4, 8, 12):
        assert partition_of(key, partitions) == (hash_ & 0x7FFFFFFF) % partitions


def test_records_without_a_key_keep_their_order_in_one_partition() -> None:
    assert partition_of(None, 8) == 0
