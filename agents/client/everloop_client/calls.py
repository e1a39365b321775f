"""Calls: what both clients share. Requests, the meaning of their answers, and when to repeat them.

Nothing here opens a connection.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import quote
from uuid import uuid4

import httpx

from everloop_client.errors import GatewayError

Split = Literal["train", "validation", "test"]
Source = Literal["human", "judge", "environment", "rule"]
Candidate = str | Mapping[str, Any]
"""A text, or an object with `id`, `text`, `numbers` and `cost`, each of which may be left out."""

ROLLOUT_HEADER = "x-everloop-rollout-id"
TRIES = 5
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True)
class Call:
    """A POST to the gateway.

    Attributes:
        repeatable: whether doing it twice is doing it once. Any other call is repeated only where
            it surely was not done: no connection was made, or the gateway answered 503.
    """

    path: str
    body: dict[str, Any]
    repeatable: bool


@dataclass(frozen=True)
class Choice:
    """A policy's choice.

    Attributes:
        index: of the chosen candidate.
        candidate: the chosen candidate, as it was given.
        propensity: the probability that it had, in (0, 1].
        version: of the policy that chose.
        decision_id: event id of the decision.
    """

    index: int
    candidate: Candidate
    propensity: float
    version: str
    decision_id: str


@dataclass(frozen=True)
class Beginning:
    """The beginning of a rollout; see `Client.rollout`."""

    id: str
    agent: str
    task: dict[str, Any] | None
    split: Split | None
    group: str | None


def beginning(
    id: str | None,  # noqa: A002 - the argument of `Client.rollout`
    task: str | None,
    input: Any,  # noqa: A002
    expected: Any,
    agent: str,
    split: Split | None,
    group: str | None,
) -> Beginning:
    """Return the beginning of a rollout. A rollout without an id gets a new one. Rollouts with
    equal input are attempts at one task, also if the task has no name.
    """
    described = None
    if task is not None or input is not None:
        described = {"id": task or _digest(input), "input": input, "expected": expected}
    elif expected is not None:
        raise ValueError("`expected` is what a task should give; name its `task` or its `input`")
    return Beginning(id or str(uuid4()), agent, described, split, group)


def _digest(value: Any) -> str:
    # Sorted keys: equal inputs are one task, in whatever order their fields come.
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return f"input-{sha256(text.encode()).hexdigest()[:16]}"


def begin(rollout: Beginning) -> Call:
    """Return the call that begins a rollout."""
    body = {
        "rollout_id": rollout.id,
        "agent": rollout.agent,
        "task": rollout.task,
        "split": rollout.split,
        "group": rollout.group,
    }
    return Call("/everloop/v1/rollouts", _given(body), repeatable=True)


def base_path(rollout_id: str) -> str:
    """Return the path under which the calls of an OpenAI client belong to a rollout."""
    return f"/rollout/{quote(rollout_id, safe='')}/v1"


def end(rollout_id: str, output: Any, turns: int | None, error: str | None) -> Call:
    """Return the call that ends a rollout: failed if there is an error, else succeeded."""
    state = "succeeded" if error is None else "failed"
    body = {"state": state, "output": output, "error": error, "turns": turns}
    # not repeatable: an end that is recorded twice may end the rollout's next episode too
    path = f"/everloop/v1/rollouts/{quote(rollout_id, safe='')}/end"
    return Call(path, body, repeatable=False)


def reward(
    rollout_id: str,
    value: float,
    criteria: Mapping[str, float] | None,
    comment: str,
    span_id: str | None,
    source: Source | None,
    grader: str | None,
    supersedes: str | None,
    idempotency_key: str | None,
) -> Call:
    """Return the call that rewards a rollout. The key makes a repeated call count once."""
    body = {
        "rollout_id": rollout_id,
        "value": value,
        "criteria": dict(criteria) if criteria else None,
        "comment": comment,
        "span_id": span_id,
        "source": source,
        "grader": grader,
        "supersedes": supersedes,
        # Made here and not in each try, so that a repeated try is the same reward.
        "idempotency_key": idempotency_key or str(uuid4()),
    }
    return Call("/everloop/v1/rewards", _given(body), repeatable=True)


def retract(rollout_id: str, event_id: str) -> Call:
    """Return the call that takes a reward back."""
    body = {
        "rollout_id": rollout_id,
        "retracts": event_id,
        # Named by the reward: to take it back twice is to take it back once.
        "idempotency_key": f"retract:{event_id}",
    }
    return Call("/everloop/v1/rewards", body, repeatable=True)


def decide(rollout_id: str, policy: str, context: str, candidates: Sequence[Candidate]) -> Call:
    """Return the call that lets a policy choose."""
    described = [{"text": one} if isinstance(one, str) else dict(one) for one in candidates]
    body = {
        "rollout_id": rollout_id,
        "policy": policy,
        "context": context,
        "candidates": described,
    }
    # not repeatable: the choice would be the same, and the decision would be on the log twice
    return Call("/everloop/v1/decisions", body, repeatable=False)


def choice(answer: Mapping[str, Any], candidates: Sequence[Candidate]) -> Choice:
    """Return the choice that an answer states."""
    index = int(answer["choice"])
    return Choice(
        index=index,
        candidate=candidates[index],
        propensity=float(answer["propensity"]),
        version=str(answer["policy_version"]),
        decision_id=str(answer["decision_id"]),
    )


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are set. The gateway decides the others."""
    return {name: value for name, value in body.items() if value is not None}


def headers(api_key: str | None) -> dict[str, str]:
    """Return the headers of every call."""
    return {} if api_key is None else {"authorization": f"Bearer {api_key}"}


def pause(call: Call, tries: int, outcome: httpx.Response | httpx.HTTPError) -> float | None:
    """Return for how many seconds to wait before a call is made again; None where it is not.

    The pause is random, up to a bound that doubles (full jitter,
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), and at least what
    the gateway asks for.

    Args:
        tries: how often the call was made.
    """
    if tries >= TRIES:
        return None
    asked_for = 0.0
    if isinstance(outcome, httpx.Response):
        # 503 is the one answer that says that the gateway has done nothing.
        if outcome.status_code != 503:
            return None
        after = outcome.headers.get("retry-after", "")
        asked_for = float(after) if after.isascii() and after.isdigit() else 0.0
        # A caller must not hang for minutes; it sees the refusal instead.
        if asked_for > LONGEST_PAUSE_S:
            return None
    # Without a connection nothing was done. After a timeout it may have been.
    elif not call.repeatable and not isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout):
        return None
    bound = min(FIRST_PAUSE_S * 2**tries, LONGEST_PAUSE_S)
    return max(asked_for, random.uniform(0, bound))  # noqa: S311 - jitter is no secret


def result(call: Call, url: str, outcome: httpx.Response | httpx.HTTPError) -> dict[str, Any]:
    """Return the document of an answer.

    Raises:
        GatewayError: the gateway refused the call or did not answer.
    """
    if isinstance(outcome, httpx.HTTPError):
        detail = f"no answer from the gateway at {url}: {type(outcome).__name__} {outcome}"
        raise GatewayError(call.path, None, detail) from outcome
    try:
        document = outcome.json() if outcome.content else {}
    except ValueError:
        document = None
    if not outcome.is_success:
        said = document.get("detail") if isinstance(document, dict) else None
        raise GatewayError(call.path, outcome.status_code, str(said or outcome.reason_phrase))
    if not isinstance(document, dict):
        detail = f"{url} does not answer as Everloop's gateway does: {outcome.text[:80]!r}"
        raise GatewayError(call.path, outcome.status_code, detail)
    return document
