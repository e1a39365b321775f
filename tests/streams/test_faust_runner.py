"""The Faust runner starts, and what it does with a record counts once though Kafka delivers it at least once."""

from pathlib import Path

import pytest

from learners.bandit import BanditLearner
from learners.gate import GateConfig
from schemas.clock import now
from schemas.rollouts import RolloutState
from schemas.topics import DEAD_LETTERS, TRAJECTORIES
from streams.adapter import AdapterConfig
from streams.artifacts import ArtifactStore
from streams.kafka.faust_app import create_app
from streams.kafka.stage import KafkaStage
from streams.kafka.stored_state import StoredState
from streams.learning import Learning
from streams.processor import Processor
from streams.promotion import Promotion
from streams.records import NewRecord, Record
from streams.routing import LessonRouter
from streams.trajectories import JoinConfig, JoinState, TrajectoryJoin
from tests import events
from tests.streams.test_lessons import full_trajectory


class Sent:
    """Takes records as Kafka would; refuses as many as it is told to."""

    def __init__(self, refuse: int = 0) -> None:
        self.records: list[NewRecord] = []
        self.refuse = refuse

    async def __call__(self, record: NewRecord) -> None:
        if self.refuse:
            self.refuse -= 1
            raise ConnectionError("no broker")
        self.records.append(record)


class Kept(dict[str, bytes]):
    """Keeps states as a Faust table would; refuses as many as it is told to."""

    refuse = 0

    async def store(self, key: str, value: bytes, partition: int) -> None:
        if self.refuse:
            self.refuse -= 1
            raise ConnectionError("no broker")
        self[key] = value


def stage(sent: Sent, config: JoinConfig | None = None) -> tuple[KafkaStage[JoinState], Kept]:
    states = Kept()
    return KafkaStage(TrajectoryJoin(config), states, sent), states


async def test_a_record_delivered_twice_counts_once() -> None:
    sent = Sent()
    runner, table = stage(sent)
    start, end = events.record(events.started("r"), 0), events.record(events.succeeded("r"), 1)
    for record in (start, end, end, start):
        await runner.take(record)
    assert [record.topic for record in sent.records] == [TRAJECTORIES.name]
    stored = StoredState.decode(table["r"])
    assert stored.contains(end)
    assert StoredState.decode(stored.encode()) == stored


async def test_an_output_that_kafka_refuses_is_sent_until_it_is_taken() -> None:
    sent = Sent(refuse=2)
    runner, _ = stage(sent)
    await runner.take(events.record(events.started("r"), 0))
    await runner.take(events.record(events.succeeded("r"), 1))
    assert len(sent.records) == 1


async def test_a_state_that_kafka_refuses_is_stored_until_it_is_taken() -> None:
    sent = Sent()
    runner, states = stage(sent)
    states.refuse = 2
    await runner.take(events.record(events.started("r"), 0))
    assert "r" in states


async def test_an_output_written_again_after_a_crash_teaches_once() -> None:
    first, states = Sent(), Kept()
    router = LessonRouter(AdapterConfig(), JoinConfig().late_reward_window)
    trajectory = events.record(full_trajectory())
    await KafkaStage(router, states, first).take(trajectory)
    second = Sent()
    await KafkaStage(router, Kept(), second).take(trajectory)  # it died before its state was stored
    assert first.records == second.records != []
    learner = Learning(BanditLearner("supervisor-policy"), ArtifactStore(Path("/nowhere")))
    lessons = Kept()
    runner = KafkaStage(learner, lessons, Sent())
    for offset, written in enumerate(first.records + second.records):
        await runner.take(Record(written.topic, 0, offset, 0, written.key, written.value, written.headers))
    stored = StoredState.decode(lessons["supervisor-policy"])
    assert stored.value is not None
    assert learner.decode_state(stored.value).state.lessons == 1


async def test_undecodable_bytes_become_a_dead_letter_and_processing_goes_on() -> None:
    sent = Sent()
    runner, _ = stage(sent)
    await runner.take(events.record(events.started("r"), 0))
    poison = Record("everloop.rollouts", 3, 1, 0, b"r", b"\xff\x00")
    await runner.take(poison)
    await runner.take(events.record(events.rollout("r", RolloutState.SUCCEEDED), 1))
    assert [record.topic for record in sent.records] == [DEAD_LETTERS.name, TRAJECTORIES.name]


async def test_deadlines_are_kept() -> None:
    sent = Sent()
    runner, table = stage(sent)
    await runner.take(events.record(events.reward("nobody", 0.5), 4))
    assert StoredState.decode(table["nobody"]).deadline is not None
    await runner.expire_due()
    assert [record.topic for record in sent.records] == [DEAD_LETTERS.name]
    after = StoredState.decode(table["nobody"])
    assert (after.value, after.deadline) == (None, None)
    assert after.contains(events.record(events.reward("nobody", 0.5), 4))
    assert now() > events.START


@pytest.mark.parametrize("index", range(4))
def test_every_processor_has_its_faust_app(tmp_path: Path, index: int) -> None:
    store = ArtifactStore(tmp_path)
    processors: list[Processor] = [  # type: ignore[type-arg]
        TrajectoryJoin(),
        LessonRouter(AdapterConfig(), JoinConfig().late_reward_window),
        Promotion(GateConfig(), store),
        Learning(BanditLearner("supervisor-policy"), store),
    ]
    app = create_app("kafka://127.0.0.1:9,127.0.0.1:10", processors[index], tmp_path)
    app.finalize()
    assert app.conf.processing_guarantee.name == "AT_LEAST_ONCE"
    assert [url.port for url in app.conf.broker] == [9, 10]
    (function,) = app.agents.values()
    assert set(function.channel.topics) == {topic.name for topic in processors[index].topics}
    assert len(app.tables) == 1
