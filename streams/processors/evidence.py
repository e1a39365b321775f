"""Evidence: what is known of the rollouts of one logical name, and how old a rollout must be before
it counts.
"""

from collections.abc import Callable
from datetime import datetime
from hashlib import blake2b
from math import ceil

from pydantic import BaseModel, Field

from learners.gate import GateConfig
from learners.logged import Logged
from learners.trial import Result
from schemas.decisions import Decision
from schemas.outcomes import OutcomeEvent, RolloutOutcome
from schemas.rollouts import RolloutState

DELAYS_REMEMBERED = 256
BEGINNINGS_REMEMBERED = 32
MOST_YOUNG = 2000
"""Rollouts that are followed until they are old enough. They lie in the state of a processor."""

COMMON_DELAY = 0.95
"""Share of the rewards that come by the learned age."""

FIRST_MATURITY_S = 60.0
"""Age at which rollouts count while no delay of a reward is known."""

LEAST_MATURITY_S = 1.0

MARGIN = 1.25
"""The learned age is so many times that common delay. The rewards that come first are the quick
ones, and a busy machine is slower than it was. Without a margin, 12 to 20 % of rewards were missing
at their age, and trials took long to see that they were missing for both versions alike.
"""

SETTLING_S = 5.0
"""Outcomes of a rollout may come a little later than those of younger ones: other partitions, other
processes. So much later its last one is still waited for.
"""

SETTLING_SHARE = 0.1
"""The same, as a share of the age, where ages are long."""

Worth = Callable[[RolloutOutcome], float]
"""What a rewarded rollout is compared by, in [0, 1]."""


MOST_HELD_CHARACTERS = 4_000_000
"""Text of all held-out decisions that are kept, for the same reason."""


class HeldOut(BaseModel):
    """A held-out rollout with its decisions.

    Attributes:
        size: characters of its decisions' texts.
    """

    begun: float
    worth: float
    decisions: list[Decision]
    size: int = 0


class Young(BaseModel):
    """A rollout in a comparison that is not old enough yet; `worth` and `failed` as in `Result`."""

    version: str
    begun: float
    worth: float | None = None
    failed: bool = False


class Evidence(BaseModel):
    """What is known of the rollouts of one logical name. Times are in seconds since the epoch.

    Attributes:
        held_out: by rollout, the newest last.
        heard: how many held-out rollouts there ever were.
        young: by rollout, those that take part in a comparison and are not old enough.
        thinning: of the rollouts to follow, one in 2^thinning is followed, chosen by its name.
        delays: seconds from the beginning of rollouts to their rewards, of the newest rewards.
        beginnings: of the newest rollouts.
        maturity: age at which a rollout counts, in seconds.
        latest: time of the newest outcome, which is what the time is taken to be.
        counted: when the youngest rollout began that was old enough. What began earlier has been
            counted, or came too late to be.
        late: how many rollouts came too late, since the age was set.
    """

    held_out: dict[str, HeldOut] = Field(default_factory=dict)
    heard: int = 0
    young: dict[str, Young] = Field(default_factory=dict)
    thinning: int = 0
    delays: list[float] = Field(default_factory=list)
    beginnings: list[float] = Field(default_factory=list)
    maturity: float = FIRST_MATURITY_S
    latest: float = 0.0
    counted: float = 0.0
    late: int = 0

    def take(self, event: OutcomeEvent, worth: Worth, config: GateConfig) -> None:
        """Take in what a rollout came to, except for comparisons."""
        outcome, begun = event.payload, event.payload.begun.timestamp()
        self.latest = max(self.latest, event.time.timestamp())
        if outcome.state is RolloutState.STARTED and outcome.reward is None:
            # Told when a name is first used, so once for each rollout.
            self.beginnings = [*self.beginnings, begun][-BEGINNINGS_REMEMBERED:]
        if outcome.rewarded == event.time and not outcome.corrected:  # told for its first reward
            delay = max(0.0, event.time.timestamp() - begun)
            self.delays = [*self.delays, delay][-DELAYS_REMEMBERED:]
        if outcome.split == "validation":
            self._hold_out(event.rollout_key, outcome, worth, config)

    def _hold_out(
        self, rollout: str, outcome: RolloutOutcome, worth: Worth, config: GateConfig
    ) -> None:
        value = worth_of(outcome, worth, config)
        if value is None or not outcome.decisions:
            self.held_out.pop(rollout, None)
            return
        self.heard += rollout not in self.held_out
        # A correction keeps its place: the order of a bet is fixed.
        self.held_out[rollout] = HeldOut(
            begun=outcome.begun.timestamp(),
            worth=value,
            decisions=outcome.decisions,
            size=sum(
                len(d.context) + sum(len(c.text) for c in d.candidates) for d in outcome.decisions
            ),
        )
        size = sum(held.size for held in self.held_out.values())
        while len(self.held_out) > config.most_evidence or (
            size > MOST_HELD_CHARACTERS and len(self.held_out) > 1
        ):
            size -= self.held_out.pop(next(iter(self.held_out))).size

    def knows_delays(self, config: GateConfig) -> bool:
        """Return whether it is known how long rewards take."""
        return config.maturity is not None or bool(self.delays)

    def learn_maturity(self, config: GateConfig) -> None:
        """Set the age at which rollouts count. It is done when a candidate is judged, and not while
        one is on trial, so that nothing is tried at an age that its own rewards have chosen. A
        watch may go on meanwhile; its age changes for both versions alike.
        """
        self.late = 0
        if config.maturity is not None:
            self.maturity = config.maturity.total_seconds()
        elif self.delays:
            common = sorted(self.delays)[ceil(COMMON_DELAY * len(self.delays)) - 1]
            self.maturity = max(LEAST_MATURITY_S, MARGIN * common)

    def follow(self, event: OutcomeEvent, worth: Worth, config: GateConfig) -> None:
        """Follow a rollout of a comparison until it is old enough."""
        outcome, rollout = event.payload, event.rollout_key
        begun = outcome.begun.timestamp()
        if not _is_followed(rollout, self.thinning):
            return
        if begun <= self.counted:
            # Its first outcome. Later ones of a rollout that was counted come here too.
            self.late += outcome.state is RolloutState.STARTED and outcome.reward is None
            return
        value = worth_of(outcome, worth, config)
        came = outcome.rewarded.timestamp() if outcome.rewarded is not None else begun
        if came - begun > self.maturity:
            # It came later than counts. What was known at that age stays.
            known = self.young.get(rollout)
            at_end = config.failed_reward if failed(outcome) else None
            value = known.worth if known is not None else at_end
        self.young[rollout] = Young(
            version=outcome.version, begun=begun, worth=value, failed=failed(outcome)
        )
        while len(self.young) > MOST_YOUNG:
            # Chosen by name, so that nothing about the rollouts has a say in which are left out.
            self.thinning += 1
            self.young = {r: y for r, y in self.young.items() if _is_followed(r, self.thinning)}

    def matured(self) -> list[tuple[float, Result]]:
        """Return the rollouts that are old enough now, with when they began, and follow them no
        more.
        """
        before = self.latest - self.maturity - max(SETTLING_S, SETTLING_SHARE * self.maturity)
        old = sorted((y.begun, rollout) for rollout, y in self.young.items() if y.begun <= before)
        found = [(begun, self.young.pop(rollout)) for begun, rollout in old]
        self.counted = max([self.counted, *(begun for begun, _ in found)])
        return [(begun, Result(y.version, y.worth, y.failed)) for begun, y in found]

    @property
    def usable(self) -> int:
        """How many held-out rollouts were ever old enough to be judged by."""
        return self.heard - sum(not self._is_old(h) for h in self.held_out.values())

    def logged(self) -> list[Logged]:
        """Return the decisions of the held-out rollouts that are old enough."""
        return [
            Logged(decision, held.worth, rollout)
            for rollout, held in self.held_out.items()
            if self._is_old(held)
            for decision in held.decisions
        ]

    def _is_old(self, held: HeldOut) -> bool:
        return held.begun + self.maturity <= self.latest

    @property
    def per_hour(self) -> float | None:
        """How many rollouts begin in an hour, by the latest ones; None while that is unknown."""
        if len(self.beginnings) < 2:
            return None
        span = max(self.beginnings) - min(self.beginnings)
        return 3600.0 * (len(self.beginnings) - 1) / span if span > 0 else None

    @property
    def followed_per_hour(self) -> float | None:
        """How many of them are followed in a comparison; see `thinning`."""
        return None if self.per_hour is None else self.per_hour / (1 << self.thinning)


def dated(event: OutcomeEvent, arrived: datetime) -> OutcomeEvent:
    """Return an outcome in which nothing lies in the future.

    A gateway's clock may be wrong, and the newest outcome says what time it is. One from next year
    would make everything after it too old to count.

    Args:
        arrived: when it was written to the log.
    """
    outcome = event.payload
    if event.time <= arrived and outcome.begun <= event.time:
        return event
    time = min(event.time, arrived)
    rewarded = None if outcome.rewarded is None else min(outcome.rewarded, time)
    dates = {"begun": min(outcome.begun, time), "rewarded": rewarded}
    return event.model_copy(update={"time": time, "payload": outcome.model_copy(update=dates)})


def failed(outcome: RolloutOutcome) -> bool:
    """Return whether a rollout failed by its own fault or by that of what served it.

    A limit that was reached and a caller who hung up say nothing of the version. A fallback that
    answers in its place does.
    """
    if outcome.replaced:
        return True
    return outcome.state is RolloutState.FAILED and outcome.fault not in ("limit", "caller")


def worth_of(outcome: RolloutOutcome, worth: Worth, config: GateConfig) -> float | None:
    """Return what a rollout counts; None where its reward has not come, and it has not failed."""
    if outcome.reward is not None:
        return worth(outcome)
    return config.failed_reward if failed(outcome) else None


def _is_followed(rollout: str, thinning: int) -> bool:
    number = int.from_bytes(blake2b(rollout.encode(), digest_size=8).digest())
    return number % (1 << thinning) == 0
