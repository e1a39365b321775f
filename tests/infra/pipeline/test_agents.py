"""A pipeline runs any agent: a function or a command."""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from everloop_client import AsyncClient
from everloop_client import Rollout as BlockingRollout
from everloop_client.asynchronous import AsyncRollout

from infra.pipeline.agents import CommandAgent, PlannedRollout, configured_agent, run_rollouts
from infra.pipeline.settings import PipelineSettings
from infra.pipeline.tasks import PipelineTask, load_tasks
from infra.runtime.errors import ConfigError
from schemas.decisions import DecisionEvent
from schemas.rewards import RewardEvent
from schemas.rollouts import Rollout, RolloutEvent, RolloutState
from schemas.spans import SpanEvent
from schemas.topics import DECISIONS, REWARDS, ROLLOUTS, SPANS
from tests.infra.conftest import Gateway

HERE = __name__
TASK = PipelineTask(id="t1", input={"question": "2 + 2"}, expected="4")


async def echo(task: Mapping[str, Any], rollout: AsyncRollout, *, prefix: str = "") -> Any:
    return {"said": prefix + task["input"]["question"], "saw": sorted(task)}


def shout(task: Mapping[str, Any], rollout: AsyncRollout) -> Any:
    return task["input"]["question"].upper()


def fail(task: Mapping[str, Any], rollout: AsyncRollout) -> Any:
    raise ValueError("no idea")


def choose(task: Mapping[str, Any], rollout: BlockingRollout) -> None:
    chosen = rollout.decide("supervisor-policy", "", ["yes", "no"])
    rollout.reward(0.25, comment=str(chosen.candidate))
    rollout.output, rollout.turns = {"chosen": chosen.candidate}, 3


def not_json(task: Mapping[str, Any], rollout: BlockingRollout) -> Any:
    return object()


def one_argument(task: Mapping[str, Any]) -> None: ...


def ended(gateway: Gateway, settings: PipelineSettings) -> Rollout:
    """Run one attempt and return how its rollout ended."""

    async def run() -> None:
        async with AsyncClient(gateway.url) as client:
            planned = PlannedRollout("r1", TASK, "test", "g")
            await run_rollouts(configured_agent(settings), client, settings, [planned])

    asyncio.run(run())
    *_, last = gateway.events(ROLLOUTS, RolloutEvent)
    payload: Rollout = last.payload
    return payload


def test_a_coroutine_gets_the_task_without_what_is_expected(gateway: Gateway) -> None:
    settings = PipelineSettings(agent=f"{HERE}:echo", options={"prefix": "> "})
    rollout = ended(gateway, settings)
    assert rollout.state is RolloutState.SUCCEEDED
    assert rollout.output == {"said": "> 2 + 2", "saw": ["id", "input"]}


def test_a_function_that_is_no_coroutine_runs_too(gateway: Gateway) -> None:
    assert ended(gateway, PipelineSettings(agent=f"{HERE}:shout")).output == "2 + 2"


def test_a_function_that_is_no_coroutine_decides_and_rewards(gateway: Gateway) -> None:
    rollout = ended(gateway, PipelineSettings(agent=f"{HERE}:choose"))
    (decision,) = gateway.events(DECISIONS, DecisionEvent)
    (reward,) = gateway.events(REWARDS, RewardEvent)
    assert rollout.turns == 3
    assert rollout.output == {"chosen": reward.payload.comment}
    assert decision.rollout_id == reward.rollout_id == "r1"
    assert reward.payload.value == 0.25


def test_an_output_that_is_no_json_ends_the_rollout_as_failed(gateway: Gateway) -> None:
    rollout = ended(gateway, PipelineSettings(agent=f"{HERE}:not_json"))
    assert rollout.state is RolloutState.FAILED
    assert rollout.error is not None
    assert "its output cannot be recorded" in rollout.error


def test_a_gateway_that_is_not_there_is_one_line() -> None:
    settings = PipelineSettings(agent=f"{HERE}:echo")

    async def run() -> None:
        async with AsyncClient("http://127.0.0.1:9") as client:
            planned = PlannedRollout("r1", TASK, "test", "g")
            await run_rollouts(configured_agent(settings), client, settings, [planned])

    with pytest.raises(ConfigError, match=r"pipeline: .*no answer from the gateway"):
        asyncio.run(run())


def test_an_agent_that_fails_ends_its_rollout_as_failed(gateway: Gateway) -> None:
    rollout = ended(gateway, PipelineSettings(agent=f"{HERE}:fail"))
    assert (rollout.state, rollout.error) == (RolloutState.FAILED, "ValueError: no idea")


PROGRAM = """
import json, sys, urllib.request, os
task = json.load(sys.stdin)
body = {"model": "tiny", "messages": [{"role": "user", "content": task["input"]["question"]}]}
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps(body).encode(),
    {"content-type": "application/json", "authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
)
answer = json.load(urllib.request.urlopen(request))
print(json.dumps({"rollout": os.environ["EVERLOOP_ROLLOUT_ID"], "id": task["id"]}))
"""


def test_a_command_calls_the_gateway_and_prints_its_output(
    gateway: Gateway, tmp_path: Path
) -> None:
    program = tmp_path / "agent.py"
    program.write_text(PROGRAM)
    rollout = ended(gateway, PipelineSettings(command=(sys.executable, str(program))))
    assert rollout.output == {"rollout": "r1", "id": "t1"}
    (span,) = gateway.events(SPANS, SpanEvent)
    assert span.rollout_id == "r1", "its model calls belong to the rollout"


def test_a_command_that_fails_says_why(gateway: Gateway) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('out of ideas')")
    rollout = ended(gateway, PipelineSettings(command=command))
    assert rollout.state is RolloutState.FAILED
    assert rollout.error is not None
    assert "ended with 1: out of ideas" in rollout.error


def test_an_agent_that_takes_too_long_ends_its_rollout_as_failed_and_its_command_is_killed(
    gateway: Gateway, tmp_path: Path
) -> None:
    program = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
    command = ("sh", "-c", f'cd {tmp_path} && exec {sys.executable} -c "{program}"')
    rollout = ended(gateway, PipelineSettings(command=command, rollout_s=2.0))
    assert rollout.state is RolloutState.FAILED
    assert rollout.error == "it took longer than pipeline.rollout_s, 2 s"
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_what_a_command_prints_that_is_no_json_is_text(gateway: Gateway) -> None:
    command = (sys.executable, "-c", "print('plain words')")
    assert ended(gateway, PipelineSettings(command=command)).output == "plain words\n"
    assert isinstance(configured_agent(PipelineSettings(command=command)), CommandAgent)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (PipelineSettings(), "there is no agent"),
        (PipelineSettings(command=("no-such-program",)), "there is no program 'no-such-program'"),
        (PipelineSettings(agent="nowhere:run"), "pipeline.agent: nowhere:run"),
        (PipelineSettings(agent=f"{HERE}:one_argument"), "must take a task and a rollout"),
        (PipelineSettings(agent=f"{HERE}:shout", options={"x": 1}), "unexpected keyword"),
    ],
)
def test_an_agent_that_cannot_be_called_is_one_line(settings: PipelineSettings, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refusal:
        configured_agent(settings)
    assert "\n" not in str(refusal.value)


def test_tasks_are_lines_of_json_and_a_fifth_is_held_out(tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"t{number}", "input": number}) for number in range(500)]
    lines.append('{"id": "mine", "input": 1, "split": "test"}')
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    *tasks, mine = load_tasks(str(tmp_path / "tasks.jsonl"))
    assert 60 < sum(task.held_out for task in tasks) < 140
    assert mine.held_out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no task"),
        ("{", "task 1: not JSON"),
        ('{"input": 1}', "task 1: id"),
        ('{"id": "a"}\n{"id": "a"}', "more than one task has the id 'a'"),
        ('{"id": "a", "goal": 1}', "task 1: goal"),
    ],
)
def test_tasks_that_cannot_be_used_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "tasks.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_tasks(str(tmp_path / "tasks.jsonl"))


def test_where_no_tasks_are_named_the_setting_is() -> None:
    with pytest.raises(ConfigError, match=r"pipeline\.tasks"):
        load_tasks(None)
    with pytest.raises(ConfigError, match="neither a file nor"):
        load_tasks("nowhere.jsonl")
