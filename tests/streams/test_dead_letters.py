"""A dead letter goes back as it was, and counts once its reason is gone."""

from schemas.dead_letters import DeadLetterEvent
from schemas.topics import DEAD_LETTERS, REWARDS, TRAJECTORIES
from schemas.trajectories import Trajectory, TrajectoryEvent
from streams.processing.dead_letters import dead_letters, put_back
from streams.processing.processor import dead_letter
from streams.processors.judge import Grade, Judge
from streams.processors.trajectories import TrajectoryJoin
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.errors import RejectedRecordError
from streams.storage.log import read_all
from streams.storage.records import NewRecord, Record
from tests import events
from tests.streams.test_judging import Fixed


class Broken(Fixed):
    def grade(self, trajectory: Trajectory) -> Grade | None:
        raise RejectedRecordError("the judge is out of order")


def test_a_trajectory_that_could_not_be_judged_is_judged_when_it_is_put_back(
    log: EmbeddedLog,
) -> None:
    log.append([events.new_record(events.started("r")), events.new_record(events.succeeded("r"))])
    join = EmbeddedRunner(log, TrajectoryJoin(), "t")
    broken, mended = (
        EmbeddedRunner(log, Judge(Broken()), "t"),
        EmbeddedRunner(log, Judge(Fixed()), "t2"),
    )
    while join.run_once() + broken.run_once():
        pass
    broken.close()
    assert list(read_all(log, REWARDS.name)) == []
    assert put_back(log, dead_letters(log)) == 1
    while join.run_once() + mended.run_once():
        pass
    assert len(list(read_all(log, REWARDS.name))) == 1
    last = max(read_all(log, TRAJECTORIES.name), key=lambda record: record.sequence)
    assert TrajectoryEvent.model_validate_json(last.value or b"").payload.reward == 0.75


def test_bytes_and_headers_go_back_as_they_were(log: EmbeddedLog) -> None:
    headers = (("origin", b"\x00\xff"),)
    record = Record(REWARDS.name, 3, 7, 0, b"\xfe", b"\xff{", headers)
    letter = dead_letter("test", record, ValueError("no"), 1).event
    assert isinstance(letter, DeadLetterEvent)
    put_back(log, [(5, letter)])
    (back,) = read_all(log, REWARDS.name)
    assert (back.key, back.value) == (b"\xfe", b"\xff{")
    assert back.headers == (("origin", b"\x00\xff"), ("replayed-from", b"everloop.dead-letters@5"))


def test_a_dead_letter_that_cannot_be_read_hides_no_other(log: EmbeddedLog) -> None:
    readable = dead_letter("test", Record(REWARDS.name, 3, 7, 0, b"k", b"{"), ValueError("no"), 1)
    unreadable = NewRecord(DEAD_LETTERS.name, b"k", b"nonsense")
    log.append([unreadable, NewRecord(DEAD_LETTERS.name, b"k", readable.value), unreadable])
    assert [number for number, _ in dead_letters(log)] == [1]
