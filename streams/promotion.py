"""Promotion: candidates pass the gate and a trial or are rejected with a reason; what drops is taken back."""

from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, Field

from learners.contract import Policy
from learners.evaluation import Logged
from learners.gate import GateConfig, Tally, Trial, Watch, judge
from learners.policies import UNIFORM_VERSION, UniformPolicy, load_policy
from learners.registry import IllegalTransitionError, Registry
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.decisions import Decision
from schemas.envelope import AnyEvent
from schemas.examples import BanditExample, Example, ExampleEvent
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.topics import CHECKPOINTS, EXAMPLES, ROUTES, Topic
from streams.artifacts import ArtifactReader
from streams.errors import RejectedRecordError
from streams.processor import Outcome, Processor, output_id
from streams.records import Outgoing, Record

FINISHED_REMEMBERED = 50


class Evidence(BaseModel):
    """A decision on a held-out task, with its reward."""

    decision: Decision
    reward: float


class PromotionState(BaseModel):
    """What is known of one logical name.

    Attributes:
        checkpoints: by version, in the order announced.
        evidence: decision id to the decision and its newest reward, the newest decision last.
        tallies: first rewards of decisions by the version that made them, of versions that may still be compared.
        trial: the canary that is under way.
        waiting: version of the newest candidate that was announced meanwhile.
        watch: over what was promoted last.
        own: ids of the events written here that have not come back on the topic yet.
        held: whether a person decides what is served.
    """

    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)
    evidence: dict[str, Evidence] = Field(default_factory=dict)
    tallies: dict[str, Tally] = Field(default_factory=dict)
    trial: Trial | None = None
    waiting: str | None = None
    watch: Watch | None = None
    own: list[str] = Field(default_factory=list)
    held: bool = False

    @property
    def registry(self) -> Registry:
        """The checkpoints, as their lifecycle knows them; applying a change to it changes the state."""
        return Registry(self.checkpoints)


@dataclass
class Ruling:
    """What follows from an event.

    Attributes:
        changes: of checkpoints' states, in order; already applied.
        routes: what is served from now on.
    """

    changes: list[Checkpoint] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)


class Promotion(Processor[PromotionState]):
    """Lets through what is surely no worse: judged on held-out decisions, then on trial, then watched.

    Each candidate is judged once, when it is announced, off-policy (`learners.gate.judge`). What passes serves a share
    of new rollouts until a sequential test has told whether it is surely no worse than the champion, or worse. What is
    promoted is watched: where it surely earns less than what it replaced, that is served again.

    Other kinds of checkpoint than policies stay candidates until they are promoted by hand: nothing here can tell
    whether they are good. While a person holds the route, what passes is evaluated only.
    """

    name = "promotion"
    topics: ClassVar[tuple[Topic, ...]] = (CHECKPOINTS, EXAMPLES, ROUTES)

    def __init__(self, config: GateConfig, artifacts: ArtifactReader) -> None:
        self.config = config
        self._artifacts = artifacts

    def handle(self, state: PromotionState | None, event: AnyEvent, source: Record) -> Outcome[PromotionState]:
        """Take in a reward or a change made by hand, or judge a candidate."""
        state = state or PromotionState()
        if isinstance(event, ExampleEvent):
            ruling = self._rewarded(state, event.payload)
        elif isinstance(event, RouteEvent):
            ruling = self._routed(state, event.payload)
        elif event.event_id in state.own:
            state.own.remove(event.event_id)
            ruling = Ruling()
        else:
            assert isinstance(event, CheckpointEvent)  # noqa: S101 - the topics hold nothing else
            ruling = self._announced(state, event.payload)
        outputs = tuple(
            Outgoing.of(
                topic,
                payload.name,
                model(event_id=output_id(self, source, event.time, index), time=event.time, payload=payload),
            )
            for index, (topic, model, payload) in enumerate(
                [(CHECKPOINTS, CheckpointEvent, change) for change in ruling.changes]
                + [(ROUTES, RouteEvent, route) for route in ruling.routes]
            )
        )
        state.own += [output.event_id for output in outputs if output.topic is CHECKPOINTS]
        return Outcome(outputs, _trimmed(state))

    def encode_state(self, state: PromotionState) -> bytes:
        """Return the state as JSON."""
        return state.model_dump_json().encode()

    def decode_state(self, value: bytes) -> PromotionState:
        """Return the state from JSON."""
        return PromotionState.model_validate_json(value)

    def _rewarded(self, state: PromotionState, example: Example) -> Ruling:
        """Remember what a decision earned, and end the trial or the served version where that is the last straw."""
        if not isinstance(example.body, BanditExample):
            return Ruling()
        if example.split == "validation":
            item = Evidence(decision=example.body.decision, reward=example.reward)
            state.evidence[example.body.decision_id] = item
            while len(state.evidence) > self.config.most_evidence:
                del state.evidence[next(iter(state.evidence))]
        if example.reward_revision > 1:
            return Ruling()  # counted when it was first rewarded: a wager cannot be taken back
        version, ruling = example.body.decision.policy_version, Ruling()
        state.tallies.setdefault(version, Tally()).take(example.reward)
        if state.trial is not None:
            state.trial.take(version, example.reward)
            verdict = state.trial.verdict(self.config)
            if verdict is not None:
                self._end_trial(state, ruling, *verdict)
        watch = state.watch
        if watch is not None and version == watch.version and watch.dropped(example.reward, self.config):
            self._take_back(state, ruling, watch)
        return ruling

    def _routed(self, state: PromotionState, route: Route) -> Ruling:
        """Note who decides; a trial ends where a person takes its route over."""
        state.held, ruling = route.held, Ruling()
        if route.held and state.trial is not None:
            candidate = state.checkpoints.get(state.trial.candidate)
            if candidate is not None and candidate.version not in [target.version for target in route.targets]:
                _change(state, ruling, candidate, CheckpointState.ROLLED_BACK, "a person took over the route")
        if route.held:
            state.trial = state.watch = None
        return ruling

    def _announced(self, state: PromotionState, change: Checkpoint) -> Ruling:
        """Take in a change of state that was not made here; judge a candidate."""
        ruling = Ruling()
        known = state.checkpoints.get(change.version)
        if known is not None and known.state is change.state:
            return ruling  # a repeat
        _apply(state.registry, change)
        if change.kind == "policy" and change.state is CheckpointState.CANDIDATE:
            self._judge(state, ruling, change)
        return ruling

    def _judge(self, state: PromotionState, ruling: Ruling, candidate: Checkpoint) -> None:
        """Judge a candidate off-policy; begin its trial, or promote it where there is none."""
        if state.trial is not None:
            waiting = state.checkpoints.get(state.waiting or "")
            if waiting is not None:
                reason = f"superseded by {candidate.version} while {state.trial.candidate} was on trial"
                _change(state, ruling, waiting, CheckpointState.REJECTED, reason)
            state.waiting = candidate.version
            return
        champion = state.registry.promoted
        try:
            evidence = [Logged(item.decision, item.reward) for item in state.evidence.values()]
            verdict = judge(self._policy(candidate), self._policy(champion), evidence, self.config)
        except (ValueError, RejectedRecordError) as error:
            _change(state, ruling, candidate, CheckpointState.REJECTED, f"cannot be served: {error}")
            return
        reason = f"{verdict.reason}; not promoted, since the route is held by hand" if state.held else verdict.reason
        _change(state, ruling, candidate, CheckpointState.EVALUATED, reason, verdict.metrics)
        if not verdict.passed:
            _change(state, ruling, candidate, CheckpointState.REJECTED, verdict.reason)
        elif not state.held and self.config.canary_share > 0.0:
            _change(state, ruling, candidate, CheckpointState.CANARY, verdict.reason)
            share = self.config.canary_share
            targets = [_target(champion, 1.0 - share), _target(candidate, share)]
            ruling.routes.append(Route(name=candidate.name, kind="policy", targets=targets, reason=verdict.reason))
            state.trial = Trial.of(candidate.version, _version(champion), self.config)
        elif not state.held:
            self._promote(state, ruling, candidate, verdict.reason)

    def _promote(self, state: PromotionState, ruling: Ruling, candidate: Checkpoint, reason: str) -> None:
        champion = state.registry.promoted
        if champion is not None:
            _change(state, ruling, champion, CheckpointState.RETIRED, f"replaced by {candidate.version}")
        _change(state, ruling, candidate, CheckpointState.PROMOTED, reason)
        _serve(ruling, candidate.name, candidate, reason)
        before = _version(champion)
        state.watch = Watch.of(candidate.version, before, state.tallies.get(before, Tally()), self.config)

    def _end_trial(self, state: PromotionState, ruling: Ruling, passed: bool, reason: str) -> None:
        """Promote or roll back the canary, then judge who waits."""
        assert state.trial is not None  # noqa: S101 - asked for only while there is one
        candidate, state.trial = state.checkpoints[state.trial.candidate], None
        if passed:
            self._promote(state, ruling, candidate, reason)
        else:
            _change(state, ruling, candidate, CheckpointState.ROLLED_BACK, reason)
            _serve(ruling, candidate.name, state.registry.promoted, reason)
        waiting, state.waiting = state.checkpoints.get(state.waiting or ""), None
        if waiting is not None:
            self._judge(state, ruling, waiting)

    def _take_back(self, state: PromotionState, ruling: Ruling, watch: Watch) -> None:
        """Serve again what was replaced by a version that turned out worse."""
        dropped, before = state.checkpoints[watch.version], state.checkpoints.get(watch.replaced)
        mean = state.tallies[watch.version].mean
        reason = f"earns {mean:.3f} on average, surely less than {watch.replaced}, which it replaced"
        _change(state, ruling, dropped, CheckpointState.ROLLED_BACK, reason)
        if before is not None:
            _change(state, ruling, before, CheckpointState.PROMOTED, f"served again: {watch.version} {reason}")
        _serve(ruling, dropped.name, before, reason)
        state.watch = None

    def _policy(self, checkpoint: Checkpoint | None) -> Policy:
        if checkpoint is None:
            return UniformPolicy()
        if checkpoint.artifact is None:
            raise ValueError(f"{checkpoint.name} {checkpoint.version} has no artifact")
        return load_policy(self._artifacts.get(checkpoint.artifact), checkpoint.artifact.media_type)


def baseline_route(name: str) -> Route:
    """Return the route of a policy before anything was promoted: the uniform baseline."""
    return Route(name=name, kind="policy", targets=[RouteTarget(version=UNIFORM_VERSION)], reason="nothing learned yet")


def _version(checkpoint: Checkpoint | None) -> str:
    return UNIFORM_VERSION if checkpoint is None else checkpoint.version


def _target(checkpoint: Checkpoint | None, weight: float = 1.0) -> RouteTarget:
    artifact = None if checkpoint is None else checkpoint.artifact
    return RouteTarget(version=_version(checkpoint), artifact=artifact, weight=weight)


def _serve(ruling: Ruling, name: str, checkpoint: Checkpoint | None, reason: str) -> None:
    ruling.routes.append(Route(name=name, kind="policy", targets=[_target(checkpoint)], reason=reason))


def _change(
    state: PromotionState,
    ruling: Ruling,
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
        metrics=metrics or {},
        reason=reason,
    )
    _apply(state.registry, changed)
    ruling.changes.append(changed)


def _apply(registry: Registry, change: Checkpoint) -> None:
    try:
        registry.apply(change)
    except IllegalTransitionError as error:
        raise RejectedRecordError(str(error)) from error


def _trimmed(state: PromotionState) -> PromotionState:
    """Return the state without the oldest checkpoints that have come to an end, and the tallies of those forgotten."""
    live = {
        CheckpointState.PROMOTED,
        CheckpointState.CANARY,
        CheckpointState.CANDIDATE,
        CheckpointState.EVALUATED,
    }
    ended = [version for version, checkpoint in state.checkpoints.items() if checkpoint.state not in live]
    for version in ended[:-FINISHED_REMEMBERED]:
        del state.checkpoints[version]
    known = {*state.checkpoints, UNIFORM_VERSION}
    state.tallies = {version: tally for version, tally in state.tallies.items() if version in known}
    return state
