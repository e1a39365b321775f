"""The client for programs with an event loop. It does what `everloop_client.client` does."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from everloop_client import calls
from everloop_client.calls import Beginning, Candidate, Choice, Source, Split
from everloop_client.errors import GatewayError
from everloop_client.parts import RolloutParts


class AsyncClient:
    """Talks to one gateway. Tasks of one event loop may share it.

    Args:
        url: of the gateway, without a path, such as `http://127.0.0.1:8700`.
        api_key: where the gateway asks for one; needs the scopes `agent` and `feedback`.
        timeout_s: longest wait for an answer.

    A call that finds no connection, or is answered 503, is made again up to four times.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.url, headers=calls.headers(api_key), timeout=timeout_s
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def rollout(
        self,
        id: str | None = None,  # noqa: A002 - the word that everybody uses
        task: str | None = None,
        input: Any = None,  # noqa: A002
        expected: Any = None,
        agent: str = "agent",
        split: Split | None = None,
        group: str | None = None,
    ) -> "AsyncRollout":
        """Return a rollout: one attempt of an agent at one task. `async with` begins and ends it.

        Args:
            id: names it; None makes a new one.
            task: names the task; without it, rollouts of one `input` are attempts at one task.
            input: what the agent is asked to do, as JSON.
            expected: the right output, where it is known. Agents never see it.
            split: what it may be used for; None leaves that to the gateway.
            group: arm of an experiment.

        Raises:
            ValueError: there is an `expected` without a task.
        """
        return AsyncRollout(self, calls.beginning(id, task, input, expected, agent, split, group))

    async def reward(
        self,
        rollout_id: str,
        value: float,
        *,
        criteria: Mapping[str, float] | None = None,
        comment: str = "",
        span_id: str | None = None,
        source: Source | None = None,
        grader: str | None = None,
        supersedes: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Reward a rollout, now or days later, and return the reward's event id.

        Args:
            value: in [0, 1].
            criteria: scores by name, each in [0, 1].
            span_id: the call that it is about; None is the whole rollout.
            source: who judges; None is `environment`.
            grader: what judges, with its version, such as `spelling@1`.
            supersedes: event id of the reward that this one corrects.
            idempotency_key: rewards of a rollout with one key count once. Each gets a key of its
                own without it, so that asking again never rewards twice.

        Raises:
            GatewayError: the gateway refused it or did not answer.
        """
        call = calls.reward(
            rollout_id,
            value,
            criteria,
            comment,
            span_id,
            source,
            grader,
            supersedes,
            idempotency_key,
        )
        return str((await self._post(call))["event_id"])

    async def retract(self, rollout_id: str, event_id: str) -> str:
        """Take a reward back, and return the event id of the retraction."""
        return str((await self._post(calls.retract(rollout_id, event_id)))["event_id"])

    async def decide(
        self, rollout_id: str, policy: str, context: str, candidates: Sequence[Candidate]
    ) -> Choice:
        """Let a policy choose among candidates.

        Args:
            policy: logical name of the policy.
            context: what all candidates share, such as the task.
            candidates: texts, or objects with `id`, `text`, `numbers` and `cost`.
        """
        answer = await self._post(calls.decide(rollout_id, policy, context, candidates))
        return calls.choice(answer, candidates)

    async def _post(self, call: calls.Call) -> dict[str, Any]:
        tries = 0
        while True:
            outcome: httpx.Response | httpx.HTTPError
            try:
                outcome = await self._http.post(call.path, json=call.body)
            except httpx.HTTPError as error:
                outcome = error
            tries += 1
            if (seconds := calls.pause(call, tries, outcome)) is None:
                return calls.result(call, self.url, outcome)
            await asyncio.sleep(seconds)


class AsyncRollout(RolloutParts):
    """A rollout. `async with` begins it; leaving ends it as succeeded, an exception as failed."""

    def __init__(self, client: AsyncClient, beginning: Beginning) -> None:
        super().__init__(client.url, beginning)
        self._client = client

    async def begin(self) -> None:
        """Begin it. Beginning it twice is beginning it once."""
        await self._client._post(calls.begin(self._beginning))

    async def end(self, error: str | None = None) -> None:
        """End it: failed if there is an error, else succeeded."""
        await self._client._post(calls.end(self.id, self.output, self.turns, error))

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if error is None:
            await self.end()
            return
        try:
            await self.end(f"{type(error).__name__}: {error}")
        except GatewayError as failure:  # what went wrong first is what the caller must see
            error.add_note(f"the rollout {self.id} could not be ended: {failure}")

    async def reward(
        self,
        value: float,
        *,
        criteria: Mapping[str, float] | None = None,
        comment: str = "",
        span_id: str | None = None,
        source: Source | None = None,
        grader: str | None = None,
        supersedes: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Reward it and return the reward's event id; see `AsyncClient.reward`."""
        return await self._client.reward(
            self.id,
            value,
            criteria=criteria,
            comment=comment,
            span_id=span_id,
            source=source,
            grader=grader,
            supersedes=supersedes,
            idempotency_key=idempotency_key,
        )

    async def retract(self, event_id: str) -> str:
        """Take one of its rewards back, and return the event id of the retraction."""
        return await self._client.retract(self.id, event_id)

    async def decide(self, policy: str, context: str, candidates: Sequence[Candidate]) -> Choice:
        """Let a policy choose among candidates; see `AsyncClient.decide`."""
        return await self._client.decide(self.id, policy, context, candidates)
