"""The ruling: what promotion makes of one event, and the routes that follow from it."""

from datetime import datetime
from typing import Any

from learners.gate import GateConfig
from learners.trial import Comparison
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.gates import GateEvent, GateStatus
from schemas.routes import Route, RouteEvent
from schemas.topics import CHECKPOINTS, GATES, ROUTES
from streams.processing.processor import Processor, output_id
from streams.processors.gate_status import status_of
from streams.processors.promotion_state import PromotionState, apply, behind, heaviest, target_of
from streams.storage.records import Outgoing, Record


class Ruling:
    """What follows from an event for one logical name. A step changes the state at once.

    Attributes:
        changes: of checkpoints' states, in order; already applied.
        routes: what is served from now on.
        statuses: what the gate waits for.
    """

    def __init__(self, state: PromotionState, config: GateConfig) -> None:
        self.state = state
        self.config = config
        self.changes: list[Checkpoint] = []
        self.routes: list[Route] = []
        self.statuses: list[GateStatus] = []

    def change(
        self,
        checkpoint: Checkpoint,
        to: CheckpointState,
        reason: str,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Change a checkpoint's state."""
        changed = Checkpoint(
            name=checkpoint.name,
            version=checkpoint.version,
            kind=checkpoint.kind,
            state=to,
            artifact=checkpoint.artifact,
            endpoint=checkpoint.endpoint,
            metrics=metrics or {},
            reason=reason,
        )
        apply(self.state.registry, changed)
        self.changes.append(changed)

    def begin_trial(self, candidate: Checkpoint, reason: str, sure: bool) -> None:
        """Give a candidate its share of new rollouts beside what is served.

        Args:
            sure: whether held-out rollouts have shown that it earns no less.
        """
        state = self.state
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        self.change(candidate, CheckpointState.CANARY, reason)
        trial = Comparison.of(
            candidate.version,
            heaviest(state.stable),
            state.trials.begin(self.config.error),
            self.config.tolerance,
            self.config.share_beside(heaviest(state.stable)),
            self.config,
        )
        trial.worth_is_sure = sure
        if sure:
            state.screens.win()
        state.comparison = trial
        state.evidence.thinning = 0
        self.write_route(reason)

    def stop_trial(self, version: str, reason: str) -> None:
        """Roll back a version on trial, and leave it out of what is served from now on."""
        state = self.state
        assert state.stable is not None  # noqa: S101 - nothing is tried before that is known
        state.comparison = None
        tried = state.checkpoints.get(version)
        if tried is not None and tried.state is CheckpointState.CANARY:
            self.change(tried, CheckpointState.ROLLED_BACK, reason)
        others = [target for target in state.stable.targets if target.version != version]
        if others:
            state.stable = state.stable.model_copy(update={"targets": others})

    def promote(self, candidate: Checkpoint, reason: str) -> None:
        """Serve a candidate in the place of what is served, and begin to watch it."""
        state = self.state
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        champion, state.replaced = state.registry.promoted, state.stable
        # Before the candidate is promoted: at most one version of a name is.
        if champion is not None:
            self.change(champion, CheckpointState.RETIRED, f"replaced by {candidate.version}")
        self.change(candidate, CheckpointState.PROMOTED, reason)
        state.watched = None
        if self.config.control_share > 0.0:
            state.watched = Comparison.of(
                candidate.version,
                heaviest(state.replaced),
                state.watches.begin(self.config.error),
                self.config.drop,
                1.0 - self.config.control_share,
                self.config,
            )
        served = {"targets": [target_of(candidate)], "fallbacks": behind(state)}
        self.serve(state.stable.model_copy(update=served), reason)

    def serve_replaced(self, reason: str) -> None:
        """Serve again what the promoted version replaced."""
        state = self.state
        assert state.replaced is not None  # noqa: S101 - noted when it was replaced
        before = state.checkpoints.get(heaviest(state.replaced))
        if before is not None:
            self.change(before, CheckpointState.PROMOTED, reason)
        served, state.watched, state.replaced = state.replaced, None, None
        self.serve(served, reason)

    def serve(self, route: Route, reason: str) -> None:
        """Serve a route from now on, with the reason."""
        self.state.stable = route
        self.write_route(reason)

    def write_route(self, reason: str) -> None:
        """Write what is served: the stable route, a candidate on trial beside it, and the control.

        The route carries its history, which must outlive the compaction of the topic.
        """
        state = self.state
        assert state.stable is not None  # noqa: S101 - it is known what is served
        state.stable = state.stable.model_copy(update={"reason": reason, "control": None})
        changes: dict[str, object] = {}
        if state.comparison is not None:
            candidate = state.checkpoints[state.comparison.new]
            share = state.comparison.share
            total = sum(target.weight for target in state.stable.targets)
            changes["targets"] = [
                *(
                    t.model_copy(update={"weight": t.weight / total * (1.0 - share)})
                    for t in state.stable.targets
                ),
                target_of(candidate).model_copy(update={"weight": share}),
            ]
            changes["fallbacks"] = behind(state)
        if state.watched is not None and state.replaced is not None:
            control = max(state.replaced.targets, key=lambda target: target.weight)
            changes["control"] = control.model_copy(update={"weight": self.config.control_share})
        route = state.stable.model_copy(update=changes)
        state.current = route.with_history_after(state.current)
        self.routes.append(state.current)

    def tell(self, name: str) -> None:
        """Tell what the gate waits for, where that has changed."""
        status, sign = status_of(name, self.state, self.config)
        if sign != self.state.told:
            self.state.told = sign
            self.statuses.append(status)

    def outputs(
        self, processor: Processor[Any], source: Record, time: datetime
    ) -> tuple[Outgoing, ...]:
        """Return the events that say what follows, and note those that will come back."""
        said = (
            [(CHECKPOINTS, CheckpointEvent, made) for made in self.changes]
            + [(ROUTES, RouteEvent, route) for route in self.routes]
            + [(GATES, GateEvent, status) for status in self.statuses]
        )
        outputs = tuple(
            Outgoing.of(
                topic,
                payload.name,
                model(
                    event_id=output_id(processor, source, time, index), time=time, payload=payload
                ),
            )
            for index, (topic, model, payload) in enumerate(said)
        )
        # Promotion reads the topics that it writes. Its own events must not be taken for changes by
        # a person.
        self.state.own += [o.event_id for o in outputs if o.topic is not GATES]
        return outputs
