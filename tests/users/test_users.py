"""Agents as users write them get the better option, and nobody marks anything by hand."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future

import pytest

from tests.users.program import Curve
from tests.users.workplace import users_at_work

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
Users = Mapping[str, Future[Curve]]


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Users]:
    """What becomes of each user; all work side by side."""
    with users_at_work(tmp_path_factory.mktemp("users")) as at_work:
        yield at_work


def curve_of(users: Users, agent: str) -> Curve:
    curve = users[agent].result()
    print(f"\n{agent}: {curve}")
    assert curve.needed is not None, f"{agent}: {curve}"
    return curve


def test_a_plain_client_gets_the_better_model(users: Users) -> None:
    curve_of(users, "plain")


def test_a_graph_of_six_turns_that_names_no_rollout_gets_the_better_model(users: Users) -> None:
    curve_of(users, "graph")


def test_ten_steps_a_rollout_get_the_right_tools(users: Users) -> None:
    curve_of(users, "tools")


def test_rewards_that_come_long_after_their_rollouts_choose_the_better_model(users: Users) -> None:
    curve_of(users, "late")


def test_chinese_complaints_get_the_best_chinese_answer(users: Users) -> None:
    curve_of(users, "chinese")


def test_an_agent_that_dies_on_hard_tasks_gets_the_model_that_solves_them(users: Users) -> None:
    assert curve_of(users, "crash").deaths > 0
