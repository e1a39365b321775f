"""What the Kafka runner does with records counts once though Kafka delivers them at least once."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from learners.bandit import BanditLearner
from learners.gate import GateConfig
from schemas.rollouts import RolloutState
from schemas.topics import DEAD_LETTERS, REWARDS, TRAJECTORIES
from streams.adapter import AdapterConfig
from streams.artifacts import ArtifactStore
from streams.kafka.cluster import Cluster
from streams.kafka.faust_app import create_app
from streams.kafka.stage import KafkaStage
from streams.kafka.states import POSITIONS_KEY, OutdatedError, Positions, state_key
from streams.learning import Learning
from streams.processor import Processor
from streams.promotion import Promotion
from streams.records import NewRecord, Record
from streams.routing import LessonRouter
from streams.trajectories import JoinConfig, JoinState, TrajectoryJoin
from tests import events
from tests.streams.test_lessons import full_trajectory


class Written:
    """Takes records as Kafka would."""

    def __init__(self) -> None:
        self.records: list[NewRecord] = []

    @property
    def topics(self) -> list[str]:
        return [record.topic for record in self.records]

    async def __call__(self, records: Sequence[NewRecord]) -> None:
        self.records += records


class Stored:
    """Keeps changelogs as Kafka would: who loads shuts out who loaded before."""

    def __init__(self) -> None:
        self.records: dict[int, list[Record]] = {}
        self.epochs: dict[int, int] = {}

    def __call__(self, partition: int) -> "Writer":
        return Writer(self, partition)

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
        self.epoch = self.stored.epochs[self.partition] = self.stored.epochs.get(self.partition, 0) + 1
        return list(self.stored.records.get(self.partition, []))

    async def write(self, records: Sequence[NewRecord]) -> None:
        if self.epoch != self.stored.epochs[self.partition]:
            raise OutdatedError("fenced")
        there = self.stored.records.setdefault(self.partition, [])
        there += [Record("log", self.partition, 0, 0, r.key, r.value, r.headers) for r in records]

    async def close(self) -> None:
        pass


def join_stage(written: Written, stored: Stored, config: JoinConfig | None = None) -> KafkaStage[JoinState]:
    return KafkaStage(TrajectoryJoin(config), stored, written)


START, END = events.record(events.started("r"), 0), events.record(events.succeeded("r"), 1)
PARTITION = START.partition


async def test_a_record_delivered_twice_counts_once() -> None:
    written, stored = Written(), Stored()
    stage = join_stage(written, stored)
    await stage.take([START, END, END])
    await stage.take([START, END])
    assert written.topics == [TRAJECTORIES.name]
    assert stored.positions().contained == {START.topic: END.offset}
    assert Positions.decode(stored.positions().encode()) == stored.positions()


async def test_a_worker_goes_on_from_the_states_that_an_earlier_one_stored() -> None:
    written, stored = Written(), Stored()
    await join_stage(written, stored).take([START])
    await join_stage(written, stored).take([START, END])
    assert written.topics == [TRAJECTORIES.name]


async def test_a_paused_worker_cannot_overwrite_what_a_later_one_stored() -> None:
    written, stored = Written(), Stored()
    paused, later = join_stage(written, stored), join_stage(written, stored)
    await paused.take([START])
    await later.take([START, END, events.record(events.reward("r", 0.5), 0)])
    newest = stored.latest("r")
    await paused.take([END])
    assert stored.latest("r") == newest
    await later.take([events.record(events.reward("r", 0.7), 1)])
    assert stored.positions().contained == {START.topic: 1, REWARDS.name: 1}


async def test_an_output_written_again_after_a_crash_teaches_once() -> None:
    router = LessonRouter(AdapterConfig(), JoinConfig().late_reward_window)
    trajectory = events.record(full_trajectory())
    first, second = Written(), Written()
    await KafkaStage(router, Stored(), first).take([trajectory])
    await KafkaStage(router, Stored(), second).take([trajectory])  # the first died before its state was stored
    assert first.records == second.records != []
    learner = Learning(BanditLearner("supervisor-policy"), ArtifactStore(Path("/nowhere")))
    stored = Stored()
    stage = KafkaStage(learner, stored, Written())
    again = [
        Record(written.topic, PARTITION, offset, 0, written.key, written.value, written.headers)
        for offset, written in enumerate(first.records + second.records)
    ]
    await stage.take(again)
    value = stored.latest("supervisor-policy")
    assert value is not None
    assert learner.decode_state(value).state.lessons == 1


async def test_undecodable_bytes_become_a_dead_letter_and_the_batch_goes_on() -> None:
    written = Written()
    poison = Record("everloop.rollouts", PARTITION, 1, 0, b"r", b"\xff\x00")
    end = events.record(events.rollout("r", RolloutState.SUCCEEDED), 2)
    await join_stage(written, Stored()).take([START, poison, end])
    assert written.topics == [DEAD_LETTERS.name, TRAJECTORIES.name]


async def test_deadlines_are_kept_by_whoever_holds_the_partition() -> None:
    written, stored = Written(), Stored()
    reward = events.record(events.reward("nobody", 0.5), 4)
    await join_stage(written, stored).take([reward])
    successor = join_stage(written, stored)
    await successor.hold([])
    assert written.topics == []
    await successor.hold([reward.partition])
    assert written.topics == [DEAD_LETTERS.name]
    assert stored.latest("nobody", reward.partition) is None
    await successor.take([reward])
    assert written.topics == [DEAD_LETTERS.name]


async def test_what_faust_passed_over_is_named() -> None:
    stage = join_stage(Written(), Stored())
    assert await stage.missing([START, END]) == {}
    await stage.take([START])
    assert await stage.missing([END]) == {}
    later = events.record(events.succeeded("r"), 7)
    assert await stage.missing([later]) == {(later.topic, PARTITION): 1}


@pytest.mark.parametrize("index", range(4))
def test_every_processor_has_its_faust_app(tmp_path: Path, index: int) -> None:
    store = ArtifactStore(tmp_path)
    processors: list[Processor] = [  # type: ignore[type-arg]
        TrajectoryJoin(),
        LessonRouter(AdapterConfig(), JoinConfig().late_reward_window),
        Promotion(GateConfig(), store),
        Learning(BanditLearner("supervisor-policy"), store),
    ]
    cluster = Cluster("127.0.0.1:9,127.0.0.1:10", prefix="acme.")
    app = create_app(cluster, processors[index], tmp_path)
    app.finalize()
    assert app.conf.processing_guarantee.name == "AT_LEAST_ONCE"
    assert [url.port for url in app.conf.broker] == [9, 10]
    (function,) = app.agents.values()
    assert set(function.channel.topics) == {"acme." + topic.name for topic in processors[index].topics}
    assert len(app.tables) == 0
