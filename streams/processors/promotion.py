"""Promotion: candidates pass the gate and a trial or are rejected with a reason; what drops is
taken back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from pydantic import BaseModel, Field

from learners.contract import Policy
from learners.evaluation import Logged
from learners.gate import GateConfig, Tally, Trial, Verdict, Watch, judge
from learners.policies import BUILT_IN, UNIFORM_VERSION, PolicyLoader, UniformPolicy
from learners.registry import IllegalTransitionError, Registry
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.decisions import Decision
from schemas.envelope import AnyEvent
from schemas.examples import BanditExample, Example, ExampleEvent, RlExample, SftExample
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.topics import CHECKPOINTS, EXAMPLES, ROUTES, Topic
from streams.processing.processor import Outcome, Processor, output_id
from streams.storage.artifacts import ArtifactReader
from streams.storage.errors import RejectedRecordError
from streams.storage.records import Outgoing, Record

FINISHED_REMEMBERED = 50
COUNTED_REMEMBERED = 64


class Evidence(BaseModel):
    """A decision on a held-out task, with its reward."""

    decision: Decision
    reward: float


class PromotionState(BaseModel):
    """What is known of one logical name.

    Attributes:
        checkpoints: by version, in the order announced.
        evidence: decision id to the decision and its newest reward, the newest decision last.
        tallies: first rewards of decisions by the version that made them, of versions that may
            still be compared.
        counted: rollouts whose reward was counted for a model last; their examples come together.
        trial: the canary that is under way.
        waiting: version of the newest candidate that was announced meanwhile.
        watch: over what was promoted last.
        current: the newest route, with its history.
        stable: what is served, or beside a trial was served before it; None where no route is
            known.
        replaced: what was served before the version that is watched.
        own: ids of the events written here that have not come back on their topics yet.
        held: whether a person decides what is served.
    """

    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)
    evidence: dict[str, Evidence] = Field(default_factory=dict)
    tallies: dict[str, Tally] = Field(default_factory=dict)
    counted: list[str] = Field(default_factory=list)
    trial: Trial | None = None
    waiting: str | None = None
    watch: Watch | None = None
    current: Route | None = None
    stable: Route | None = None
    replaced: Route | None = None
    own: list[str] = Field(default_factory=list)
    held: bool = False

    @property
    def registry(self) -> Registry:
        """The checkpoints, as their lifecycle knows them; applying a change to it changes the
        state.
        """
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


def _reward(example: Example) -> float:
    return example.reward


class Promotion(Processor[PromotionState]):
    """Lets through what is surely no worse: judged on held-out decisions, then on trial, then
    watched.

    Each candidate is judged once, when it is announced, off-policy (`learners.gate.judge`). What
    passes serves a share of new rollouts until a sequential test has told whether it is surely no
    worse than the champion, or worse. What is promoted is watched: where it surely earns less than
    what it replaced, that is served again.

    A model or an adapter cannot be judged off-policy; where its checkpoint says what serves it, it
    goes on trial at once, and the rewards of its answers decide. Whatever cannot be tried stays a
    candidate until it is promoted by hand. While a person holds the route, what passes is evaluated
    only.

    A promoted policy that breaks later (its artifact is damaged, or it raises) is no reason to
    reject what could replace it. The uniform baseline stands for it in the comparison.

    Args:
        worth: what versions are compared by, in [0, 1]; the reward, where nothing else is wanted of
            them.
        policies: loads the artifacts of candidates and of what serves.
    """

    name = "promotion"
    topics: ClassVar[tuple[Topic, ...]] = (CHECKPOINTS, EXAMPLES, ROUTES)

    def __init__(
        self,
        config: GateConfig,
        artifacts: ArtifactReader,
        worth: Callable[[Example], float] = _reward,
        policies: PolicyLoader = BUILT_IN,
    ) -> None:
        self.config = config
        self._artifacts = artifacts
        self._worth = worth
        self._policies = policies

    def handle(
        self, state: PromotionState | None, event: AnyEvent, source: Record
    ) -> Outcome[PromotionState]:
        """Take in a reward or a change made by hand, or judge a candidate."""
        state = state or PromotionState()
        if event.event_id in state.own:
            state.own.remove(event.event_id)
            ruling = Ruling()
        elif isinstance(event, ExampleEvent):
            ruling = self._rewarded(state, event.payload, event.rollout_key)
        elif isinstance(event, RouteEvent):
            ruling = self._routed(state, event.payload)
        else:
            assert isinstance(event, CheckpointEvent)  # noqa: S101 - the topics hold nothing else
            ruling = self._announced(state, event.payload)
        outputs = tuple(
            Outgoing.of(
                topic,
                payload.name,
                model(
                    event_id=output_id(self, source, event.time, index),
                    time=event.time,
                    payload=payload,
                ),
            )
            for index, (topic, model, payload) in enumerate(
                [(CHECKPOINTS, CheckpointEvent, change) for change in ruling.changes]
                + [(ROUTES, RouteEvent, route) for route in ruling.routes]
            )
        )
        state.own += [output.event_id for output in outputs]
        return Outcome(outputs, _trimmed(state))

    def encode_state(self, state: PromotionState) -> bytes:
        """Return the state as JSON."""
        return state.model_dump_json().encode()

    def decode_state(self, value: bytes) -> PromotionState:
        """Return the state from JSON."""
        return PromotionState.model_validate_json(value)

    def _rewarded(self, state: PromotionState, example: Example, rollout: str) -> Ruling:
        """Remember what a version earned, and end the trial or the served version where that is the
        last straw.
        """
        worth = self._worth(example)
        if example.retracted:
            # a wager cannot be taken back, so trials and tallies keep what they have counted
            if isinstance(example.body, BanditExample):
                state.evidence.pop(example.body.decision_id, None)
            return Ruling()
        if isinstance(example.body, BanditExample) and example.split == "validation":
            item = Evidence(decision=example.body.decision, reward=worth)
            state.evidence[example.body.decision_id] = item
            while len(state.evidence) > self.config.most_evidence:
                del state.evidence[next(iter(state.evidence))]
        version, ruling = _made_by(example), Ruling()
        if version is None or example.reward_revision > 1:
            return ruling  # counted when it was first rewarded: a wager cannot be taken back
        if not isinstance(example.body, BanditExample):
            if rollout in state.counted:
                # a rollout's calls share its reward, and one reward is one piece of evidence
                return ruling
            state.counted = [*state.counted, rollout][-COUNTED_REMEMBERED:]
        state.tallies.setdefault(version, Tally()).take(worth)
        if state.trial is not None:
            state.trial.take(version, worth)
            verdict = state.trial.verdict(self.config)
            if verdict is not None:
                self._end_trial(state, ruling, *verdict)
        watch = state.watch
        if watch is not None and version == watch.version and watch.dropped(worth, self.config):
            self._take_back(state, ruling, watch)
        return ruling

    def _routed(self, state: PromotionState, route: Route) -> Ruling:
        """Note who decides; a trial ends where a person takes its route over."""
        state.held, ruling = route.held, Ruling()
        if route.held and state.trial is not None:
            candidate = state.checkpoints.get(state.trial.candidate)
            if candidate is not None and candidate.version not in [
                target.version for target in route.targets
            ]:
                _change(
                    state,
                    ruling,
                    candidate,
                    CheckpointState.ROLLED_BACK,
                    "a person took over the route",
                )
        state.stable = route
        state.current = route.succeeding(state.current)
        if route.held:
            state.trial = state.watch = None
            self._judge_waiting(state, ruling)
        return ruling

    def _announced(self, state: PromotionState, change: Checkpoint) -> Ruling:
        """Take in a change of state that was not made here; judge a candidate."""
        ruling = Ruling()
        known = state.checkpoints.get(change.version)
        if known is not None and change.state in (known.state, CheckpointState.CANDIDATE):
            return ruling  # a repeat, or a learner that retractions brought back to an old version
        if known is None and change.state is CheckpointState.PROMOTED:
            state.checkpoints[change.version] = change  # promoted by a person, and forgotten here
        else:
            _apply(state.registry, change)
        if change.kind == "policy" and state.stable is None:
            state.stable = state.current = baseline_route(change.name)
        if change.state in (CheckpointState.REJECTED, CheckpointState.ROLLED_BACK):
            self._fell(state, ruling, change)
        if change.state is CheckpointState.CANDIDATE and (
            change.kind == "policy" or self._can_be_tried(state, change)
        ):
            self._judge(state, ruling, change)
        return ruling

    def _judge(self, state: PromotionState, ruling: Ruling, candidate: Checkpoint) -> None:
        """Judge a candidate off-policy; begin its trial, or promote it where there is none."""
        if state.trial is not None:
            waiting = state.checkpoints.get(state.waiting or "")
            if waiting is not None:
                reason = (
                    f"superseded by {candidate.version} while {state.trial.candidate} was on trial"
                )
                _change(state, ruling, waiting, CheckpointState.REJECTED, reason)
            state.waiting = candidate.version
            return
        try:
            verdict, champion = self._verdict(state, candidate)
        except (ValueError, RejectedRecordError) as error:
            _change(
                state, ruling, candidate, CheckpointState.REJECTED, f"cannot be served: {error}"
            )
            return
        reason = (
            f"{verdict.reason}; not promoted, since the route is held by hand"
            if state.held
            else verdict.reason
        )
        _change(state, ruling, candidate, CheckpointState.EVALUATED, reason, verdict.metrics)
        if not verdict.passed:
            _change(state, ruling, candidate, CheckpointState.REJECTED, verdict.reason)
        elif not state.held and self.config.canary_share > 0.0:
            self._try(state, ruling, candidate, champion, verdict.reason)
        elif not state.held:
            self._promote(state, ruling, candidate, verdict.reason)

    def _fell(self, state: PromotionState, ruling: Ruling, fallen: Checkpoint) -> None:
        """Serve what was served before, where who keeps a version served has given it up."""
        if state.waiting == fallen.version:
            state.waiting = None
        if state.stable is None:
            return
        if state.trial is not None and state.trial.candidate == fallen.version:
            state.trial = None
            _serve(state, ruling, state.stable, fallen.reason)
            self._judge_waiting(state, ruling)
        elif (
            _heaviest(state.stable) == fallen.version
            and state.replaced is not None
            and not state.held
        ):
            self._serve_replaced(state, ruling, f"served again: {fallen.version} {fallen.reason}")

    def _can_be_tried(self, state: PromotionState, candidate: Checkpoint) -> bool:
        known = state.stable is not None and state.stable.kind == "model"
        return known and candidate.endpoint is not None and self.config.canary_share > 0.0

    def _verdict(self, state: PromotionState, candidate: Checkpoint) -> tuple[Verdict, str]:
        """Return the verdict, and the version that a trial of the candidate compares with."""
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        served = _heaviest(state.stable)
        if candidate.kind != "policy":
            reason = "nothing tells beforehand how good it is, so it is tried"
            return Verdict(True, reason, 0), served
        evidence = [Logged(item.decision, item.reward) for item in state.evidence.values()]
        policy, promoted = self._policy(candidate), state.registry.promoted
        try:
            return judge(policy, self._policy(promoted), evidence, self.config), served
        except (ValueError, RejectedRecordError) as error:
            # The candidate or what is promoted. A candidate that is broken fails here once more.
            # Else the baseline takes the place of what is promoted, as it does in the gateway.
            verdict = judge(policy, UniformPolicy(), evidence, self.config)
            if promoted is None:
                raise
            reason = (
                f"{promoted.version} is promoted and broken ({error}), so the uniform baseline"
                f" stands for it: {verdict.reason}"
            )
            # The gateway logs the baseline as the maker of these decisions.
            return replace(verdict, reason=reason), UNIFORM_VERSION

    def _try(
        self,
        state: PromotionState,
        ruling: Ruling,
        candidate: Checkpoint,
        champion: str,
        reason: str,
    ) -> None:
        """Give a candidate its share of new rollouts beside what is served.

        Args:
            champion: the version whose rewards the candidate's are compared with.
        """
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        _change(state, ruling, candidate, CheckpointState.CANARY, reason)
        share, total = (
            self.config.canary_share,
            sum(target.weight for target in state.stable.targets),
        )
        if total <= 0.0:
            raise RejectedRecordError(
                f"{candidate.name} serves nothing that {candidate.version} could be tried beside"
            )
        beside = [
            t.model_copy(update={"weight": t.weight / total * (1.0 - share)})
            for t in state.stable.targets
        ]
        targets = [*beside, _target(candidate).model_copy(update={"weight": share})]
        served = {"targets": targets, "fallbacks": _behind(state), "reason": reason}
        _write_route(state, ruling, state.stable.model_copy(update=served))
        state.trial = Trial.of(candidate.version, champion, self.config)

    def _promote(
        self, state: PromotionState, ruling: Ruling, candidate: Checkpoint, reason: str
    ) -> None:
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        champion, state.replaced = state.registry.promoted, state.stable
        if champion is not None:
            _change(
                state, ruling, champion, CheckpointState.RETIRED, f"replaced by {candidate.version}"
            )
        _change(state, ruling, candidate, CheckpointState.PROMOTED, reason)
        served = {"targets": [_target(candidate)], "fallbacks": _behind(state)}
        _serve(state, ruling, state.stable.model_copy(update=served), reason)
        before = _heaviest(state.replaced)
        state.watch = Watch.of(
            candidate.version, before, state.tallies.get(before, Tally()), self.config
        )

    def _end_trial(self, state: PromotionState, ruling: Ruling, passed: bool, reason: str) -> None:
        """Promote or roll back the canary, then judge who waits."""
        assert state.trial is not None  # noqa: S101 - asked for only while there is one
        candidate, state.trial = state.checkpoints[state.trial.candidate], None
        if passed:
            self._promote(state, ruling, candidate, reason)
        else:
            # nothing is judged before it is known what is served
            assert state.stable is not None  # noqa: S101
            _change(state, ruling, candidate, CheckpointState.ROLLED_BACK, reason)
            _serve(state, ruling, state.stable, reason)
        self._judge_waiting(state, ruling)

    def _judge_waiting(self, state: PromotionState, ruling: Ruling) -> None:
        waiting, state.waiting = state.checkpoints.get(state.waiting or ""), None
        if waiting is not None:
            self._judge(state, ruling, waiting)

    def _take_back(self, state: PromotionState, ruling: Ruling, watch: Watch) -> None:
        """Serve again what was replaced by a version that turned out worse."""
        dropped = state.checkpoints[watch.version]
        mean = state.tallies[watch.version].mean
        reason = (
            f"earns {mean:.3f} on average, surely less than {watch.replaced}, which it replaced"
        )
        _change(state, ruling, dropped, CheckpointState.ROLLED_BACK, reason)
        self._serve_replaced(state, ruling, f"served again: {watch.version} {reason}")

    def _serve_replaced(self, state: PromotionState, ruling: Ruling, reason: str) -> None:
        assert state.replaced is not None  # noqa: S101 - noted when it was replaced
        before = state.checkpoints.get(_heaviest(state.replaced))
        if before is not None:
            _change(state, ruling, before, CheckpointState.PROMOTED, reason)
        _serve(state, ruling, state.replaced, reason)
        state.watch = state.replaced = None

    def _policy(self, checkpoint: Checkpoint | None) -> Policy:
        if checkpoint is None:
            return UniformPolicy()
        if checkpoint.artifact is None:
            raise ValueError(f"{checkpoint.name} {checkpoint.version} has no artifact")
        artifact = checkpoint.artifact
        return self._policies.load(self._artifacts.get(artifact), artifact.media_type)


def baseline_route(name: str) -> Route:
    """Return the route of a policy before anything was promoted: the uniform baseline."""
    return Route(
        name=name,
        kind="policy",
        targets=[RouteTarget(version=UNIFORM_VERSION)],
        reason="nothing learned yet",
    )


def _made_by(example: Example) -> str | None:
    """Return the version whose decision or answer an example is about, where it says so."""
    match example.body:
        case BanditExample(decision=decision):
            return decision.policy_version
        case RlExample(checkpoint=checkpoint) | SftExample(checkpoint=checkpoint):
            return checkpoint or None
        case _:
            return None


def _heaviest(route: Route) -> str:
    """Return the version that serves most."""
    return max(route.targets, key=lambda target: target.weight).version


def _behind(state: PromotionState) -> list[RouteTarget]:
    """Return what answers where a model that is tried or promoted does not: what serves now, then
    what always did.
    """
    # nothing is judged before it is known what is served
    assert state.stable is not None  # noqa: S101
    if state.stable.kind != "model":
        return state.stable.fallbacks
    others = [
        target for target in state.stable.fallbacks if target.version not in state.checkpoints
    ]
    return [
        *(target.model_copy(update={"weight": 1.0}) for target in state.stable.targets),
        *others,
    ]


def _target(checkpoint: Checkpoint) -> RouteTarget:
    artifact = checkpoint.artifact if checkpoint.kind == "policy" else None
    return RouteTarget(version=checkpoint.version, artifact=artifact, endpoint=checkpoint.endpoint)


def _serve(state: PromotionState, ruling: Ruling, route: Route, reason: str) -> None:
    """Serve a route from now on, with the reason."""
    state.stable = route.model_copy(update={"reason": reason})
    _write_route(state, ruling, state.stable)


def _write_route(state: PromotionState, ruling: Ruling, route: Route) -> None:
    """Write a route with its history, which must outlive the compaction of the topic."""
    state.current = route.succeeding(state.current)
    ruling.routes.append(state.current)


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
        endpoint=checkpoint.endpoint,
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
    """Return the state without the oldest checkpoints that have come to an end, and the tallies of
    those forgotten.
    """
    live = {
        CheckpointState.PROMOTED,
        CheckpointState.CANARY,
        CheckpointState.CANDIDATE,
        CheckpointState.EVALUATED,
    }
    routes = [route for route in (state.stable, state.replaced) if route]
    served = {target.version for route in routes for target in (*route.targets, *route.fallbacks)}
    ended = [version for version, known in state.checkpoints.items() if known.state not in live]
    for version in ended[:-FINISHED_REMEMBERED]:
        if version not in served:
            del state.checkpoints[version]
    known = {*state.checkpoints, *served, UNIFORM_VERSION}
    state.tallies = {version: tally for version, tally in state.tallies.items() if version in known}
    return state
