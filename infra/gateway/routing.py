"""Routing: the `routes` topic folded into memory, rollouts pinned to what they began with."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType

import structlog

from infra.gateway.problems import ProblemError
from infra.threads import vital_thread
from learners.contract import Policy
from learners.policies import UniformPolicy, load_policy
from schemas.rollouts import TERMINAL, Recorded, RolloutEvent
from schemas.routes import Endpoint, Route, RouteEvent
from schemas.serialization import UndecodableError, decode_all
from schemas.topics import DECISIONS, ROLLOUTS, ROUTES, SPANS
from streams.artifacts import ArtifactReader
from streams.errors import LogUnavailableError, RejectedRecordError
from streams.log import Log, read_all

PINS_REMEMBERED = 100_000
log_event = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Target:
    """One version that can serve: an endpoint for models, a policy for policies."""

    version: str
    weight: float
    endpoint: Endpoint | None = None
    policy: Policy | None = None


@dataclass(frozen=True)
class LoadedRoute:
    """A route with its policies in memory."""

    name: str
    kind: str
    targets: tuple[Target, ...]

    def target_for(self, rollout_id: str) -> Target:
        """Return the target of a rollout: always the same one, by weight over many rollouts."""
        total = sum(target.weight for target in self.targets)
        draw = unit_draw(self.name, rollout_id) * total
        for target in self.targets:
            draw -= target.weight
            if draw < 0:
                return target
        return self.targets[-1]


Pins = Mapping[str, Target]


class RoutingTable:
    """What is served now, and what each open rollout is pinned to.

    A switch is one assignment of `_routes`; a request reads it once. A rollout's pins are taken when it begins and do
    not change while it lasts, so it never sees two versions of one name.
    """

    def __init__(self, artifacts: ArtifactReader) -> None:
        self._artifacts = artifacts
        self._routes: Mapping[str, LoadedRoute] = MappingProxyType({})
        self._versions: dict[tuple[str, str], Target] = {}
        self._pins: OrderedDict[str, Pins] = OrderedDict()
        self._begun: dict[str, Counter[str] | None] = {}
        self._lock = threading.Lock()
        self.switches = 0

    @property
    def routes(self) -> Mapping[str, LoadedRoute]:
        """What is served now, by logical name."""
        return self._routes

    def apply(self, route: Route) -> None:
        """Take a route into service; a route that cannot be served changes nothing and is logged."""
        try:
            targets = tuple(self._load(route, index) for index in range(len(route.targets)))
        except (ValueError, RejectedRecordError) as error:
            log_event.error("route refused, the old one serves on", name=route.name, error=str(error))
            return
        loaded = LoadedRoute(route.name, route.kind, targets)
        before = self._routes.get(route.name)
        if before == loaded:
            return
        self._versions.update({(route.name, target.version): target for target in targets})
        self._routes = MappingProxyType({**self._routes, route.name: loaded})
        if before is not None:
            self.switches += 1
            log_event.info("switched", name=route.name, versions=[target.version for target in targets])

    def pin(self, rollout_id: str) -> Pins:
        """Return what a rollout is pinned to, pinning it to what is served now if it is new."""
        with self._lock:
            pins = self._pins.get(rollout_id)
            if pins is None:
                pins = {name: route.target_for(rollout_id) for name, route in self._routes.items()}
                self._remember(rollout_id, pins)
            return pins

    def begin(self, rollout_id: str) -> None:
        """Note that a rollout's beginning has been recorded; from now on its events are counted."""
        self.pin(rollout_id)
        self._begun.setdefault(rollout_id, Counter())

    def count(self, rollout_id: str, topic: str, events: int) -> None:
        """Note that events of a rollout were recorded."""
        counts = self._begun.get(rollout_id)
        if counts is not None:
            counts[topic] += events

    def recorded(self, rollout_id: str) -> Recorded | None:
        """Return what was recorded of an open rollout; None if it began before this process did, or not here."""
        counts = self._begun.get(rollout_id)
        return None if counts is None else Recorded(spans=counts[SPANS.name], decisions=counts[DECISIONS.name])

    def knows_begun(self, rollout_id: str) -> bool:
        """Return whether a rollout is open and its beginning recorded."""
        return rollout_id in self._begun

    def restore(self, rollout_id: str, versions: Mapping[str, str]) -> None:
        """Pin a rollout that began before this process did, as far as its versions are still known."""
        known = {
            name: self._versions[name, version]
            for name, version in versions.items()
            if (name, version) in self._versions
        }
        with self._lock:
            self._remember(rollout_id, {**{n: r.target_for(rollout_id) for n, r in self._routes.items()}, **known})
            self._begun[rollout_id] = None

    def release(self, rollout_id: str) -> None:
        """Forget an ended rollout."""
        with self._lock:
            self._pins.pop(rollout_id, None)
            self._begun.pop(rollout_id, None)

    def resolve(self, name: str, kind: str, rollout_id: str) -> Target:
        """Return what serves a logical name for a rollout.

        Raises:
            ProblemError: 404, there is no such name.
        """
        target = self.pin(rollout_id).get(name)
        route = self._routes.get(name)
        if target is None and route is not None:
            target = route.target_for(rollout_id)  # announced after the rollout began
        if target is None or route is None or route.kind != kind:
            names = ", ".join(sorted(r.name for r in self._routes.values() if r.kind == kind)) or "none"
            raise ProblemError(404, f"Unknown {kind}", f"there is no {kind} {name!r}; there are: {names}")
        return target

    def _load(self, route: Route, index: int) -> Target:
        target = route.targets[index]
        known = self._versions.get((route.name, target.version))
        if route.kind == "policy":
            if known is not None and known.policy is not None:
                policy = known.policy
            elif target.artifact is not None:
                policy = load_policy(self._artifacts.get(target.artifact), target.artifact.media_type)
            else:
                policy = UniformPolicy()
            return Target(target.version, target.weight, policy=policy)
        if target.endpoint is None:
            raise ValueError(f"model {route.name} {target.version} has no endpoint")
        return Target(target.version, target.weight, endpoint=target.endpoint)

    def _remember(self, rollout_id: str, pins: Pins) -> None:
        self._pins[rollout_id] = pins
        if len(self._pins) > PINS_REMEMBERED:
            forgotten, _ = self._pins.popitem(last=False)
            self._begun.pop(forgotten, None)


class RouteFollower:
    """Keeps a routing table at the end of the `routes` topic, from a thread of its own."""

    def __init__(self, table: RoutingTable, open_log: Callable[[], Log], poll_s: float = 0.25) -> None:
        self._table = table
        self._open_log = open_log
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._positions: dict[tuple[str, int], int] = {}
        self._begun = False
        self._thread = vital_thread("route-follower", self._run)

    def start(self) -> None:
        """Catch up, so that the first request already sees what was served last; then follow."""
        try:
            with self._open_log() as log:
                self._begin(log)
        except LogUnavailableError as error:
            log_event.warning("cannot read the routes yet; nothing is served", error=str(error))
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        log: Log | None = None
        while not self._stop.is_set():
            try:
                log = log or self._open_log()
                if not self._begun:
                    self._begin(log)
                self._catch_up(log, self._poll_s)
            except LogUnavailableError as error:
                log_event.warning("cannot follow routes; what is served stays", error=str(error))
                log = None
                self._stop.wait(1.0)
        if log is not None:
            log.close()

    def _begin(self, log: Log) -> None:
        """Take in what was served, then pin what began under it: in this order, since pins name versions."""
        self._catch_up(log)
        self._restore_pins(log)
        self._begun = True

    def _catch_up(self, log: Log, wait_s: float = 0.0) -> None:
        positions = {(ROUTES.name, partition): 0 for partition in range(ROUTES.partitions)} | self._positions
        while records := log.fetch(positions, 500, wait_s):
            wait_s = 0.0
            for record in records:
                positions[record.topic, record.partition] = record.offset + 1
                if record.value is None:
                    continue
                try:
                    for event in decode_all(RouteEvent, record.value):
                        self._table.apply(event.payload)
                except UndecodableError as error:
                    log_event.error("route skipped", record=record.position, error=str(error))
        self._positions = positions

    def _restore_pins(self, log: Log) -> None:
        """Pin rollouts that are still open to what they began with."""
        opened: dict[str, dict[str, str]] = {}
        for record in read_all(log, ROLLOUTS.name):
            try:
                changes = decode_all(RolloutEvent, record.value)
            except UndecodableError:
                continue  # the join makes it a dead letter
            for change in changes:
                if change.payload.state in TERMINAL:
                    opened.pop(change.rollout_id, None)
                else:
                    opened.setdefault(change.rollout_id, {}).update(change.payload.checkpoints)
        for rollout_id, versions in opened.items():
            self._table.restore(rollout_id, versions)


def unit_draw(*parts: str) -> float:
    """Return a number in [0, 1) that these parts always give, uniform over different parts."""
    digest = blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
