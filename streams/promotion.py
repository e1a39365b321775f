"""Promotion: candidates pass the gate or are rejected with a reason; what is promoted gets the route."""

from typing import ClassVar

from pydantic import BaseModel, Field

from learners.contract import Policy
from learners.gate import GateConfig, HeldOut, Verdict, judge
from learners.policies import UNIFORM_VERSION, UniformPolicy, load_policy
from learners.registry import IllegalTransitionError, Registry
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.decisions import Decision
from schemas.envelope import AnyEvent
from schemas.examples import BanditExample, ExampleEvent
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
        own: ids of the events written here that have not come back on the topic yet.
        held: whether a person decides what is served.
    """

    checkpoints: dict[str, Checkpoint] = Field(default_factory=dict)
    evidence: dict[str, Evidence] = Field(default_factory=dict)
    own: list[str] = Field(default_factory=list)
    held: bool = False


class Promotion(Processor[PromotionState]):
    """Judges each candidate once, when it is announced, on the held-out decisions logged so far.

    Policies are judged off-policy (`learners.gate`). Other kinds of checkpoint stay candidates until they are promoted
    by hand: nothing here can tell whether they are good. While a person holds the route, what passes is evaluated only.
    """

    name = "promotion"
    topics: ClassVar[tuple[Topic, ...]] = (CHECKPOINTS, EXAMPLES, ROUTES)

    def __init__(self, config: GateConfig, artifacts: ArtifactReader) -> None:
        self.config = config
        self._artifacts = artifacts

    def handle(self, state: PromotionState | None, event: AnyEvent, source: Record) -> Outcome[PromotionState]:
        """Take in evidence, or judge a candidate."""
        state = state or PromotionState()
        if isinstance(event, ExampleEvent):
            return Outcome(state=self._with_evidence(state, event))
        if isinstance(event, RouteEvent):
            return Outcome(state=state.model_copy(update={"held": event.payload.held}))
        assert isinstance(event, CheckpointEvent)  # noqa: S101 - the topics hold nothing else
        if event.event_id in state.own:
            return Outcome(state=state.model_copy(update={"own": [own for own in state.own if own != event.event_id]}))
        change = event.payload
        known = state.checkpoints.get(change.version)
        if known is not None and known.state is change.state:
            return Outcome(state=state)  # a repeat
        registry = Registry(dict(state.checkpoints))
        _apply(registry, change)
        changes, routes = self._decided(registry, state, change) if change.kind == "policy" else ([], [])
        for following in changes:
            _apply(registry, following)
        outputs = tuple(
            Outgoing.of(
                topic,
                change.name,
                model(event_id=output_id(self, source, event.time, i), time=event.time, payload=p),
            )
            for i, (topic, model, p) in enumerate(
                [(CHECKPOINTS, CheckpointEvent, c) for c in changes] + [(ROUTES, RouteEvent, r) for r in routes]
            )
        )
        own = [*state.own, *(output.event_id for output in outputs if output.topic is CHECKPOINTS)]
        return Outcome(outputs, state.model_copy(update={"checkpoints": _trimmed(registry), "own": own}))

    def encode_state(self, state: PromotionState) -> bytes:
        """Return the state as JSON."""
        return state.model_dump_json().encode()

    def decode_state(self, value: bytes) -> PromotionState:
        """Return the state from JSON."""
        return PromotionState.model_validate_json(value)

    def _with_evidence(self, state: PromotionState, event: ExampleEvent) -> PromotionState:
        example = event.payload
        if example.split != "validation" or not isinstance(example.body, BanditExample):
            return state
        item = Evidence(decision=example.body.decision, reward=example.reward)
        evidence = state.evidence | {example.body.decision_id: item}
        while len(evidence) > self.config.most_evidence:
            del evidence[next(iter(evidence))]
        return state.model_copy(update={"evidence": evidence})

    def _decided(
        self, registry: Registry, state: PromotionState, candidate: Checkpoint
    ) -> tuple[list[Checkpoint], list[Route]]:
        """Return the changes of state and of route that follow from a candidate."""
        if candidate.state is not CheckpointState.CANDIDATE:
            return [], []
        champion = registry.promoted
        try:
            verdict = self._verdict(candidate, champion, state)
        except (ValueError, RejectedRecordError) as error:
            return [_changed(candidate, CheckpointState.REJECTED, f"cannot be served: {error}")], []
        evaluated = _changed(candidate, CheckpointState.EVALUATED, verdict.reason, verdict.metrics)
        if not verdict.passed:
            return [evaluated, _changed(candidate, CheckpointState.REJECTED, verdict.reason)], []
        if state.held:
            reason = f"{verdict.reason}; not promoted, since the route is held by hand"
            return [_changed(candidate, CheckpointState.EVALUATED, reason, verdict.metrics)], []
        changes = [evaluated]
        if champion is not None:
            changes.append(_changed(champion, CheckpointState.RETIRED, f"replaced by {candidate.version}"))
        changes.append(_changed(candidate, CheckpointState.PROMOTED, verdict.reason))
        target = RouteTarget(version=candidate.version, artifact=candidate.artifact)
        return changes, [Route(name=candidate.name, kind="policy", targets=[target], reason=verdict.reason)]

    def _verdict(self, candidate: Checkpoint, champion: Checkpoint | None, state: PromotionState) -> Verdict:
        evidence = [HeldOut(item.decision, item.reward) for item in state.evidence.values()]
        return judge(self._policy(candidate), self._policy(champion), evidence, self.config)

    def _policy(self, checkpoint: Checkpoint | None) -> Policy:
        if checkpoint is None:
            return UniformPolicy()
        if checkpoint.artifact is None:
            raise ValueError(f"{checkpoint.name} {checkpoint.version} has no artifact")
        return load_policy(self._artifacts.get(checkpoint.artifact), checkpoint.artifact.media_type)


def baseline_route(name: str) -> Route:
    """Return the route of a policy before anything was promoted: the uniform baseline."""
    return Route(name=name, kind="policy", targets=[RouteTarget(version=UNIFORM_VERSION)], reason="nothing learned yet")


def _changed(
    checkpoint: Checkpoint, state: CheckpointState, reason: str, metrics: dict[str, float] | None = None
) -> Checkpoint:
    return Checkpoint(
        name=checkpoint.name,
        version=checkpoint.version,
        kind=checkpoint.kind,
        state=state,
        artifact=checkpoint.artifact,
        metrics=metrics or {},
        reason=reason,
    )


def _apply(registry: Registry, change: Checkpoint) -> None:
    try:
        registry.apply(change)
    except IllegalTransitionError as error:
        raise RejectedRecordError(str(error)) from error


def _trimmed(registry: Registry) -> dict[str, Checkpoint]:
    """Return the checkpoints without the oldest of those that have come to an end."""
    live = {
        CheckpointState.PROMOTED,
        CheckpointState.CANARY,
        CheckpointState.CANDIDATE,
        CheckpointState.EVALUATED,
    }
    ended = [version for version, checkpoint in registry.checkpoints.items() if checkpoint.state not in live]
    forgotten = set(ended[:-FINISHED_REMEMBERED])
    return {version: c for version, c in registry.checkpoints.items() if version not in forgotten}
