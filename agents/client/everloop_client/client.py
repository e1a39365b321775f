"""The client of the gateway's own API: rollouts, decisions and rewards over HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from schemas.decisions import Candidate
from schemas.rollouts import Split, Task


class GatewayError(Exception):
    """The gateway refused a request; the message is its own word for why."""


@dataclass(frozen=True)
class Choice:
    """A policy's choice: the index chosen, and the probability it had."""

    index: int
    propensity: float
    policy_version: str
    decision_id: str


class EverloopClient:
    """Talks to one gateway.

    Args:
        url: of the gateway, without a path.
    """

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.AsyncClient(base_url=self.url, timeout=timeout_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def begin_rollout(
        self,
        task: Task,
        *,
        rollout_id: str | None = None,
        agent: str = "agent",
        split: Split = "train",
        group: str = "default",
    ) -> str:
        """Begin a rollout and return its id. Beginning the same id twice is beginning it once."""
        answer = await self._post(
            "/everloop/v1/rollouts",
            {
                "rollout_id": rollout_id,
                "agent": agent,
                "task": task.model_dump(mode="json"),
                "split": split,
                "group": group,
            },
        )
        return str(answer["rollout_id"])

    async def end_rollout(
        self,
        rollout_id: str,
        *,
        output: Any = None,
        error: str | None = None,
        turns: int | None = None,
    ) -> None:
        """End a rollout: failed if there is an error, else succeeded."""
        state = "succeeded" if error is None else "failed"
        body = {"state": state, "output": output, "error": error, "turns": turns}
        await self._post(f"/everloop/v1/rollouts/{rollout_id}/end", body)

    async def decide(
        self, rollout_id: str, policy: str, context: str, candidates: Sequence[Candidate]
    ) -> Choice:
        """Let a policy choose among candidates."""
        answer = await self._post(
            "/everloop/v1/decisions",
            {
                "rollout_id": rollout_id,
                "policy": policy,
                "context": context,
                "candidates": [candidate.model_dump() for candidate in candidates],
            },
        )
        return Choice(
            answer["choice"], answer["propensity"], answer["policy_version"], answer["decision_id"]
        )

    async def reward(self, rollout_id: str, value: float, **details: Any) -> str:
        """Reward a rollout with a value in [0, 1] and return the reward's event id; see the API for
        `details`.
        """
        answer = await self._post(
            "/everloop/v1/rewards", {"rollout_id": rollout_id, "value": value, **details}
        )
        return str(answer["event_id"])

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = await self._http.post(path, json=body)
        except httpx.HTTPError as error:
            raise GatewayError(
                f"no answer from the gateway at {self.url}: {type(error).__name__} {error}"
            ) from error
        document: dict[str, Any] = answer.json() if answer.content else {}
        if not answer.is_success:
            raise GatewayError(
                f"{path}: {answer.status_code} {document.get('detail', answer.reason_phrase)}"
            )
        return document
