"""How much a key may ask: requests and tokens a minute, and money a month."""

import secrets
import threading
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from infra.gateway.http.problems import ProblemError
from schemas.clock import now
from schemas.keys import ApiKey, Usage, UsageEvent


@dataclass
class Spent:
    """What a key has used in a month."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class Limits:
    """Counts what keys use.

    Each gateway process counts rates for itself. Costs are shared: each process writes its own
    sums to a topic and adds what the others wrote. So a key exceeds its budget by no more than the
    calls that are under way at once.
    """

    def __init__(self) -> None:
        # A restarted gateway is a new counter. It begins at 0, and what it counted before stays in
        # the sum under the old name.
        self._counter = secrets.token_hex(4)
        self._rates = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._own: dict[tuple[str, str], Spent] = {}
        self._others: dict[tuple[str, str], dict[str, float]] = {}
        self._changed: set[tuple[str, str]] = set()
        # `add_usage` and `take_changes` each read and write both maps; neither may see the other
        # half-way.
        self._lock = threading.Lock()

    def check(self, key: ApiKey | None) -> None:
        """Count a request.

        Raises:
            ProblemError: 402, the key's budget is used up; 429 with `retry-after`, it is over a
                rate.
        """
        if key is None:
            return
        if key.budget is not None and (cost := self.cost(key.id)) >= key.budget:
            raise ProblemError(
                402,
                "Budget used up",
                f"key {key.id} has cost {cost:.4f} of {key.budget} this month; raise its budget",
            )
        if key.tokens_per_minute is not None:
            tokens = RateLimitItemPerMinute(key.tokens_per_minute)
            if not self._rates.test(tokens, "tokens", key.id):
                raise self._too_many(tokens, "tokens", key.id)
        if key.requests_per_minute is not None:
            requests = RateLimitItemPerMinute(key.requests_per_minute)
            if not self._rates.hit(requests, "requests", key.id):
                raise self._too_many(requests, "requests", key.id)

    def add_usage(
        self, key: ApiKey | None, input_tokens: int, output_tokens: int, cost: float
    ) -> None:
        """Count what a call used. Call it when the answer has ended."""
        if key is None:
            return
        if key.tokens_per_minute is not None and input_tokens + output_tokens > 0:
            item = RateLimitItemPerMinute(key.tokens_per_minute)
            # A hit that exceeds the window counts nothing at all. So it is cut to what is left.
            left = self._rates.get_window_stats(item, "tokens", key.id).remaining
            self._rates.hit(
                item, "tokens", key.id, cost=min(input_tokens + output_tokens, max(left, 1))
            )
        with self._lock:
            spent = self._own.setdefault((key.id, _month()), Spent())
            spent.requests += 1
            spent.input_tokens += input_tokens
            spent.output_tokens += output_tokens
            spent.cost += cost
            self._changed.add((key.id, _month()))

    def cost(self, key_id: str) -> float:
        """Return what a key has cost this month, over all gateways."""
        place = (key_id, _month())
        own = self._own.get(place)
        return (own.cost if own else 0.0) + sum(self._others.get(place, {}).values())

    def apply(self, usage: Usage) -> None:
        """Add what another process, or an earlier one, has counted."""
        if usage.counter != self._counter:
            self._others.setdefault((usage.key_id, usage.month), {})[usage.counter] = usage.cost

    def take_changes(self) -> list[UsageEvent]:
        """Return the sums that changed since the last call."""
        with self._lock:
            places, self._changed = self._changed, set()
            return [
                UsageEvent(
                    payload=Usage(
                        key_id=key,
                        month=month,
                        counter=self._counter,
                        **vars(self._own[key, month]),
                    )
                )
                for key, month in sorted(places)
            ]

    def _too_many(self, item: RateLimitItemPerMinute, what: str, key_id: str) -> ProblemError:
        reset = self._rates.get_window_stats(item, what, key_id).reset_time
        wait = max(1, round(reset - now().timestamp()))
        return ProblemError(
            429,
            "Rate limit reached",
            f"key {key_id} may use {item.amount} {what} a minute; try again in {wait} s",
            {"retry-after": str(wait)},
        )


def _month() -> str:
    return now().strftime("%Y-%m")
