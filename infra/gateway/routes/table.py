"""The routing table: what serves each logical name now, and the pins of each open rollout."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import structlog

from infra.gateway.http.egress import check_address
from infra.gateway.http.problems import ProblemError
from infra.gateway.routes.targets import LoadedRoute, PolicySource, Target
from learners.policies import BUILT_IN, PolicyLoader, UniformPolicy
from schemas.endpoints import Endpoint
from schemas.rollouts import Fault, Recorded, Split
from schemas.routes import STAND_IN, Choice, Route, RouteTarget
from schemas.topics import DECISIONS, SPANS
from streams.storage.artifacts import ArtifactReader
from streams.storage.errors import RejectedRecordError

ROLLOUTS_REMEMBERED = 100_000
VERSIONS_REMEMBERED = 256
logger = structlog.get_logger(__name__)


Pins = Mapping[str, Target]


@dataclass(slots=True)
class PinnedRollout:
    """What is known of a rollout that has not ended.

    Attributes:
        pins: the target of each logical name, taken when the rollout began. A name that was
            announced later is pinned when the rollout first uses it.
        begun: whether its beginning is recorded.
        counts: its events by topic; None if it began before this process did, or elsewhere.
        group: experiment arm.
        split_chosen: whether the agent named the split.
        assigned: the logical names it has used, whose versions are recorded.
        fault: why its last call failed; None after a call that worked.
    """

    pins: Pins
    begun: bool = False
    counts: Counter[str] | None = field(default_factory=Counter)
    group: str = "default"
    split: Split = "train"
    split_chosen: bool = False
    assigned: tuple[str, ...] = ()
    fault: Fault | None = None


class RoutingTable:
    """What is served now, and what each open rollout is pinned to.

    A switch is one assignment of `_routes`; a request reads it once. A rollout's pins are taken
    when it begins and do not change while it lasts, so it never sees two versions of one name.
    Rollouts are named by their keys (`schemas.envelope.rollout_key`), so tenants do not meet.
    """

    def __init__(
        self,
        artifacts: ArtifactReader,
        policies: PolicyLoader = BUILT_IN,
        stand_in: Endpoint | None = None,
    ) -> None:
        self._stand_in = stand_in
        self._artifacts = artifacts
        self._policies = policies
        self._routes: Mapping[str, LoadedRoute] = MappingProxyType({})
        self._only: Pins | None = MappingProxyType({})
        self._versions: OrderedDict[tuple[str, str], Target] = OrderedDict()
        self._rollouts: OrderedDict[str, PinnedRollout] = OrderedDict()
        self._lock = threading.Lock()
        self.switches = 0

    @property
    def routes(self) -> Mapping[str, LoadedRoute]:
        """What is served now, by logical name."""
        return self._routes

    def apply(self, route: Route) -> None:
        """Take a route into service. One that cannot be served is logged and changes nothing."""
        try:
            targets, fallbacks, shadows = (
                tuple(self._load(route, target) for target in of)
                for of in (route.targets, route.fallbacks, route.shadows)
            )
            control = self._load(route, route.control) if route.control is not None else None
            loaded = LoadedRoute(
                route.name,
                route.kind,
                targets,
                fallbacks,
                shadows,
                route.held,
                route.choice,
                control,
            )
        except (ValueError, RejectedRecordError) as error:
            logger.error("route refused, the old one serves on", name=route.name, error=str(error))
            return
        before = self._routes.get(route.name)
        # A gateway that restarts reads every route again. That is no switch.
        if before == loaded:
            return
        self._know(loaded)
        routes = {**self._routes, route.name: loaded}
        single = all(len(known.targets) == 1 and not known.control for known in routes.values())
        # Where nothing is drawn, all rollouts that begin now share one mapping.
        self._only = (
            MappingProxyType({name: known.targets[0] for name, known in routes.items()})
            if single
            else None
        )
        # Last, and in one assignment: a request that reads it sees the old routes or the new ones.
        self._routes = MappingProxyType(routes)
        if before is not None:
            self.switches += 1
            logger.info(
                "switched", name=route.name, versions=[target.version for target in loaded.targets]
            )

    def pin(self, rollout: str) -> Pins:
        """Return a rollout's pins. A new rollout is pinned to what serves now."""
        return self._open_rollout(rollout).pins

    def begin(
        self,
        rollout: str,
        group: str = "default",
        split: Split = "train",
        split_chosen: bool = False,
        assigned: Iterable[str] = (),
    ) -> None:
        """Note that a rollout's beginning has been recorded; from now on its events are counted.

        Args:
            split_chosen: whether the agent named the split.
            assigned: the logical names whose use was recorded with it.
        """
        known = self._open_rollout(rollout)
        known.begun = True
        known.group, known.split, known.split_chosen = group, split, split_chosen
        known.assigned = tuple(assigned)

    def group(self, rollout: str) -> str:
        """Return the experiment arm of a rollout."""
        known = self._rollouts.get(rollout)
        return known.group if known is not None else "default"

    def split(self, rollout: str) -> tuple[Split, bool]:
        """Return the split of a rollout that has begun, and whether its agent named it."""
        known = self._open_rollout(rollout)
        return known.split, known.split_chosen

    def choose_split(self, rollout: str, split: Split) -> None:
        """Note that the agent has named the split."""
        known = self._open_rollout(rollout)
        known.split, known.split_chosen = split, True

    def assign(self, rollout: str, versions: Mapping[str, str]) -> dict[str, str]:
        """Return the versions of the names that this rollout uses for the first time. The caller
        records them.
        """
        known = self._open_rollout(rollout)
        new = {name: version for name, version in versions.items() if name not in known.assigned}
        if new:
            known.assigned = (*known.assigned, *new)
        return new

    def note_fault(self, rollout: str, fault: Fault | None) -> None:
        """Note why the last call of a rollout failed; None if it worked."""
        self._open_rollout(rollout).fault = fault

    def fault(self, rollout: str) -> Fault | None:
        """Return why the last call of an open rollout failed; None if it worked, or if this process
        saw none.
        """
        known = self._rollouts.get(rollout)
        return known.fault if known is not None else None

    def count(self, rollout: str, topic: str, events: int) -> None:
        """Note that events of a rollout were recorded."""
        known = self._rollouts.get(rollout)
        if known is not None and known.begun and known.counts is not None:
            known.counts[topic] += events

    def recorded(self, rollout: str) -> Recorded | None:
        """Return how many events of an open rollout were recorded; None if it began before this
        process did, or elsewhere.
        """
        known = self._rollouts.get(rollout)
        if known is None or not known.begun or known.counts is None:
            return None
        return Recorded(spans=known.counts[SPANS.name], decisions=known.counts[DECISIONS.name])

    def knows_begun(self, rollout: str) -> bool:
        """Return whether a rollout is open and its beginning recorded."""
        known = self._rollouts.get(rollout)
        return known is not None and known.begun

    def restore(
        self,
        rollout: str,
        versions: Mapping[str, str],
        group: str,
        split: Split = "train",
        split_chosen: bool = False,
        assigned: Iterable[str] = (),
    ) -> None:
        """Pin a rollout that began before this process did.

        A version that is not known any more is replaced by what serves now.
        """
        known = {
            name: self._versions[name, version]
            for name, version in versions.items()
            if (name, version) in self._versions
        }
        with self._lock:
            pins = {**self._draw_pins(rollout), **known}
            self._remember(
                rollout,
                PinnedRollout(
                    pins,
                    begun=True,
                    counts=None,
                    group=group,
                    split=split,
                    split_chosen=split_chosen,
                    assigned=tuple(assigned),
                ),
            )

    def release(self, rollout: str) -> None:
        """Forget an ended rollout."""
        with self._lock:
            self._rollouts.pop(rollout, None)

    def resolve(self, name: str, kind: str, rollout: str) -> tuple[Target, LoadedRoute]:
        """Return what serves a logical name for a rollout, and the route it belongs to.

        Raises:
            ProblemError: 404, there is no such name.
        """
        route = self._routes.get(name)
        opened = self._open_rollout(rollout)
        target = opened.pins.get(name)
        if target is None and route is not None:  # announced after the rollout began
            target = route.target_for(rollout)
            opened.pins = {**opened.pins, name: target}
        if target is None or route is None or route.kind != kind:
            if kind == "model" and self.stands_in:
                return self._stand_in_route(name)
            names = (
                ", ".join(
                    sorted(
                        r.name
                        for r in self._routes.values()
                        if r.kind == kind and not self.is_own(r.name)
                    )
                )
                or "none"
            )
            raise ProblemError(
                404, f"Unknown {kind}", f"there is no {kind} {name[:200]!r}; there are: {names}"
            )
        return target, route

    @property
    def stands_in(self) -> bool:
        """Whether the stand-in answers for every model. It does while no model is configured."""
        return self._stand_in is not None and not any(
            route.kind == "model" for route in self._routes.values()
        )

    def _stand_in_route(self, name: str) -> tuple[Target, LoadedRoute]:
        target = Target(STAND_IN, 1.0, endpoint=self._stand_in)
        return target, LoadedRoute(name, "model", (target,))

    def own(self, name: str, tenant: str) -> str:
        """Return the name that a tenant's call leads to: `NAME@TENANT` if there is such a route,
        else the name itself.

        Raises:
            ProblemError: 404, the name is another tenant's own.
        """
        own = f"{name}@{tenant}"
        if own in self._routes:
            return own
        if self.is_own(name) and not name.endswith(f"@{tenant}"):
            # The same answer as for a name that does not exist: tenants must not learn of each
            # other.
            raise ProblemError(404, "Unknown model", f"there is no model {name[:200]!r}")
        return name

    def is_own(self, name: str) -> bool:
        """Return whether a name is some tenant's own version of another."""
        return "@" in name and name in self._routes and name.rpartition("@")[0] in self._routes

    def choice(self, name: str) -> Choice | None:
        """Return the choice that a logical name stands for, if it is one."""
        route = self._routes.get(name)
        return route.choice if route is not None else None

    def pinned(self, name: str) -> Counter[str]:
        """Return how many open rollouts are pinned to each version of a name."""
        with self._lock:
            # Under the lock: another thread may open a rollout while this walks over them.
            pins = [known.pins.get(name) for known in self._rollouts.values()]
        return Counter(target.version for target in pins if target is not None)

    def _open_rollout(self, rollout: str) -> PinnedRollout:
        known = self._rollouts.get(rollout)
        if known is not None:
            return known
        with self._lock:
            known = self._rollouts.get(rollout)
            if known is None:
                known = PinnedRollout(self._draw_pins(rollout))
                self._remember(rollout, known)
            return known

    def _draw_pins(self, rollout: str) -> Pins:
        if self._only is not None:
            return self._only
        return {name: route.target_for(rollout) for name, route in self._routes.items()}

    def _load(self, route: Route, target: RouteTarget) -> Target:
        known = self._versions.get((route.name, target.version))
        if route.kind == "policy":
            # Loaded once: a route that returns to an old version needs no artifact.
            if known is not None and known.policy is not None:
                policy, source = known.policy, known.source
            elif target.artifact is not None:
                source = PolicySource(target.artifact, self._artifacts, self._policies)
                policy = source.load()
            else:
                policy, source = UniformPolicy(), None
            return Target(target.version, target.weight, policy=policy, source=source)
        if route.kind == "choice":
            return Target(target.version, target.weight)
        if target.endpoint is None:
            raise ValueError(f"model {route.name} {target.version} has no endpoint")
        # Here too, because routes come from the log, which others may write.
        check_address(target.endpoint.base_url)
        return Target(target.version, target.weight, endpoint=target.endpoint)

    def _know(self, loaded: LoadedRoute) -> None:
        for target in (*loaded.targets, *((loaded.control,) if loaded.control else ())):
            self._versions[loaded.name, target.version] = target
            self._versions.move_to_end((loaded.name, target.version))
        while len(self._versions) > VERSIONS_REMEMBERED:
            self._versions.popitem(last=False)

    def _remember(self, rollout: str, known: PinnedRollout) -> None:
        self._rollouts[rollout] = known
        if len(self._rollouts) > ROLLOUTS_REMEMBERED:
            self._rollouts.popitem(last=False)
