"""Events of an attempt as a trainer reads them: token ids, log-probabilities and rewards."""

import math
from typing import Any

from infra.gateway.state.lightning_models import AttemptEvent
from schemas.lightning import Appended

MODEL_REQUEST = "model_request"
REWARD = "reward"


def triplets(events: list[AttemptEvent]) -> list[AttemptEvent]:
    """Return events as a trainer reads them: token ids and log-probabilities of calls, values of
    rewards.

    Of calls with the same prompt tokens only the last is kept; others are kept as they are.
    """
    trimmed = [_trimmed(event) for event in events]
    last: dict[tuple[int, ...], int] = {}
    for index, event in enumerate(trimmed):
        if (prompt := _prompt_of(event)) is not None:
            last[prompt] = index
    return [
        e for index, e in enumerate(trimmed) if (p := _prompt_of(e)) is None or last[p] == index
    ]


def without_experts(event: AttemptEvent) -> AttemptEvent:
    """Return an event without the tensor of routed experts."""
    if event.event_type != MODEL_REQUEST or "routed_experts" not in event.data:
        return event
    data = {name: value for name, value in event.data.items() if name != "routed_experts"}
    return event.model_copy(update={"data": data})


def leave_out_superseded(events: list[AttemptEvent], appended: Appended) -> None:
    """Keep the tensor of routed experts only of the last call of a growing conversation. It
    contains those of the earlier calls.
    """
    if appended.event_type != MODEL_REQUEST or appended.data.get("routed_experts") is None:
        return
    prompt = _tokens(appended.data)["prompt_token_ids"]
    for index in range(len(events) - 1, -1, -1):
        if events[index].event_type == MODEL_REQUEST:
            known = _tokens(events[index].data)
            context = known["prompt_token_ids"] + known["response_token_ids"]
            if prompt == known["prompt_token_ids"] or prompt[: len(context)] == context:
                events[index] = without_experts(events[index])
            return


def _prompt_of(event: AttemptEvent) -> tuple[int, ...] | None:
    ids = event.data.get("prompt_token_ids") if event.event_type == MODEL_REQUEST else None
    # Not `isinstance`: True and False are ints, too.
    if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
        return None
    return tuple(ids)


def _trimmed(event: AttemptEvent) -> AttemptEvent:
    data = event.data
    if event.event_type == REWARD:
        kept = {"value": data.get("value")} | {
            name: data[name] for name in ("source", "reason") if name in data
        }
        return event.model_copy(update={"data": kept})
    return (
        event.model_copy(update={"data": _tokens(data)})
        if event.event_type == MODEL_REQUEST
        else event
    )


def _tokens(data: dict[str, Any]) -> dict[str, Any]:
    response = data.get("response")
    response = response if isinstance(response, dict) else {}
    choices = response.get("choices")
    choice = (
        choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    )
    server = data.get("server")
    server = server if isinstance(server, dict) else {}
    found = {
        "prompt_token_ids": response.get("prompt_token_ids")
        or choice.get("prompt_token_ids")
        or [],
        "response_token_ids": choice.get("token_ids") or [],
        "response_log_probs": _log_probs(choice.get("logprobs")),
        "server": {"model": server.get("model"), "version": server.get("version")},
    }
    found |= {
        name: data[name]
        for name in ("routed_experts", "http_status", "status")
        if data.get(name) is not None
    }
    return found | ({"error": response["error"]} if "error" in response else {})


def _log_probs(logprobs: Any) -> list[float] | None:
    """Return one log-probability a token. None if one is missing or is no number: then the others
    cannot be matched with tokens.
    """
    if not isinstance(logprobs, dict):
        return None
    content, plain = logprobs.get("content"), logprobs.get("token_logprobs")
    values = (
        [item.get("logprob") if isinstance(item, dict) else None for item in content]
        if content
        else plain
    )
    if not isinstance(values, list):
        return [] if content == [] else None
    usable = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    return [float(value) for value in values] if usable else None
