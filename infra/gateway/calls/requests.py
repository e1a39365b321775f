"""Requests of model calls: what the gateway must know of one before it places it."""

from dataclasses import dataclass

from pydantic import ValidationError

from infra.gateway.calls.choices import last_said
from infra.gateway.calls.formats import Api
from infra.gateway.http.documents import Body
from infra.gateway.http.problems import ProblemError
from infra.gateway.state.conversations import Transcript
from schemas.serialization import readable


@dataclass(frozen=True)
class Asked:
    """What a request says.

    Attributes:
        model: logical name.
        context: the beginning of what its last user said.
        transcript: what it says in its conversation; None if the caller names the rollout.
    """

    model: str
    context: str
    transcript: Transcript | None


def read_request(body: Body, api: Api, speaker: tuple[str, str | None] | None) -> Asked:
    """Return what a request says.

    Args:
        speaker: tenant and id of the key of a caller who names no rollout.

    Raises:
        ProblemError: 400, it does not fit its API.
    """
    try:
        api.request.model_validate(body)
    except ValidationError as error:
        raise ProblemError(400, "Invalid request", readable(error)) from error
    transcript = None if speaker is None else Transcript(*speaker, body, api.messages(body))
    return Asked(body["model"], last_said(body, api), transcript)
