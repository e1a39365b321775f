"""The agent that a pipeline runs: a function of the user's, or a command that calls the gateway."""

import asyncio
import inspect
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
import structlog
from everloop_client import AsyncClient, Client, GatewayError
from everloop_client.asynchronous import AsyncRollout

from infra.pipeline.settings import PipelineSettings
from infra.pipeline.tasks import PipelineTask
from infra.runtime.errors import ConfigError
from learners.references import UnknownReferenceError, resolve
from schemas.rollouts import Split

AGENT = "pipeline"
ERROR_TAIL = 500
"""Characters of a command's standard error that a failed rollout keeps."""

logger = structlog.get_logger(__name__)


class Agent(Protocol):
    """Solves one task in one rollout, which has begun; returns its output as JSON."""

    async def solve(self, task: Mapping[str, Any], rollout: AsyncRollout) -> Any:
        """Return the output.

        Raises:
            Exception: whatever goes wrong; the rollout then ends as failed, with the text.
        """
        ...


@dataclass(frozen=True)
class FunctionAgent:
    """A function `agent(task, rollout, **options)`, which may be a coroutine.

    `task` is a mapping with `id` and `input`. `rollout` is an `AsyncRollout` of `everloop_client`
    for a coroutine. A plain function gets a `Rollout`, whose methods wait, and runs in a thread of
    its own.
    """

    function: Callable[..., Any]
    options: Mapping[str, Any]
    api_key: str | None = None

    async def solve(self, task: Mapping[str, Any], rollout: AsyncRollout) -> Any:
        """Return what the function returns."""
        if inspect.iscoroutinefunction(self.function):
            return await self.function(task, rollout, **self.options)
        # A plain function would hold the event loop, and with it all other rollouts.
        return await asyncio.to_thread(self._solve_waiting, task, rollout)

    def _solve_waiting(self, task: Mapping[str, Any], rollout: AsyncRollout) -> Any:
        with Client(rollout.gateway_url, self.api_key) as client:
            same = client.rollout(id=rollout.id)  # it has begun, and the pipeline ends it
            output = self.function(task, same, **self.options)
        rollout.turns = same.turns
        return same.output if output is None else output


@dataclass(frozen=True)
class CommandAgent:
    """A command. It gets the task as JSON on standard input, and these variables:

    - `EVERLOOP_GATEWAY_URL`: the gateway's URL without a path;
    - `EVERLOOP_ROLLOUT_ID`: the rollout, for the header `x-everloop-rollout-id`;
    - `OPENAI_BASE_URL` and `OPENAI_API_KEY`: lead OpenAI's clients to the rollout.

    Its standard output is the rollout's output: as JSON where it is JSON, else as text. Another
    exit status than 0 is a failure.
    """

    command: Sequence[str]
    api_key: str | None = None

    async def solve(self, task: Mapping[str, Any], rollout: AsyncRollout) -> Any:
        """Return what the command prints.

        Raises:
            RuntimeError: it ended with another status than 0.
        """
        variables = {
            "EVERLOOP_GATEWAY_URL": rollout.gateway_url,
            "EVERLOOP_ROLLOUT_ID": rollout.id,
            "OPENAI_BASE_URL": rollout.base_url,
            # OpenAI's client refuses to start without a key, also where the gateway wants none.
            "OPENAI_API_KEY": self.api_key or os.environ.get("OPENAI_API_KEY", "everloop"),
        }
        process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | variables,
        )
        try:
            printed, errors = await process.communicate(orjson.dumps(task))
        finally:
            if process.returncode is None:  # it took too long, or the pipeline ends
                process.kill()
                await process.wait()
        if process.returncode != 0:
            said = errors.decode(errors="replace").strip()[-ERROR_TAIL:]
            raise RuntimeError(f"{self.command[0]} ended with {process.returncode}: {said}")
        try:
            return orjson.loads(printed)
        except orjson.JSONDecodeError:
            return printed.decode(errors="replace")


def configured_agent(settings: PipelineSettings) -> Agent:
    """Return the agent that the settings name.

    Raises:
        ConfigError: they name none, or one that cannot be called as it must be.
    """
    api_key = settings.api_key.get_secret_value() if settings.api_key else None
    if settings.command:
        if shutil.which(settings.command[0]) is None:
            raise ConfigError(f"pipeline.command: there is no program {settings.command[0]!r}")
        return CommandAgent(settings.command, api_key)
    if settings.agent is None:
        raise ConfigError(
            'pipeline: there is no agent; set pipeline.agent = "module:function" or'
            ' pipeline.command = ["program", …]'
        )
    try:
        function = resolve(settings.agent)
        inspect.signature(function).bind("task", "rollout", **settings.options)
    except UnknownReferenceError as error:
        raise ConfigError(f"pipeline.agent: {error}") from error
    except TypeError as error:
        raise ConfigError(
            f"pipeline.agent: {settings.agent} must take a task and a rollout, and the"
            f" pipeline.options: {error}"
        ) from error
    return FunctionAgent(function, settings.options, api_key)


@dataclass(frozen=True)
class PlannedRollout:
    """One rollout to be run."""

    rollout_id: str
    task: PipelineTask
    split: Split
    group: str


async def run_rollouts(
    agent: Agent, client: AsyncClient, settings: PipelineSettings, planned: Sequence[PlannedRollout]
) -> None:
    """Run rollouts in their order, `settings.parallel` at a time. One that fails, or takes longer
    than `settings.rollout_s`, ends its rollout as failed; the others go on.

    Raises:
        ConfigError: the gateway does not answer, or does not let the pipeline in.
    """
    room = asyncio.Semaphore(settings.parallel)

    async def run(rollout: PlannedRollout) -> None:
        async with room:
            await _run_one(agent, client, settings, rollout)

    try:
        async with asyncio.TaskGroup() as group:
            for rollout in planned:
                group.create_task(run(rollout))
    # A gateway that refuses one rollout refuses all. The agent's own errors are caught below.
    except* GatewayError as failures:
        first = failures.exceptions[0]
        raise ConfigError(f"pipeline: {first}; is pipeline.api_key right?") from first


async def _run_one(
    agent: Agent, client: AsyncClient, settings: PipelineSettings, planned: PlannedRollout
) -> None:
    task = planned.task
    rollout = client.rollout(
        id=planned.rollout_id,
        task=task.id,
        input=task.input,
        expected=task.expected,
        agent=settings.name,
        split=planned.split,
        group=planned.group,
    )
    await rollout.begin()
    error: str | None = None
    limit = asyncio.timeout(settings.rollout_s)
    try:
        async with limit:
            # The agent never sees what is expected.
            output = await agent.solve({"id": task.id, "input": task.input}, rollout)
            rollout.output = rollout.output if output is None else output
    except Exception as failure:  # noqa: BLE001 - the agent is somebody else's code
        # The agent may raise a TimeoutError of its own.
        if limit.expired():
            error = f"it took longer than pipeline.rollout_s, {settings.rollout_s:g} s"
        else:
            error = f"{type(failure).__name__}: {failure}"
        logger.warning("rollout failed", rollout_id=planned.rollout_id, error=error)
    await _end(rollout, error)


async def _end(rollout: AsyncRollout, error: str | None) -> None:
    """End a rollout; as failed where the gateway cannot take its output."""
    try:
        await rollout.end(error)
    except Exception as failure:  # noqa: BLE001 - the output is of somebody else's code
        rollout.output = rollout.turns = None
        error = f"its output cannot be recorded: {failure}"
        logger.warning("rollout failed", rollout_id=rollout.id, error=error)
        await rollout.end(error)
