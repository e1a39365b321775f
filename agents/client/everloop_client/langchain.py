"""Spans of an agent: a LangChain callback that makes nested OpenTelemetry spans of a graph, its
roles and its tools.

Model calls are left to the gateway, which records each once with everything it knows; the callback
hands it the enclosing span, so that the call lies where it belongs.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from everloop_client.calls import ROLLOUT_HEADER, headers

NODE_HEADER = "x-everloop-node"
EXPORT_EVERY_MS = 500
# Large, because the exporter drops spans when its queue is full.
QUEUE = 65_536


class SpanAttribute(StrEnum):
    """Names of a span's attributes (OpenTelemetry's GenAI conventions, and the gateway's own)."""

    OPERATION = "gen_ai.operation.name"
    AGENT_NAME = "gen_ai.agent.name"
    TOOL_NAME = "gen_ai.tool.name"
    TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
    TOOL_RESULT = "gen_ai.tool.call.result"
    ERROR_TYPE = "error.type"
    ROLLOUT_ID = "everloop.rollout.id"
    NODE = "everloop.node"


_propagator = TraceContextTextMapPropagator()


def tracer_provider(
    gateway_url: str, api_key: str | None = None, service: str = "agent"
) -> TracerProvider:
    """Return a provider whose spans go to the gateway by OTLP/HTTP.

    Flush it before a rollout ends (`force_flush`), so that its spans are there first.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    exporter = OTLPSpanExporter(
        endpoint=f"{gateway_url.rstrip('/')}/v1/traces", headers=headers(api_key)
    )
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=QUEUE, schedule_delay_millis=EXPORT_EVERY_MS)
    )
    return provider


class RolloutTracer(BaseCallbackHandler):
    """Traces one rollout.

    A LangGraph run is a tree of runs, most of them plumbing. Spans are made of the graph, of its
    nodes and of tool calls; a run between them lends its children the span around it.

    Args:
        nodes: names of the nodes that become spans.
    """

    # in the event loop's own thread, so that a span is there before its children ask for it
    run_inline = True

    def __init__(self, tracer: Tracer, rollout_id: str, agent: str, nodes: frozenset[str]) -> None:
        self._tracer = tracer
        self._rollout_id = rollout_id
        self._agent = agent
        self._nodes = nodes
        self._spans: dict[UUID, Span] = {}
        self._own: set[UUID] = set()

    def span_around(self, run_id: UUID | None) -> Span | None:
        """Return the span that a run is in."""
        return self._spans.get(run_id) if run_id is not None else None

    @property
    def rollout_id(self) -> str:
        """The rollout being traced."""
        return self._rollout_id

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,  # noqa: ARG002
        inputs: dict[str, Any],  # noqa: ARG002
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **details: Any,
    ) -> None:
        """Begin a span for the graph or for a node."""
        name = str(details.get("name") or "")
        if parent_run_id is None:
            self._begin(
                run_id,
                None,
                f"invoke_agent {self._agent}",
                "invoke_agent",
                {SpanAttribute.AGENT_NAME: self._agent},
            )
        elif name in self._nodes and not self._is_inside(parent_run_id, name):
            attributes = {SpanAttribute.AGENT_NAME: name, SpanAttribute.NODE: name}
            self._begin(run_id, parent_run_id, f"invoke_agent {name}", "invoke_agent", attributes)
        # No span of its own, but its children must find the one around it.
        elif (around := self.span_around(parent_run_id)) is not None:
            self._spans[run_id] = around

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        **details: Any,
    ) -> None:
        """Begin a span for a tool call."""
        name = str(details.get("name") or (serialized or {}).get("name") or "tool")
        arguments = (
            json.dumps(inputs, default=str, ensure_ascii=False) if inputs is not None else input_str
        )
        attributes = {SpanAttribute.TOOL_NAME: name, SpanAttribute.TOOL_ARGUMENTS: arguments}
        self._begin(run_id, parent_run_id, f"execute_tool {name}", "execute_tool", attributes)

    def on_tool_end(self, output: Any, *, run_id: UUID, **details: Any) -> None:  # noqa: ARG002
        """End a tool call's span with its result."""
        result = output.content if isinstance(output, ToolMessage) else output
        if (span := self._spans.get(run_id)) is not None:
            span.set_attribute(SpanAttribute.TOOL_RESULT, str(result))
        self._end(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **details: Any) -> None:  # noqa: ARG002
        """End a failed tool call's span."""
        self._end(run_id, error)

    def on_chain_end(self, outputs: dict[str, Any], *, run_id: UUID, **details: Any) -> None:  # noqa: ARG002
        """End a node's span."""
        self._end(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **details: Any) -> None:  # noqa: ARG002
        """End a failed node's span."""
        self._end(run_id, error)

    def _begin(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        name: str,
        operation: str,
        attributes: Mapping[SpanAttribute, str],
    ) -> None:
        around = self.span_around(parent_run_id)
        context = trace.set_span_in_context(around) if around is not None else None
        span = self._tracer.start_span(
            name,
            context=context,
            kind=SpanKind.INTERNAL,
            attributes={
                SpanAttribute.OPERATION.value: operation,
                SpanAttribute.ROLLOUT_ID.value: self._rollout_id,
                **{key.value: value for key, value in attributes.items()},
            },
        )
        # By run, not by context variable: LangGraph runs nodes in tasks of their own.
        self._spans[run_id] = span
        self._own.add(run_id)

    def _end(self, run_id: UUID, error: BaseException | None = None) -> None:
        span = self._spans.pop(run_id, None)
        # A run that was lent a span must not end it.
        if span is None or run_id not in self._own:
            return
        self._own.discard(run_id)
        if error is not None:
            span.set_attribute(SpanAttribute.ERROR_TYPE, type(error).__name__)
        span.set_status(
            Status(StatusCode.ERROR, str(error)) if error is not None else Status(StatusCode.OK)
        )
        span.end()

    def _is_inside(self, run_id: UUID, node: str) -> bool:
        """Return whether a run is already within a span of this node. A role's own loop has a node
        of the same name.
        """
        around = self.span_around(run_id)
        attributes = getattr(around, "attributes", None) or {}
        return bool(attributes.get(SpanAttribute.NODE.value) == node)


def call_headers(config: RunnableConfig, node: str) -> dict[str, str]:
    """Return the headers that tell the gateway which rollout, node and span a model call belongs
    to.
    """
    found = {NODE_HEADER: node}
    manager = config.get("callbacks")
    if not isinstance(manager, BaseCallbackManager):
        return found
    tracer = next(
        (handler for handler in manager.handlers if isinstance(handler, RolloutTracer)), None
    )
    if tracer is None:
        return found
    found[ROLLOUT_HEADER] = tracer.rollout_id
    span = tracer.span_around(manager.parent_run_id)
    if span is not None:
        _propagator.inject(found, trace.set_span_in_context(span))
    return found
