"""Errors as problem documents (RFC 9457), with the `error` member that OpenAI's clients read."""

from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from streams.storage.errors import LogUnavailableError

MEDIA_TYPE = "application/problem+json"
logger = structlog.get_logger(__name__)


class ProblemError(StarletteHTTPException):
    """A request that cannot be served.

    Args:
        status: HTTP status.
        title: what went wrong, the same words every time.
        detail: what was wrong this time, with the value, and what to do.
        headers: of the answer.
    """

    def __init__(
        self, status: int, title: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.title = title


def problem(
    status: int, title: str, detail: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return a problem document."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "error": {
            "message": detail,
            "type": kind,
            "param": None,
            "code": title.lower().replace(" ", "_"),
        },
    }
    return JSONResponse(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def answer(error: Exception) -> JSONResponse:
    """Return the problem document of an error."""
    match error:
        case RequestValidationError():
            details = [
                f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
                for item in error.errors()[:5]
            ]
            return problem(422, "Invalid request", "; ".join(details))
        case StarletteHTTPException():
            title = error.title if isinstance(error, ProblemError) else "Request refused"
            return problem(error.status_code, title, str(error.detail), error.headers)
        case LogUnavailableError():
            detail = f"the event could be written neither to the log nor to the spool: {error}"
            return problem(503, "Not recorded", detail)
    logger.error("request failed", error=repr(error), exc_info=error)
    return problem(500, "Gateway failed", "the gateway has a defect; its log says which")


def unprocessable(error: ValidationError) -> ProblemError:
    """Return the problem of a body that does not fit, as FastAPI's own check would say it."""
    items = error.errors(include_url=False, include_input=False)[:5]
    details = [f"{'.'.join(map(str, ('body', *item['loc'])))}: {item['msg']}" for item in items]
    return ProblemError(422, "Invalid request", "; ".join(details))


def install(app: FastAPI) -> None:
    """Answer every error of this application with a problem document."""

    async def respond(_: Request, error: Exception) -> JSONResponse:
        return answer(error)

    for kind in (RequestValidationError, StarletteHTTPException, LogUnavailableError, Exception):
        app.add_exception_handler(kind, respond)
