"""The watch over a caller: whether it hangs up before there is an answer."""

import asyncio

from fastapi import Request

from infra.gateway.http.problems import ProblemError

# A caller that hangs up costs a model server at most this much longer. Looking more often would
# cost every call a task.
LOOK_EVERY_S = 0.25


class Watch:
    """Cancels a call whose caller hangs up before there is an answer.

    Most calls are over before it first looks, so they pay for one timer and no task.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._begin_look)
        self._looking: asyncio.Task[None] | None = None
        self._hung_up = False

    def close(self) -> None:
        """Stop looking."""
        self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()

    def end(self) -> None:
        """Turn our own cancellation into an answer. Otherwise the server would log a defect.

        Raises:
            ProblemError: 499. Nobody reads it, because the caller hung up.
        """
        if self._hung_up:
            raise ProblemError(499, "Cancelled", "the caller hung up")

    def _begin_look(self) -> None:
        self._looking = self._loop.create_task(self._look())

    async def _look(self) -> None:
        if await self._request.is_disconnected():
            self._hung_up = True
            if self._task is not None:
                self._task.cancel()
        else:
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._begin_look)
