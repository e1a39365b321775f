"""The check of a trained model before it is announced. It must answer held-out prompts as well as
what serves now.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import httpx

from infra.training.jobs import Case
from infra.training.settings import CheckSettings
from learners.graders import GradedAnswer, right_tool_call, same_answer, valid_call
from schemas.endpoints import Endpoint


@dataclass(frozen=True)
class Examination:
    """How a model answered a set of prompts.

    Attributes:
        prompts: how many prompts there were.
        failed: how many it did not answer.
        agreement: mean reward by `tool-call@1` or, without tools, `answer@1`, in [0, 1]; a prompt
            that failed earns 0.
        valid: share of its tool calls that their schemas allow, in [0, 1]; 1 if it made none.
        distinct: number of different answers, as a share of the number of different expected
            answers, at most 1. It is low if the model always says the same.
        latency_s: mean time of an answer, in seconds.
        length: mean length of an answer, in characters. Tokens of different models cannot be
            compared.
    """

    prompts: int
    failed: int
    agreement: float
    valid: float
    distinct: float
    latency_s: float
    length: float

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the figures by name."""
        names = ("agreement", "valid", "distinct", "latency_s", "length")
        return {f"{prefix}{name}": float(getattr(self, name)) for name in names}


def check_candidate(
    candidate: Endpoint,
    champion: Endpoint | None,
    cases: Sequence[Case],
    earlier: Sequence[Case],
    settings: CheckSettings,
    timeout_s: float,
) -> tuple[dict[str, float], str | None]:
    """Ask a model, and what serves now, held-out prompts.

    Args:
        champion: what serves now; None if nothing of this name does.
        cases: held-out prompts of the run that made the model.
        earlier: held-out prompts of earlier runs, to see what it has forgotten.

    Returns:
        The figures by name, and the reason to refuse the model; None if there is none.
    """
    metrics: dict[str, float] = {}
    for prompts, prefix, judge in ((cases, "", refusal), (earlier, "earlier_", loss_of_old)):
        if not prompts:
            continue
        found = examine(candidate, prompts, timeout_s)
        beside = examine(champion, prompts, timeout_s) if champion is not None else None
        metrics |= found.metrics(f"held_out_{prefix}")
        metrics |= beside.metrics(f"champion_{prefix}") if beside is not None else {}
        reason = judge(found, beside, settings)
        if reason is not None:
            return metrics, reason
    return metrics, None


def examine(endpoint: Endpoint, cases: Sequence[Case], timeout_s: float) -> Examination:
    """Ask a model for its likeliest answers to held-out prompts."""
    rewards, validity, latencies, lengths, texts = [], [], [], [], set()
    failed = 0
    key = os.environ.get(endpoint.api_key_env or "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=endpoint.base_url, timeout=timeout_s, headers=headers) as http:
        for case in cases:
            body: dict[str, Any] = {
                "model": endpoint.model,
                "messages": case.prompt,
                # The likeliest answer, so that the check does not depend on a draw.
                "temperature": 0.0,
            }
            body |= {"tools": case.tools} if case.tools else {}
            begun = time.monotonic()
            try:
                answer = http.post("/chat/completions", json=body)
                document = answer.raise_for_status().json()
                message = document["choices"][0]["message"]
            except (httpx.HTTPError, ValueError, LookupError):
                failed += 1
                rewards.append(0.0)
                continue
            latencies.append(time.monotonic() - begun)
            text, valid = written_answer(message, case.tools)
            lengths.append(float(len(text)))
            validity += valid
            texts.add(text)
            grade = right_tool_call if case.tools else same_answer
            rewards.append(grade(GradedAnswer(text, case.prompt, case.tools, case.expected)))
    # Prompts that expect the same answer cannot be answered in different ways.
    expected = {json.dumps(case.expected, sort_keys=True) for case in cases}
    return Examination(
        prompts=len(cases),
        failed=failed,
        agreement=_mean(rewards),
        valid=_mean(validity) if validity else 1.0,
        distinct=min(1.0, len(texts) / max(1, len(expected))),
        latency_s=_mean(latencies),
        length=_mean(lengths),
    )


def refusal(
    candidate: Examination, champion: Examination | None, settings: CheckSettings
) -> str | None:
    """Return the reason to refuse a model; None if there is none.

    Args:
        champion: what serves now, on the same prompts; None where nothing of this name does.
    """
    # Checked first: the figures below are of those that were answered.
    if candidate.failed:
        return f"{candidate.failed} of {candidate.prompts} held-out prompts were not answered"
    if candidate.valid < settings.least_valid:
        return (
            f"only {candidate.valid:.0%} of its tool calls are valid,"
            f" less than {settings.least_valid:.0%}"
        )
    if candidate.distinct < settings.least_distinct:
        return (
            "says the same to different prompts:"
            f" {candidate.distinct:.0%} of the answers that could differ do"
        )
    if champion is None:
        return None
    if candidate.agreement < champion.agreement - settings.tolerance:
        return (
            f"agrees with {candidate.agreement:.3f} of the expected answers to held-out prompts,"
            f" what serves now with {champion.agreement:.3f}"
        )
    if champion.latency_s and candidate.latency_s > settings.most_latency * champion.latency_s:
        return (
            f"takes {candidate.latency_s:.2f} s for an answer,"
            f" what serves now {champion.latency_s:.2f} s"
        )
    if champion.length and candidate.length > settings.most_length * champion.length:
        return (
            f"answers with {candidate.length:.0f} characters,"
            f" what serves now with {champion.length:.0f}"
        )
    return None


def loss_of_old(
    candidate: Examination, champion: Examination | None, settings: CheckSettings
) -> str | None:
    """Return the reason to refuse a model that answers prompts of earlier runs worse than what
    serves now; None if it does not.
    """
    if champion is None or candidate.agreement >= champion.agreement - settings.tolerance:
        return None
    return (
        f"forgot: agrees with {candidate.agreement:.3f} of the expected answers to prompts of"
        " earlier runs,"
        f" what serves now with {champion.agreement:.3f}"
    )


def written_answer(message: dict[str, Any], tools: list[dict[str, Any]]) -> tuple[str, list[float]]:
    """Return a message as the text that the model wrote, and for each of its tool calls 1 if the
    schema allows it, else 0.
    """
    calls = message.get("tool_calls") or []
    text = message.get("content") or ""
    validity = []
    for call in calls:
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"])
        except json.JSONDecodeError:
            arguments = None
        document = {"name": function["name"], "arguments": arguments}
        validity.append(float(valid_call(document, tools) is not None))
        text += f"<tool_call>{json.dumps(document)}</tool_call>"
    if not calls and "<tool_call>" in text:
        validity.append(0.0)  # it meant to call, and its server could not read it
    return text, validity


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values) if values else 0.0
