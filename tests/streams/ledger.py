"""A processor for tests, and a worker that carries it: `python -m tests.streams.ledger LOG FOLDER
LEASE_S`.
"""

import os
import signal
import sys
from pathlib import Path
from typing import ClassVar

import orjson

from schemas.envelope import AnyEvent
from schemas.rewards import RewardEvent
from schemas.topics import REWARDS, ROLLOUTS, TRAJECTORIES, Topic
from streams.processing.processor import Outcome, Processor, output_id
from streams.runners.embedded.worker import Worker
from streams.runners.kafka.faust_app import run_app
from streams.storage.errors import RejectedRecordError
from streams.storage.kafka.cluster import Cluster
from streams.storage.records import Outgoing, Record

REJECTED, DEFECT = 0.25, 0.0625


class Ledger(Processor[list[float]]):
    """Keeps the rewards of each key in order, and answers each with their number.

    Rewards of 0.25 are rejected, and those of 0.0625 meet a defect, after the state was changed.
    """

    name = "ledger"
    topics: ClassVar[tuple[Topic, ...]] = (REWARDS, ROLLOUTS)

    def handle(
        self, state: list[float] | None, event: AnyEvent, source: Record
    ) -> Outcome[list[float]]:
        state = state if state is not None else []
        if not isinstance(event, RewardEvent):
            return Outcome(state=state)
        state.append(event.payload.value)
        if event.payload.value == REJECTED:
            raise RejectedRecordError("a quarter is too little")
        if event.payload.value == DEFECT:
            raise ZeroDivisionError("a defect")
        payload = event.payload.model_copy(update={"grader": str(len(state)), "feedback": None})
        answer = event.model_copy(
            update={"event_id": output_id(self, source, event.time), "payload": payload}
        )
        return Outcome((Outgoing.of(TRAJECTORIES, event.rollout_id, answer),), state)

    def encode_state(self, state: list[float]) -> bytes:
        return orjson.dumps(state)

    def decode_state(self, value: bytes) -> list[float]:
        return list(orjson.loads(value))


def work(log: str, folder: Path, lease_s: float) -> None:
    """Carry the ledger until SIGTERM."""
    if log.startswith("kafka://"):
        run_app(Cluster(log.removeprefix("kafka://")), [Ledger()], folder, lease_s)
        return
    worker = Worker(
        Path(log.removeprefix("sqlite:///")), [Ledger()], str(os.getpid()), lease_s=lease_s
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
