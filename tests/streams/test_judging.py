"""The judge grades each success once; a judge that fails gives no reward."""

import pytest

from schemas.rewards import Reward, RewardEvent, RewardSource
from schemas.rollouts import RolloutState
from schemas.serialization import decode
from schemas.topics import DEAD_LETTERS, REWARDS
from schemas.trajectories import Trajectory, TrajectoryEvent
from streams.processors.judge import Grade, Grader, Judge
from streams.processors.trajectories import TrajectoryJoin
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.errors import RejectedRecordError
from streams.storage.log import read_all
from tests import events


class Fixed:
    name = "fixed@1"
    source = RewardSource.JUDGE

    def grade(self, trajectory: Trajectory) -> Grade | None:
        if trajectory.rollout.output == "unreadable":
            raise RejectedRecordError("the judge gave no usable scores")
        return (
            None
            if trajectory.rollout.output == "not mine"
            else Grade(0.75, {"clarity": 0.5}, "well said")
        )


def graded(
    log: EmbeddedLog, output: str, state: RolloutState = RolloutState.SUCCEEDED
) -> list[Reward]:
    """Run join and judge over one rollout; return its rewards."""
    grader: Grader = Fixed()
    log.append(
        [
            events.new_record(events.started("r")),
            events.new_record(events.rollout("r", state, output=output)),
        ]
    )
    join, judge = (
        EmbeddedRunner(log, TrajectoryJoin(), "t"),
        EmbeddedRunner(log, Judge(grader), "t"),
    )
    while join.run_once() + judge.run_once():
        pass
    return [decode(RewardEvent, record.value).payload for record in read_all(log, REWARDS.name)]


def test_a_success_is_graded_once_though_its_trajectory_comes_again(log: EmbeddedLog) -> None:
    (reward,) = graded(log, "fine")
    assert reward.value == 0.75
    assert reward.criteria == {"clarity": 0.5}
    assert (reward.source, reward.grader) == (RewardSource.JUDGE, "fixed@1")
    last = max(read_all(log, "everloop.trajectories"), key=lambda record: record.offset)
    assert decode(TrajectoryEvent, last.value).payload.reward == 0.75


@pytest.mark.parametrize(
    ("output", "state", "letters"),
    [
        ("unreadable", RolloutState.SUCCEEDED, 1),
        ("not mine", RolloutState.SUCCEEDED, 0),
        ("x", RolloutState.FAILED, 0),
    ],
)
def test_without_a_grade_there_is_no_reward(
    log: EmbeddedLog, output: str, state: RolloutState, letters: int
) -> None:
    assert graded(log, output, state) == []
    assert len(list(read_all(log, DEAD_LETTERS.name))) == letters
