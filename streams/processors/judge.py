"""The judge: gets a reward for each closed rollout from a grader. If the grader fails, the rollout
gets a dead letter and no made-up score.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from schemas.envelope import AnyEvent
from schemas.rewards import Reward, RewardEvent, RewardSource
from schemas.topics import REWARDS, TRAJECTORIES, Topic
from schemas.trajectories import Trajectory, TrajectoryEvent
from streams.processing.processor import Outcome, Processor, output_id
from streams.storage.records import Outgoing, Record


@dataclass(frozen=True)
class Grade:
    """A grade: the weighted value and its criteria, all in [0, 1]."""

    value: float
    criteria: dict[str, float] = field(default_factory=dict)
    comment: str = ""


class Grader(Protocol):
    """Grades trajectories.

    Attributes:
        name: grader and version, such as `measured@1`.
        source: in whose name it grades.
    """

    name: str
    source: RewardSource

    def grade(self, trajectory: Trajectory) -> Grade | None:
        """Return a grade; None if this grader does not grade such rollouts.

        Raises:
            TransientError: the grader could not be asked; worth another try.
            RejectedRecordError: this trajectory cannot be graded (what the grader said was no
                grade, say).
        """
        ...


class Judge(Processor[None]):
    """Grades every rollout that succeeded, once: at the first emission of its trajectory.

    A rollout that failed gets no reward. What broke may have been a server, and a made-up 0 would
    be learned.
    """

    name = "judge"
    topics: ClassVar[tuple[Topic, ...]] = (TRAJECTORIES,)
    # A grade may take seconds, and a crash repeats the whole batch.
    batch: ClassVar[int] = 16
    max_attempts: ClassVar[int] = 4

    def __init__(self, grader: Grader) -> None:
        self.grader = grader

    def handle(self, state: None, event: AnyEvent, source: Record) -> Outcome[None]:  # noqa: ARG002
        """Grade a trajectory."""
        assert isinstance(event, TrajectoryEvent)  # noqa: S101 - the topic holds nothing else
        # The judge's own reward makes the next revision. To grade that would go on for ever.
        if event.payload.revision > 1 or event.payload.rollout.state != "succeeded":
            return Outcome()
        grade = self.grader.grade(event.payload)
        if grade is None:
            return Outcome()
        reward = RewardEvent(
            event_id=output_id(self, source, event.time),
            time=event.time,
            tenant=event.tenant,
            rollout_id=event.rollout_id,
            trace_id=event.trace_id,
            payload=Reward(
                value=grade.value,
                criteria=grade.criteria,
                source=self.grader.source,
                grader=self.grader.name,
                comment=grade.comment,
            ),
        )
        return Outcome((Outgoing.of(REWARDS, event.rollout_key, reward),))

    def encode_state(self, state: None) -> bytes:  # noqa: ARG002
        """The judge remembers nothing."""
        return b"null"

    def decode_state(self, value: bytes) -> None:  # noqa: ARG002
        """The judge remembers nothing."""
        return
