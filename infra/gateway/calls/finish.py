"""The end of a model call: recorded, counted, and told to who wants to hear of it."""

from typing import Protocol

from infra.gateway.calls.faults import fault_of_call
from infra.gateway.calls.model_call import Ending, ModelCall
from infra.gateway.calls.placement import Placement
from infra.gateway.http.readers import Readers
from infra.gateway.state.services import Services
from schemas.rollouts import Fault


class Observer(Protocol):
    """Who wants to hear of a call.

    Both methods are called once. If the request is refused, neither is called.
    """

    def on_begin(self, model_call: ModelCall) -> None:
        """Hear that a call is about to be sent."""
        ...

    def on_end(self, model_call: ModelCall, status: int | None, error: str | None) -> None:
        """Hear that it has ended.

        Args:
            status: the server's HTTP status; None if it gave none.
            error: what went wrong; None if nothing did.
        """
        ...


class Finish:
    """Records the end of a call.

    Attributes:
        finished: whether it is recorded.
        repairs: whether the model is asked again if it calls a tool against its schema.
    """

    def __init__(
        self,
        services: Services,
        model_call: ModelCall,
        placement: Placement,
        observer: Observer | None,
        repairs: bool = False,
    ) -> None:
        self.repairs = repairs
        self._services = services
        self._model_call = model_call
        self._placement = placement
        self._observer = observer
        self.finished = False

    @property
    def awaited(self) -> bool:
        """Whether the call must be recorded before the answer is passed back."""
        return self._observer is not None

    @property
    def lets_invalid_through(self) -> bool:
        """Whether invalid tool calls are passed back. A trainer's agents always get them."""
        return self._services.settings.tool_calls == "pass" or self._observer is not None

    @property
    def readers(self) -> Readers | None:
        """Who reads a large answer. An observer wants it in memory."""
        return self._services.readers if self._observer is None else None

    async def later(self, status: int | None, error: str | None, ending: Ending) -> None:
        """Record after the answer was passed back, so that the caller does not wait for it."""
        self(status, error, None, ending)

    def __call__(
        self,
        status: int | None,
        error: str | None,
        fault: Fault | None = None,
        ending: Ending | None = None,
        goes_on: bool = False,
    ) -> None:
        """Record the end.

        Args:
            fault: whose failure it is. None: status and error say it.
            ending: of a whole answer. None: what has come of the answer says it.
            goes_on: whether another call repairs this one. Then that call ends the turn.
        """
        self.finished = True
        services, model_call = self._services, self._model_call
        ending, whole = ending or model_call.ending(), ending is not None
        wrong = error or ending.damaged
        model_call.record(services, status, wrong, counted=whole)
        failed = wrong is not None
        if wrong is not None and fault is None:
            fault = fault_of_call(status, wrong)
        services.routing.note_fault(model_call.key, fault if failed else None)
        _count(services, model_call, ending, _outcome(status, error, failed))
        conversation = self._placement.conversation
        if conversation is not None and not goes_on:
            services.conversations.note_answer(conversation, ending.said, failed)
        if self._observer is not None:
            self._observer.on_end(model_call, status, wrong)


def _count(services: Services, model_call: ModelCall, ending: Ending, outcome: str) -> None:
    counts, model = services.counts, model_call.model
    tokens = ending.input_tokens, ending.output_tokens
    cost = model_call.cost(*tokens)
    counts.requests[outcome] += 1
    counts.tokens[model, "input"] += ending.input_tokens
    counts.tokens[model, "output"] += ending.output_tokens
    counts.cost[model] += cost
    if ending.invalid_calls:
        version = model_call.target.version
        counts.invalid_tool_calls[model, version] += len(ending.invalid_calls)
    services.limits.add_usage(model_call.call.caller.key, *tokens, cost)


def _outcome(status: int | None, error: str | None, failed: bool) -> str:
    if error == "cancelled":
        return "cancelled"
    if not failed:
        return "served"
    return "refused" if status is not None and 400 <= status < 500 else "failed"
