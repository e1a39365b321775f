"""Six users at one installation: `everloop up` with two models, and what policies are to learn."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import serving
from tests.e2e.installation import COMMAND, environment, everloop_json
from tests.users.models import model_server
from tests.users.program import Curve, Program, rollouts_until_better
from tests.users.tickets import complaints, items, questions, steps, sums
from tests.waiting import eventually

MOST = 3000
"""Rollouts after which a user gives up."""

USERS = {
    "plain": sums,
    "graph": questions,
    "tools": steps,
    "late": sums,
    "chinese": complaints,
    "crash": items,
}
"""The agents, with their tickets."""

CHOOSERS = ("assistant", "mechanic", "clerk", "describer")
"""Models that are a choice of two."""

MODELS = """
[models.quick_llm]
base_url = "{url}/v1"
model = "quick"

[models.careful_llm]
base_url = "{url}/v1"
model = "careful"

[bandit]
targets = ["tool-policy", "kefu-policy"]
"""
CHOICE = """
[choices.{name}]
policy = "{name}-router"

[[choices.{name}.options]]
name = "quick"
model = "quick_llm"

[[choices.{name}.options]]
name = "careful"
model = "careful_llm"
"""


@contextmanager
def installation(folder: Path) -> Iterator[str]:
    """Yield the address of an installation that has only its models and policies configured."""
    with serving(model_server()) as url:
        choices = [CHOICE.format(name=name) for name in CHOOSERS]
        config = folder / "everloop.toml"
        config.write_text(MODELS.format(url=url) + "".join(choices))
        os.environ["EVERLOOP_CONFIG"] = str(config)
        process = subprocess.Popen(
            [COMMAND, "up"],
            env=environment(folder / ".everloop"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

        def address() -> str | None:
            assert process.poll() is None, process.communicate()[1]
            status = everloop_json(folder / ".everloop", "status")
            return str(status["urls"]["gateway"]) if status["running"] else None

        try:
            yield eventually(address, "the gateway")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            del os.environ["EVERLOOP_CONFIG"]


@contextmanager
def users_at_work(folder: Path) -> Iterator[Mapping[str, Future[Curve]]]:
    """Let all users work side by side, and yield what will have become of each."""
    with installation(folder) as gateway, ThreadPoolExecutor(len(USERS)) as pool:
        yield {agent: pool.submit(_work, agent, gateway) for agent in USERS}


def _work(agent: str, gateway: str) -> Curve:
    with Program(agent, gateway) as program:
        curve = rollouts_until_better(program, USERS[agent](), MOST)
        curve.deaths = program.deaths
        return curve
