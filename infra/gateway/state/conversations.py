"""Rollouts of agents that name none: calls that continue one conversation, or one trace, are one
rollout.

An agent that only changes its base URL says nothing of rollouts, but it sends the whole
conversation each time. A request that begins with what an earlier one said and was answered
continues it. Such a rollout ends when nothing has continued it for a while.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from schemas.identifiers import new_event_id

AGENT = "conversation"
"""What rollouts that the gateway began by itself have as their agent."""


@dataclass
class Conversation:
    """An open rollout that the gateway began.

    Attributes:
        tenant: whose it is.
        last: when it was last heard of, on the monotonic clock.
        calls: how many there were, as far as this process knows.
        busy: calls under way.
        failed: whether the last one failed.
        said: what it is found by; forgotten with it.
    """

    tenant: str
    rollout_id: str
    trace_id: str | None
    last: float
    calls: int = 0
    busy: int = 0
    failed: bool = False
    said: list[bytes] = field(default_factory=list)


class Conversations:
    """Open conversations, found by what was said in them.

    Args:
        idle_s: how long one may be silent before it has ended.
        most: how many answers are remembered; the oldest are forgotten, and what continues them
            begins anew.
    """

    def __init__(self, idle_s: float, most: int = 100_000) -> None:
        self._idle_s = idle_s
        self._most = most
        self._open: OrderedDict[tuple[str, str], Conversation] = OrderedDict()
        self._said: OrderedDict[bytes, str] = OrderedDict()

    def join(
        self,
        tenant: str,
        trace_id: str | None,
        messages: list[dict[str, Any]] | None,
        previous: str | None = None,
    ) -> Conversation:
        """Return the conversation that a call belongs to, a new one where it continues none.

        Args:
            trace_id: of a caller's own trace; calls of one trace are one rollout, which has its id.
            messages: of the request, in OpenAI's chat format; None where the API has none.
            previous: id of an earlier answer that the request names.
        """
        rollout_id = trace_id or self._continued(tenant, messages, previous) or new_event_id()
        conversation = self._open.get((tenant, rollout_id))
        if conversation is None:
            conversation = Conversation(tenant, rollout_id, trace_id, time.monotonic())
            self._open[tenant, rollout_id] = conversation
        conversation.busy += 1
        conversation.calls += 1
        return conversation

    def heard(self, tenant: str, trace_id: str) -> None:
        """Note that a span of a trace came: a trace is a rollout whether or not its calls go
        through here.
        """
        conversation = self._open.setdefault(
            (tenant, trace_id), Conversation(tenant, trace_id, trace_id, time.monotonic())
        )
        conversation.last = time.monotonic()
        self._open.move_to_end((tenant, trace_id))

    def answered(
        self,
        conversation: Conversation,
        messages: list[dict[str, Any]] | None,
        answers: list[dict[str, Any]],
        answer_id: str | None,
        failed: bool,
    ) -> None:
        """Note that a call has ended, and what continues it: nothing, if its rollout was ended
        meanwhile.
        """
        conversation.busy -= 1
        if not self._is_open(conversation):
            return
        conversation.failed = failed
        conversation.last = time.monotonic()
        self._open.move_to_end((conversation.tenant, conversation.rollout_id))
        for answer in answers if messages is not None else ():
            self._remember(
                _fingerprint(conversation.tenant, [*(messages or ()), answer]), conversation
            )
        if answer_id is not None:
            self._remember(_fingerprint(conversation.tenant, [{"id": answer_id}]), conversation)

    def refused(self, conversation: Conversation) -> None:
        """Note that a call was none after all; a conversation that was this call alone has never
        been.
        """
        conversation.busy -= 1
        conversation.calls -= 1
        if conversation.calls == 0 and conversation.busy == 0 and self._is_open(conversation):
            self.forget(conversation.tenant, conversation.rollout_id)

    def restore(self, tenant: str, rollout_id: str) -> None:
        """Take in a conversation that an earlier process left open."""
        self._open[tenant, rollout_id] = Conversation(tenant, rollout_id, None, time.monotonic())

    def ended(self) -> list[Conversation]:
        """Return the conversations that have been silent long enough, and forget them."""
        before = time.monotonic() - self._idle_s
        ended = []
        for conversation in self._open.values():  # those heard of last are at the end
            if conversation.last > before:
                break
            if conversation.busy == 0:
                ended.append(conversation)
        for conversation in ended:
            self.forget(conversation.tenant, conversation.rollout_id)
        return ended

    def forget(self, tenant: str, rollout_id: str) -> None:
        """Forget a conversation that has ended."""
        conversation = self._open.pop((tenant, rollout_id), None)
        for fingerprint in conversation.said if conversation is not None else ():
            if self._said.get(fingerprint) == rollout_id:
                del self._said[fingerprint]

    def _is_open(self, conversation: Conversation) -> bool:
        # Of one trace another may have begun since: then this one is forgotten all the same.
        return self._open.get((conversation.tenant, conversation.rollout_id)) is conversation

    def _continued(
        self, tenant: str, messages: list[dict[str, Any]] | None, previous: str | None
    ) -> str | None:
        if previous is not None:
            return self._known(tenant, _fingerprint(tenant, [{"id": previous}]))
        for number in range(len(messages or ()), 0, -1):
            assert messages is not None  # noqa: S101 - it has members
            if messages[number - 1].get("role") == "assistant":
                return self._known(tenant, _fingerprint(tenant, messages[:number]))
        return None

    def _known(self, tenant: str, fingerprint: bytes) -> str | None:
        rollout_id = self._said.get(fingerprint)
        return rollout_id if (tenant, rollout_id) in self._open else None

    def _remember(self, fingerprint: bytes, conversation: Conversation) -> None:
        self._said[fingerprint] = conversation.rollout_id
        self._said.move_to_end(fingerprint)
        conversation.said.append(fingerprint)
        if len(self._said) > self._most:
            self._said.popitem(last=False)


def _fingerprint(tenant: str, messages: list[dict[str, Any]]) -> bytes:
    """Return what identifies a conversation: who said and called what, without what clients add or
    leave out.
    """
    said = [
        (
            message.get("id") if "role" not in message else None,
            message.get("role"),
            message.get("content") or "",
            [call.get("id") for call in message.get("tool_calls") or () if isinstance(call, dict)],
        )
        for message in messages
    ]
    return blake2b(orjson.dumps((tenant, said), default=str), digest_size=16).digest()
