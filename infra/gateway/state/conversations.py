"""Rollouts of agents that name no rollout. The calls of one conversation, or of one trace, are one
rollout.

An agent that only changes its base URL names no rollout, but it sends the whole conversation with
each request. A request continues a conversation if it begins with the messages and the answer of an
earlier request, and comes from the same user with the same key. Two open conversations may have
said the same. Then a request that continues them begins a new rollout, because a reward must never
go to somebody else's. A rollout ends when nothing has continued it for a while.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from schemas.identifiers import new_event_id

AGENT = "conversation"
"""Name of the agent of rollouts that the gateway began by itself."""

IDENTITY = ("user", "safety_identifier", "prompt_cache_key", "metadata")
"""Members of a request that say whose conversation it is."""

Messages = list[dict[str, Any]]


class Transcript:
    """A request's conversation, as hashes.

    Args:
        key_id: the caller's key, if it has one.
        body: the request.
        messages: of the request, in OpenAI's chat format; None where the API has none.

    Attributes:
        continues: hash of the answer that the request continues; None if it continues none.
    """

    def __init__(
        self, tenant: str, key_id: str | None, body: dict[str, Any], messages: Messages | None
    ) -> None:
        self._speaker = [tenant, key_id]
        self._has_messages = messages is not None
        self.continues: bytes | None = None
        # One hash goes over all messages, so a long conversation is read once. An answer is named
        # by what was said before it and by itself.
        before = blake2b(
            _encoded([*self._speaker, [body.get(name) for name in IDENTITY]]), digest_size=16
        )
        last = max(
            (n for n, m in enumerate(messages or ()) if m.get("role") == "assistant"), default=None
        )
        for number, message in enumerate(messages or ()):
            if number == last:
                self.continues = _name(before.digest(), message)
            before.update(_encoded(_essence(message)))
        self._before = before.digest()
        # A request that names an earlier answer continues that one, and says so more surely than
        # by what it repeats.
        if (previous := body.get("previous_response_id")) is not None:
            self.continues = self._named(previous)

    def after(self, answers: Iterable[dict[str, Any]], answer_id: str | None) -> list[bytes]:
        """Return the hashes by which later requests continue one of these answers.

        Args:
            answers: the assistant's messages, in OpenAI's chat format.
        """
        found = [_name(self._before, answer) for answer in answers if self._has_messages]
        return [*found, self._named(answer_id)] if answer_id is not None else found

    def _named(self, answer_id: Any) -> bytes:
        return blake2b(_encoded([*self._speaker, {"id": answer_id}]), digest_size=16).digest()


@dataclass
class Conversation:
    """An open rollout that the gateway began.

    Attributes:
        tenant: whose it is.
        last: when it was last heard of, on the monotonic clock.
        calls: how many there were, as far as this process knows.
        busy: calls under way.
        failed: whether the last one failed.
        said: what it is found by (`Transcript.after`); forgotten with it.
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
        self._said: OrderedDict[bytes, set[str]] = OrderedDict()

    def join(self, tenant: str, trace_id: str | None, continues: bytes | None) -> Conversation:
        """Return the conversation that a call belongs to; a new one if it continues none.

        Args:
            trace_id: of a caller's own trace; calls of one trace are one rollout, which has its id.
            continues: what the request continues (`Transcript.continues`).
        """
        # A trace is the surer sign: the agent itself says that its calls belong together.
        rollout_id = trace_id or self._find_continued(tenant, continues) or new_event_id()
        conversation = self._open.get((tenant, rollout_id))
        if conversation is None:
            conversation = Conversation(tenant, rollout_id, trace_id, time.monotonic())
            self._open[tenant, rollout_id] = conversation
        conversation.busy += 1
        conversation.calls += 1
        return conversation

    def note_span(self, tenant: str, trace_id: str) -> None:
        """Note a span of a trace. A trace is a rollout even if no call passes the gateway."""
        conversation = self._open.setdefault(
            (tenant, trace_id), Conversation(tenant, trace_id, trace_id, time.monotonic())
        )
        conversation.last = time.monotonic()
        self._open.move_to_end((tenant, trace_id))

    def note_answer(self, conversation: Conversation, said: Iterable[bytes], failed: bool) -> None:
        """Note that a call has ended. If its rollout was ended meanwhile, nothing continues it.

        Args:
            said: hashes by which later requests continue it (`Transcript.after`).
        """
        conversation.busy -= 1
        if not self._is_open(conversation):
            return
        conversation.failed = failed
        conversation.last = time.monotonic()
        self._open.move_to_end((conversation.tenant, conversation.rollout_id))
        for one in said:
            self._remember(one, conversation)

    def withdraw_call(self, conversation: Conversation) -> None:
        """Take a call back that was refused. A conversation that had no other call is forgotten."""
        conversation.busy -= 1
        conversation.calls -= 1
        if conversation.calls == 0 and conversation.busy == 0 and self._is_open(conversation):
            self.forget(conversation.tenant, conversation.rollout_id)

    def restore(self, tenant: str, rollout_id: str) -> None:
        """Take in a conversation that an earlier process left open."""
        self._open[tenant, rollout_id] = Conversation(tenant, rollout_id, None, time.monotonic())

    def take_ended(self) -> list[Conversation]:
        """Return the conversations that have been silent long enough, and forget them."""
        before = time.monotonic() - self._idle_s
        ended = []
        for conversation in self._open.values():  # those heard of last are at the end
            if conversation.last > before:
                break
            # A long stream says nothing until it ends.
            if conversation.busy == 0:
                ended.append(conversation)
        for conversation in ended:
            self.forget(conversation.tenant, conversation.rollout_id)
        return ended

    def forget(self, tenant: str, rollout_id: str) -> None:
        """Forget a conversation that has ended."""
        conversation = self._open.pop((tenant, rollout_id), None)
        for one in conversation.said if conversation is not None else ():
            if (sayers := self._said.get(one)) is not None:
                sayers.discard(rollout_id)
                if not sayers:
                    del self._said[one]

    def _is_open(self, conversation: Conversation) -> bool:
        # Of one trace another may have begun since: then this one is forgotten all the same.
        return self._open.get((conversation.tenant, conversation.rollout_id)) is conversation

    def _find_continued(self, tenant: str, continues: bytes | None) -> str | None:
        """Return the one open conversation that has said this; None where several have."""
        sayers = self._said.get(continues) if continues is not None else None
        if sayers is None or len(sayers) > 1:
            return None
        (rollout_id,) = sayers
        return rollout_id if (tenant, rollout_id) in self._open else None

    def _remember(self, one: bytes, conversation: Conversation) -> None:
        sayers = self._said.setdefault(one, set())
        if conversation.rollout_id not in sayers:
            sayers.add(conversation.rollout_id)
            conversation.said.append(one)
        self._said.move_to_end(one)
        if len(self._said) > self._most:
            self._said.popitem(last=False)


def _essence(message: dict[str, Any]) -> list[Any]:
    """Return who said and called what, without what clients add or leave out."""
    calls = message.get("tool_calls") or ()
    # The ids alone: clients write the arguments of a call anew, with other spaces.
    called = [call.get("id") for call in calls if isinstance(call, dict)]
    return [message.get("role"), message.get("content") or "", called]


def _name(before: bytes, answer: dict[str, Any]) -> bytes:
    return blake2b(before + _encoded(_essence(answer)), digest_size=16).digest()


def _encoded(value: Any) -> bytes:
    return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS)
