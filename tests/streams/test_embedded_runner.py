"""The embedded runner processes each record exactly once, whatever happens in between."""

import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest

from schemas.clock import now
from schemas.dead_letters import DeadLetterEvent
from schemas.envelope import AnyEvent
from schemas.rewards import RewardEvent
from schemas.serialization import decode
from schemas.topics import DEAD_LETTERS, DECISIONS, REWARDS, TRAJECTORIES, Topic
from streams.processing.batch import batch_outcome
from streams.processing.processor import Outcome, Processor, output_id
from streams.runners.embedded.runner import EmbeddedRunner
from streams.runners.embedded.worker import Worker
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.errors import RejectedRecordError, TransientError
from streams.storage.log import read_all
from streams.storage.records import NewRecord, Outgoing, Record
from tests import events


class Doubler(Processor[list[float]]):
    """Remembers the rewards of a rollout, in place, and answers each with another on the decisions'
    neighbour topic.
    """

    name = "doubler"
    topics: ClassVar[tuple[Topic, ...]] = (REWARDS,)
    max_attempts: ClassVar[int] = 3

    def __init__(self) -> None:
        self.attempts: Counter[float] = Counter()

    def handle(
        self, state: list[float] | None, event: AnyEvent, source: Record
    ) -> Outcome[list[float]]:
        assert isinstance(event, RewardEvent)
        value = event.payload.value
        self.attempts[value] += 1
        if value == 0.125 and self.attempts[value] < 3:
            raise TransientError("not yet")
        state = state if state is not None else []
        state.append(value)
        if value == 0.25:
            raise RejectedRecordError("a quarter is too little")
        if value == 0.0625:
            raise ZeroDivisionError("a defect")
        echo = event.model_copy(update={"event_id": output_id(self, source, event.time)})
        return Outcome((Outgoing.of(TRAJECTORIES, event.rollout_id, echo),), state)

    def encode_state(self, state: list[float]) -> bytes:
        return orjson.dumps(state)

    def decode_state(self, value: bytes) -> list[float]:
        return list(orjson.loads(value))


def rewards(values: list[float], rollout_id: str = "r") -> list[NewRecord]:
    return [events.new_record(events.reward(rollout_id, value)) for value in values]


def run(log: EmbeddedLog, processor: Processor[Any], member: str = "one") -> None:
    runner = EmbeddedRunner(log, processor, member)
    while runner.run_once():
        pass
    runner.close()


def outputs(log: EmbeddedLog) -> list[float]:
    return [
        decode(RewardEvent, record.value).payload.value
        for record in read_all(log, TRAJECTORIES.name)
    ]


def state(log: EmbeddedLog, group: str = "everloop.doubler") -> list[float]:
    rows = log.connection.execute(
        "SELECT value FROM states WHERE consumer_group = ? ORDER BY key", (group,)
    ).fetchall()
    return [value for (row,) in rows for value in orjson.loads(row)]


def letters(log: EmbeddedLog) -> list[Any]:
    return [
        decode(DeadLetterEvent, record.value).payload for record in read_all(log, DEAD_LETTERS.name)
    ]


def test_outputs_and_state_follow_the_records(log: EmbeddedLog) -> None:
    log.append(rewards([0.5, 1.0]))
    run(log, Doubler())
    log.append(rewards([0.75]))
    run(log, Doubler())
    assert outputs(log) == state(log) == [0.5, 1.0, 0.75]
    assert not letters(log)


def test_a_poison_record_is_set_aside_whole_and_the_others_count_once(log: EmbeddedLog) -> None:
    log.append(rewards([0.5, 0.25, 1.0, 0.0625, 0.75]))
    log.append([NewRecord(REWARDS.name, b"r", b"\xffnot json", (("origin", b"\x00test"),))])
    run(log, Doubler())
    assert outputs(log) == state(log) == [0.5, 1.0, 0.75]
    rejected, defect, undecodable = letters(log)
    assert (rejected.error_type, rejected.error_message) == (
        "RejectedRecordError",
        "a quarter is too little",
    )
    assert defect.error_type == "ZeroDivisionError"
    assert (undecodable.value, undecodable.key) == (b"\xffnot json", b"r")
    assert [(header.name, header.value) for header in undecodable.headers] == [
        ("origin", b"\x00test")
    ]
    assert {letter.processor for letter in letters(log)} == {"doubler"}


def test_what_may_pass_is_tried_again(log: EmbeddedLog) -> None:
    log.append(rewards([0.125]))
    processor = Doubler()
    run(log, processor)
    assert processor.attempts[0.125] == 3
    assert outputs(log) == [0.125]


def test_what_never_passes_becomes_a_dead_letter_with_its_attempts(log: EmbeddedLog) -> None:
    class Unreachable(Doubler):
        def handle(
            self, state: list[float] | None, event: AnyEvent, source: Record
        ) -> Outcome[list[float]]:
            raise TransientError("the server is gone")

    log.append(rewards([0.5]))
    run(log, Unreachable())
    (letter,) = letters(log)
    assert (letter.error_type, letter.attempts) == ("TransientError", Unreachable.max_attempts)


def test_a_crash_before_the_commit_repeats_nothing(
    log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(rewards([0.5, 1.0]))
    with monkeypatch.context() as patched:
        patched.setattr(EmbeddedLog, "commit_within", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(log, Doubler())
    assert outputs(log) == state(log) == []
    run(log, Doubler(), "one")
    assert outputs(log) == state(log) == [0.5, 1.0]


def test_two_workers_share_the_partitions_and_no_record_counts_twice(tmp_path: Path) -> None:
    with EmbeddedLog(tmp_path / "log.db") as log:
        with EmbeddedLog(tmp_path / "log.db") as other:
            first = EmbeddedRunner(log, Doubler(), "first", batch=7, lease_s=0.3)
            second = EmbeddedRunner(other, Doubler(), "second", batch=7, lease_s=0.3)
            for _ in range(
                3
            ):  # the first takes all, the second asks for its share, the first gives it
                first.run_once()
                second.run_once()
                time.sleep(0.11)
            for number in range(200):
                log.append(rewards([0.5], f"rollout-{number}"))
            by_first = by_second = 0
            deadline = time.monotonic() + 10
            while by_first + by_second < 200 and time.monotonic() < deadline:
                by_first += first.run_once()
                by_second += second.run_once()
            first.close()
            second.close()
        assert (len(outputs(log)), by_first + by_second) == (200, 200)
        assert by_first > 0
        assert by_second > 0


def test_a_dead_workers_partitions_are_taken_over_and_its_late_commit_is_refused(
    tmp_path: Path,
) -> None:
    with EmbeddedLog(tmp_path / "log.db") as log, EmbeddedLog(tmp_path / "log.db") as other:
        slow = EmbeddedRunner(log, Doubler(), "slow", lease_s=0.2)
        slow.run_once()
        log.append(rewards([0.5, 1.0]))
        records = log.fetch({(REWARDS.name, p): 0 for p in range(8)}, 10)
        batch = batch_outcome(slow.processor, slow._states, records, [], now())
        time.sleep(0.25)
        run(other, Doubler(), "heir")
        assert outputs(log) == [0.5, 1.0]
        with pytest.raises(Exception, match="lost partitions"):
            slow._commit(batch, {})
        assert outputs(log) == [0.5, 1.0]


def test_a_deadline_reaches_the_processor_once(log: EmbeddedLog) -> None:
    class Alarm(Doubler):
        name = "alarm"

        def handle(
            self, state: list[float] | None, event: AnyEvent, source: Record
        ) -> Outcome[list[float]]:
            return Outcome(state=[1.0], deadline=now() - timedelta(seconds=1))

        def expire(self, state: list[float], key: str, now: datetime) -> Outcome[list[float]]:
            alarm = events.reward(key, 0.5)
            return Outcome((Outgoing.of(TRAJECTORIES, key, alarm),))

    log.append(rewards([0.5]))
    run(log, Alarm())
    assert outputs(log) == [0.5]
    assert state(log, "everloop.alarm") == []


def test_topics_with_different_partitions_cannot_be_joined(log: EmbeddedLog) -> None:
    class Mixed(Doubler):
        topics: ClassVar[tuple[Topic, ...]] = (DECISIONS, DEAD_LETTERS)

    with pytest.raises(ValueError, match="different numbers of partitions"):
        EmbeddedRunner(log, Mixed(), "one")


def test_a_worker_whose_thread_fails_stops_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddedRunner, "run_once", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Worker(tmp_path / "log.db", [Doubler()], "one").run()


class FailsAtDeadlines(Processor[bytes]):
    """Has a deadline for each rollout, and cannot process those of `bad`."""

    name = "fails-at-deadlines"
    topics: ClassVar[tuple[Topic, ...]] = (REWARDS,)

    def handle(self, state: bytes | None, event: AnyEvent, source: Record) -> Outcome[bytes]:
        return Outcome(state=b"kept", deadline=now() - timedelta(seconds=1))

    def expire(self, state: bytes, key: str, now: datetime) -> Outcome[bytes]:
        if key == "bad":
            raise RejectedRecordError("this deadline can never be processed")
        return Outcome()

    def encode_state(self, state: bytes) -> bytes:
        return state

    def decode_state(self, value: bytes) -> bytes:
        return value


def test_a_deadline_that_fails_is_put_off_and_the_others_pass(log: EmbeddedLog) -> None:
    log.append([events.new_record(events.reward(name, 0.5)) for name in ("good", "bad", "fine")])
    for member in ("first", "after a restart"):
        runner = EmbeddedRunner(log, FailsAtDeadlines(), member)
        while runner.run_once():
            pass
        runner.close()
    group = FailsAtDeadlines().group
    assert [log.state(group, name) for name in ("good", "bad", "fine")] == [None, b"kept", None]
