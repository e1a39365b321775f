"""What the Kafka runner does with records counts once though Kafka delivers them at least once."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from faust.types import TP

from learners.bandit import BanditLearner
from learners.gate import GateConfig
from schemas.rollouts import RolloutState
from schemas.topics import DEAD_LETTERS, REWARDS, TRAJECTORIES
from streams.processing.processor import Processor
from streams.processors.adapter import AdapterConfig
from streams.processors.join_state import JoinState
from streams.processors.learner import Learning
from streams.processors.promotion import Promotion
from streams.processors.router import ExampleRouter
from streams.processors.trajectories import JoinConfig, TrajectoryJoin
from streams.runners.kafka.faust_app import Gaps, create_app
from streams.runners.kafka.stage import KafkaStage
from streams.runners.kafka.states import POSITIONS_KEY, OutdatedError, Positions
from streams.storage.artifacts import ArtifactStore
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.layout import state_key
from streams.storage.records import NewRecord, Record
from tests import events


class Stored:
    """Keeps changelogs and outputs as Kafka would: who loads shuts out who loaded before."""

    def __init__(self) -> None:
        self.outputs: list[NewRecord] = []
        self.records: dict[int, list[Record]] = {}
        self.epochs: dict[int, int] = {}
        self.open: set[Writer] = set()
        self.refuse = False

    def __call__(self, partition: int) -> "Writer":
        return Writer(self, partition)

    @property
    def topics(self) -> list[str]:
        return [record.topic for record in self.outputs]

    def latest(self, key: str, partition: int | None = None) -> bytes | None:
        place = PARTITION if partition is None else partition
        values = [record.value for record in self.records[place] if record.key == state_key(key)]
        return values[-1] if values else None

    def positions(self) -> Positions:
        values = [record.value for record in self.records[PARTITION] if record.key == POSITIONS_KEY]
        return Positions.decode(values[-1])


class Writer:
    """One worker's hold on a partition's changelog."""

    def __init__(self, stored: Stored, partition: int) -> None:
        self.stored = stored
        self.partition = partition
        self.epoch = 0

    async def load(self) -> Sequence[Record]:
        self.stored.open.add(self)
        self.epoch = self.stored.epochs[self.partition] = (
            self.stored.epochs.get(self.partition, 0) + 1
        )
        return list(self.stored.records.get(self.partition, []))

    async def commit(self, states: Sequence[NewRecord], outputs: Sequence[NewRecord]) -> None:
        await asyncio.sleep(0)
        if self.stored.refuse or self.epoch != self.stored.epochs[self.partition]:
            raise OutdatedError("fenced")
        there = self.stored.records.setdefault(self.partition, [])
        there += [Record("log", self.partition, 0, 0, r.key, r.value, r.headers) for r in states]
        self.stored.outputs += outputs

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.stored.open.discard(self)


def join_stage(stored: Stored) -> KafkaStage[JoinState]:
    return KafkaStage(TrajectoryJoin(), stored)


START, END = events.record(events.started("r"), 0), events.record(events.succeeded("r"), 1)
PARTITION = START.partition


async def test_a_record_delivered_twice_counts_once() -> None:
    stored = Stored()
    stage = join_stage(stored)
    await stage.take([START, END, END])
    await stage.take([START, END])
    assert stored.topics == [TRAJECTORIES.name]
    assert stored.positions().contained == {START.topic: END.offset}
    assert Positions.decode(stored.positions().encode()) == stored.positions()


async def test_a_worker_goes_on_from_the_states_that_an_earlier_one_stored() -> None:
    stored = Stored()
    await join_stage(stored).take([START])
    await join_stage(stored).take([START, END])
    assert stored.topics == [TRAJECTORIES.name]


async def test_a_paused_worker_cannot_overwrite_what_a_later_one_stored() -> None:
    stored = Stored()
    paused, later = join_stage(stored), join_stage(stored)
    await paused.take([START])
    await later.take([START, END, events.record(events.reward("r", 0.5), 0)])
    newest = stored.latest("r")
    await paused.take([END])
    assert stored.latest("r") == newest
    await later.take([events.record(events.reward("r", 0.7), 1)])
    assert stored.positions().contained == {START.topic: 1, REWARDS.name: 1}


async def test_a_stage_that_is_closed_ends_its_batch_and_opens_nothing_more() -> None:
    stored = Stored()
    stage = join_stage(stored)
    await stage.hold({0, 1})
    batch = asyncio.create_task(stage.take([START, END]))
    opening = asyncio.create_task(stage.hold({0, 1, 2, PARTITION}))
    await asyncio.sleep(0)
    await stage.close()
    await batch
    await opening
    late = asyncio.create_task(stage.hold({0, 1}))
    await asyncio.sleep(0)
    assert (stored.topics, stored.open) == ([TRAJECTORIES.name], set())
    late.cancel()


async def test_a_stage_is_closed_though_its_batch_waits_for_kafka(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.runners.kafka.stage.LAST_BATCH_S", 0.01)
    stored = Stored()
    stage = join_stage(stored)
    stored.refuse = True
    batch = asyncio.create_task(stage.take([START, END]))
    await asyncio.sleep(0)
    await stage.close()
    assert not batch.done()
    batch.cancel()


async def test_what_a_crash_cut_off_is_made_anew_in_another_order(tmp_path: Path) -> None:
    """The join reads four topics; read again, their records may come in another order and make
    other outputs.
    """
    decision, reward = (
        events.record(events.decision("r", ["a", "b"], 0), 0),
        events.record(events.reward("r", 0.5), 0),
    )
    stored = Stored()
    crashed = join_stage(stored)
    await crashed.take([START])
    stored.epochs[PARTITION] += 1  # as if another worker had taken over before the next commit
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            stored.refuse = True
            await crashed.take([reward, decision, END])
    stored.refuse = False
    await join_stage(stored).take([START, END, decision, reward])
    router = KafkaStage(
        ExampleRouter(AdapterConfig(), JoinConfig().late_reward_window), examples := Stored()
    )
    await router.take([written(output, offset) for offset, output in enumerate(stored.outputs)])
    learner = Learning(BanditLearner("supervisor-policy"), ArtifactStore(tmp_path))
    stage = KafkaStage(learner, learned := Stored())
    await stage.take([written(output, offset) for offset, output in enumerate(examples.outputs)])
    value = learned.latest("supervisor-policy")
    assert value is not None
    assert learner.decode_state(value).state.examples == 1


def written(record: NewRecord, offset: int) -> Record:
    return Record(record.topic, PARTITION, offset, 0, record.key, record.value, record.headers)


async def test_undecodable_bytes_become_a_dead_letter_and_the_batch_goes_on() -> None:
    stored = Stored()
    poison = Record("everloop.rollouts", PARTITION, 1, 0, b"r", b"\xff\x00")
    end = events.record(events.rollout("r", RolloutState.SUCCEEDED), 2)
    await join_stage(stored).take([START, poison, end])
    assert stored.topics == [DEAD_LETTERS.name, TRAJECTORIES.name]


async def test_deadlines_are_kept_by_whoever_holds_the_partition() -> None:
    stored = Stored()
    reward = events.record(events.reward("nobody", 0.5), 4)
    await join_stage(stored).take([reward])
    successor = join_stage(stored)
    await successor.hold([])
    assert stored.topics == []
    await successor.hold([reward.partition])
    assert stored.topics == [DEAD_LETTERS.name]
    assert stored.latest("nobody", reward.partition) is None
    await successor.take([reward])
    assert stored.topics == [DEAD_LETTERS.name]


async def test_what_faust_passed_over_is_named() -> None:
    stage = join_stage(Stored())
    assert await stage.missing([START, END]) == {}
    await stage.take([START])
    assert await stage.missing([END]) == {}
    later = events.record(events.succeeded("r"), 7)
    assert await stage.missing([later]) == {(later.topic, PARTITION): 1}


class Reader:
    """What `Gaps` sees of a Faust app: a consumer that can be sent back."""

    def __init__(self) -> None:
        self.consumer = self
        self.sought: list[int] = []

    async def earliest_offsets(self, place: TP) -> dict[TP, int]:
        return {place: 0}

    async def seek(self, place: TP, offset: int) -> None:
        self.sought.append(offset)


def change(offset: int) -> Record:
    return events.record(events.started(f"r{offset}"), offset, key="r")


async def test_what_faust_passed_over_is_read_again_before_what_follows() -> None:
    stage, reader = join_stage(Stored()), Reader()
    gaps = Gaps(reader, Cluster("127.0.0.1:9"), stage)
    await stage.take(await gaps.admit([change(0)]))
    gaps.look_again()
    assert await gaps.admit([change(3), change(4)]) == []
    assert reader.sought == [1]
    assert await gaps.admit([change(5)]) == [], (
        "fetched before, it would make what is read again look old"
    )
    again = [change(offset) for offset in range(1, 6)]
    assert await gaps.admit(again) == again
    await stage.take(again)
    after_a_mark = [change(8)]
    assert await gaps.admit(after_a_mark) == after_a_mark
    assert reader.sought == [1]


async def test_a_partition_that_comes_back_is_compared_anew() -> None:
    stage, reader = join_stage(Stored()), Reader()
    gaps = Gaps(reader, Cluster("127.0.0.1:9"), stage)
    assert await gaps.admit([change(3)]) == []
    await stage.take([change(offset) for offset in range(9)])  # by another worker, meanwhile
    gaps.look_again()
    following = [change(9)]
    assert await gaps.admit(following) == following


@pytest.mark.parametrize("index", range(4))
def test_every_processor_has_its_faust_app(tmp_path: Path, index: int) -> None:
    store = ArtifactStore(tmp_path)
    processors: list[Processor] = [  # type: ignore[type-arg]
        TrajectoryJoin(),
        ExampleRouter(AdapterConfig(), JoinConfig().late_reward_window),
        Promotion(GateConfig(), store),
        Learning(BanditLearner("supervisor-policy"), store),
    ]
    cluster = Cluster("127.0.0.1:9,127.0.0.1:10", prefix="acme.")
    app = create_app(cluster, processors[index], tmp_path)
    app.finalize()
    assert app.conf.processing_guarantee.name == "AT_LEAST_ONCE"
    assert [url.port for url in app.conf.broker] == [9, 10]
    (function,) = app.agents.values()
    assert set(function.channel.topics) == {
        "acme." + topic.name for topic in processors[index].topics
    }
    assert len(app.tables) == 0
