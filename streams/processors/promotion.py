"""Promotion: candidates pass the gate and a trial or are rejected with a reason; what drops is
taken back.
"""

from dataclasses import replace
from typing import ClassVar

from learners.contract import Policy
from learners.evaluation import rollouts_of
from learners.gate import GateConfig, Verdict, judge
from learners.policies import BUILT_IN, UNIFORM_VERSION, PolicyLoader, UniformPolicy
from learners.trial import Comparison, Decided, trial_verdict, watch_verdict
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.clock import from_milliseconds
from schemas.envelope import AnyEvent
from schemas.gates import GateEvent
from schemas.outcomes import OutcomeEvent, RolloutOutcome
from schemas.routes import Route, RouteEvent
from schemas.topics import CHECKPOINTS, GATES, OUTCOMES, ROUTES, Topic
from streams.processing.processor import Outcome, Processor, output_id
from streams.processors.evidence import Worth, dated
from streams.processors.gate_status import status_of
from streams.processors.promotion_state import (
    PromotionState,
    Ruling,
    apply,
    baseline_route,
    behind,
    change,
    heaviest,
    target_of,
    trimmed,
)
from streams.storage.artifacts import ArtifactReader
from streams.storage.errors import RejectedRecordError
from streams.storage.records import Outgoing, Record

JUDGED_AGAIN = 1.1
"""A candidate that has not passed is judged again when there is so many times the evidence. A
verdict holds at any time, so looking again costs only computing.
"""


def _reward(outcome: RolloutOutcome) -> float:
    return outcome.reward or 0.0


class Promotion(Processor[PromotionState]):
    """Lets through what is surely no worse: judged on held-out rollouts, then on trial, then
    watched.

    1. The newest candidate waits until it is likely, by held-out rollouts, that it is no worse than
       what serves (`learners.gate.judge`); where there are no trials, until that is sure. It is
       judged again as evidence grows. A newer one takes its place.
    2. What passes goes on trial: it serves a share of new rollouts, until it is surely no worse
       than the champion in reward, failures and missing rewards, or surely worse
       (`learners.trial`).
    3. What is promoted is watched: a small share of new rollouts stays on what it replaced. Where
       it surely earns less than that at the same time, the old version is served again.

    A model or an adapter cannot be judged off-policy; where its checkpoint says what serves it, it
    goes on trial at once. Whatever cannot be tried stays a candidate until it is promoted by hand.
    While a person holds the route, what passes is evaluated only.

    A promoted policy that breaks later (its artifact is damaged, or it raises) is no reason to
    reject what could replace it. The uniform baseline stands for it in the off-policy judgement;
    its own rollouts, which the baseline serves, stand for it on trial.

    Args:
        worth: what rollouts are compared by, in [0, 1]; the reward, where nothing else is wanted of
            them.
        policies: loads the artifacts of candidates and of what serves.
    """

    name = "promotion"
    topics: ClassVar[tuple[Topic, ...]] = (CHECKPOINTS, OUTCOMES, ROUTES)

    def __init__(
        self,
        config: GateConfig,
        artifacts: ArtifactReader,
        worth: Worth = _reward,
        policies: PolicyLoader = BUILT_IN,
    ) -> None:
        self.config = config
        self._artifacts = artifacts
        self._worth = worth
        self._policies = policies

    def handle(
        self, state: PromotionState | None, event: AnyEvent, source: Record
    ) -> Outcome[PromotionState]:
        """Take in an outcome or a change made by hand, or judge a candidate."""
        state = state or PromotionState()
        ruling = Ruling()
        if event.event_id in state.own:
            state.own.remove(event.event_id)
        elif isinstance(event, OutcomeEvent):
            self._observe(state, ruling, dated(event, from_milliseconds(source.timestamp_ms)))
        elif isinstance(event, RouteEvent):
            self._follow_route(state, ruling, event.payload)
        else:
            assert isinstance(event, CheckpointEvent)  # noqa: S101 - the topics hold nothing else
            self._register(state, ruling, event.payload)
        self._tell(state, ruling, event.payload.name)
        return Outcome(self._written(state, ruling, event, source), trimmed(state))

    def _written(
        self, state: PromotionState, ruling: Ruling, event: AnyEvent, source: Record
    ) -> tuple[Outgoing, ...]:
        """Return the events that say what follows, and note those that will come back."""
        said = (
            [(CHECKPOINTS, CheckpointEvent, made) for made in ruling.changes]
            + [(ROUTES, RouteEvent, route) for route in ruling.routes]
            + [(GATES, GateEvent, status) for status in ruling.statuses]
        )
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
            for index, (topic, model, payload) in enumerate(said)
        )
        state.own += [o.event_id for o in outputs if o.topic is not GATES]
        return outputs

    def encode_state(self, state: PromotionState) -> bytes:
        """Return the state as JSON."""
        return state.model_dump_json().encode()

    def decode_state(self, value: bytes) -> PromotionState:
        """Return the state from JSON."""
        return PromotionState.model_validate_json(value)

    def _observe(self, state: PromotionState, ruling: Ruling, event: OutcomeEvent) -> None:
        """Take in what a rollout came to. A trial or a watch may end by it, or a candidate pass."""
        evidence, outcome = state.evidence, event.payload
        if outcome.split == "test":
            return
        self._end_orphans(state, ruling)
        evidence.take(event, self._worth, self.config)
        comparisons = [c for c in (state.comparison, state.watched) if c is not None]
        begun = outcome.begun.timestamp()
        for comparison in comparisons:
            comparison.see(outcome.version, begun)
        # Only what began since both versions serve is compared, so that both are of the same time.
        if any(c.includes(outcome.version, begun) for c in comparisons):
            evidence.follow(event, self._worth, self.config)
        for began, result in evidence.matured():
            for comparison in comparisons:
                if comparison.includes(result.version, began):
                    comparison.take(result)
        self._conclude(state, ruling)
        self._judge_waiting(state, ruling)

    def _conclude(self, state: PromotionState, ruling: Ruling) -> None:
        """End the trial and the watch where their time has come, the watch first: a champion that
        is taken back is nothing to compare a candidate with.
        """
        if state.watched is not None:
            decided = watch_verdict(state.watched, self.config)
            if decided is not None:
                self._end_watch(state, ruling, state.watched, decided)
        if state.comparison is not None:
            decided = trial_verdict(state.comparison, self.config)
            if decided is not None:
                self._end_trial(state, ruling, state.comparison, decided)

    def _end_orphans(self, state: PromotionState, ruling: Ruling) -> None:
        """Roll back what serves a share and is on nobody's trial: a person released its route, or
        an earlier release of Everloop began the trial.
        """
        if state.comparison is not None or state.held or state.stable is None:
            return
        for checkpoint in list(state.checkpoints.values()):
            if checkpoint.state is CheckpointState.CANARY:
                self._stop_trial(state, ruling, checkpoint.version, "nobody tries it any more")
                self._write_route(state, ruling, f"without {checkpoint.version}")

    def _stop_trial(self, state: PromotionState, ruling: Ruling, version: str, reason: str) -> None:
        """Roll back a version on trial, and leave it out of what is served from now on."""
        assert state.stable is not None  # noqa: S101 - nothing is tried before that is known
        state.comparison = None
        tried = state.checkpoints.get(version)
        if tried is not None and tried.state is CheckpointState.CANARY:
            change(state, ruling, tried, CheckpointState.ROLLED_BACK, reason)
        others = [target for target in state.stable.targets if target.version != version]
        if others:
            state.stable = state.stable.model_copy(update={"targets": others})

    def _follow_route(self, state: PromotionState, ruling: Ruling, route: Route) -> None:
        """Note what somebody else serves.

        A trial goes on where both of its versions do. Else nothing is compared any more.
        """
        state.held, trial = route.held, state.comparison
        state.current = route.succeeding(state.current)
        state.stable = route.model_copy(update={"control": None})
        state.watched = state.replaced = None
        versions = route.served.versions
        if trial is not None and (route.held or not {trial.new, trial.old} <= versions):
            if not route.held or trial.new not in versions:
                self._stop_trial(state, ruling, trial.new, "a person took over the route")
            state.comparison = None
            if not route.held and trial.new in versions:
                self._write_route(state, ruling, f"without {trial.new}")
        elif trial is not None:
            others = [target for target in route.targets if target.version != trial.new]
            state.stable = state.stable.model_copy(update={"targets": others})
        self._judge_waiting(state, ruling)

    def _register(self, state: PromotionState, ruling: Ruling, told: Checkpoint) -> None:
        """Take in a change of state that was not made here; a candidate waits to be judged."""
        known = state.checkpoints.get(told.version)
        if known is not None and told.state in (known.state, CheckpointState.CANDIDATE):
            return  # a repeat, or a learner that retractions brought back to an old version
        if known is None and told.state is CheckpointState.PROMOTED:
            state.checkpoints[told.version] = told  # promoted by a person, and forgotten here
        else:
            apply(state.registry, told)
        if told.version == state.waiting and told.state is not CheckpointState.CANDIDATE:
            state.waiting = None  # a person has judged it
        if told.kind == "policy" and state.stable is None:
            state.stable = state.current = baseline_route(told.name)
        withdrawn = told.state in (CheckpointState.REJECTED, CheckpointState.ROLLED_BACK)
        # What a person does to checkpoints comes with the route that the person wants.
        if withdrawn and not told.by_hand:
            self._drop(state, ruling, told)
        if told.state is CheckpointState.CANDIDATE and (
            told.kind == "policy" or self._can_be_tried(state, told)
        ):
            self._queue(state, ruling, told)

    def _queue(self, state: PromotionState, ruling: Ruling, candidate: Checkpoint) -> None:
        """Let a candidate wait, in the place of an older one."""
        older = state.checkpoints.get(state.waiting or "")
        if older is not None:
            reason = f"superseded by {candidate.version}; {state.verdict or 'not judged yet'}"
            change(state, ruling, older, CheckpointState.REJECTED, reason)
        state.waiting, state.verdict, state.needed, state.judged = candidate.version, "", None, 0
        self._judge_waiting(state, ruling)

    def _judge_waiting(self, state: PromotionState, ruling: Ruling) -> None:
        """Judge the candidate that waits, unless one is on trial, or little is new since the last
        time. What passes is tried, or promoted where there are no trials.
        """
        candidate = state.checkpoints.get(state.waiting or "")
        if candidate is None or state.comparison is not None:
            return
        if state.stable is not None and candidate.version in state.stable.served.versions:
            state.waiting = None
            change(state, ruling, candidate, CheckpointState.EVALUATED, "a person serves it")
            return
        is_policy = candidate.kind == "policy"
        if is_policy and state.verdict and state.evidence.usable < JUDGED_AGAIN * state.judged:
            return
        if not is_policy and not state.evidence.knows_delays(self.config):
            state.verdict = "no reward has come yet, so nobody knows how long to wait for one"
            return
        state.evidence.learn_maturity(self.config)
        state.judged = max(1, state.evidence.usable)
        try:
            verdict = self._verdict(state, candidate)
        except (ValueError, RejectedRecordError) as error:
            state.waiting = None
            reason = f"cannot be served: {error}"
            change(state, ruling, candidate, CheckpointState.REJECTED, reason)
            return
        state.verdict, state.needed = verdict.reason, verdict.needed
        # Where a trial follows, a good chance is enough: the trial must be sure. Off-policy it
        # takes very long to be sure of a version that differs much from what serves.
        tries = self.config.canary_share > 0.0 and not state.held
        if verdict.passed or (tries and verdict.likely):
            state.waiting = None
            self._let_through(state, ruling, candidate, verdict)

    def _let_through(
        self, state: PromotionState, ruling: Ruling, candidate: Checkpoint, verdict: Verdict
    ) -> None:
        reason = verdict.reason
        if state.held:
            reason = f"{reason}; not promoted, since the route is held by hand"
        change(state, ruling, candidate, CheckpointState.EVALUATED, reason, verdict.metrics)
        if state.held:
            return
        if self.config.canary_share > 0.0:
            self._try(state, ruling, candidate, verdict.reason)
        else:
            state.trials.win()
            self._promote(state, ruling, candidate, verdict.reason)

    def _drop(self, state: PromotionState, ruling: Ruling, fallen: Checkpoint) -> None:
        """Serve what was served before, when the server of a version has gone."""
        if state.waiting == fallen.version:
            state.waiting = None
        if state.stable is None:
            return
        trial = state.comparison
        if trial is not None and trial.new == fallen.version:
            state.comparison = None
            self._write_route(state, ruling, fallen.reason)
            self._judge_waiting(state, ruling)
        elif (
            heaviest(state.stable) == fallen.version
            and state.replaced is not None
            and not state.held
        ):
            if trial is not None:
                reason = f"{fallen.version}, which it was compared with, is gone"
                self._stop_trial(state, ruling, trial.new, reason)
            self._serve_replaced(state, ruling, f"served again: {fallen.version} {fallen.reason}")
            self._judge_waiting(state, ruling)

    def _can_be_tried(self, state: PromotionState, candidate: Checkpoint) -> bool:
        known = state.stable is not None and state.stable.kind == "model"
        return known and candidate.endpoint is not None and self.config.canary_share > 0.0

    def _verdict(self, state: PromotionState, candidate: Checkpoint) -> Verdict:
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        if sum(target.weight for target in state.stable.targets) <= 0.0:
            raise RejectedRecordError("nothing is served that it could be tried beside")
        if candidate.kind != "policy":
            return Verdict(True, "nothing tells beforehand how good it is, so it is tried", 0)
        # Without a trial the gate alone must keep the stated error. With one, half of it is kept
        # for what held-out rollouts may prove, and half for the trial.
        evidence, error = state.evidence.logged(), None
        if rollouts_of(evidence) >= self.config.least_evidence:
            level = self._level(state, candidate)
            error = level if self.config.canary_share == 0.0 else None
        policy, promoted = self._policy(candidate), state.registry.promoted
        try:
            return judge(policy, self._policy(promoted), evidence, self.config, error)
        except (ValueError, RejectedRecordError) as broken:
            # The candidate or what is promoted. A candidate that is broken fails here once more.
            # Else the baseline takes the place of what is promoted, as it does in the gateway.
            verdict = judge(policy, UniformPolicy(), evidence, self.config, error)
            if promoted is None:
                raise
            reason = (
                f"{promoted.version} is promoted and broken ({broken}), so the uniform baseline"
                f" stands for it: {verdict.reason}"
            )
            return replace(verdict, reason=reason)

    def _level(self, state: PromotionState, candidate: Checkpoint) -> float:
        """Return how likely held-out rollouts may be wrong about a candidate.

        Evidence beyond `most_evidence` drives out the oldest, and then a bet begins anew.
        """
        bet = f"{candidate.version} {state.evidence.heard // self.config.most_evidence}"
        if bet != state.leveled:
            alone = self.config.canary_share == 0.0
            error = self.config.error if alone else self.config.error / 2
            state.leveled = bet
            state.level = (state.trials if alone else state.screens).begin(error)
        return state.level

    def _try(
        self, state: PromotionState, ruling: Ruling, candidate: Checkpoint, reason: str
    ) -> None:
        """Give a candidate its share of new rollouts beside what is served."""
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        change(state, ruling, candidate, CheckpointState.CANARY, reason)
        trial = Comparison.of(
            candidate.version,
            heaviest(state.stable),
            state.trials.begin(self.config.error),
            self.config.tolerance,
            self.config,
        )
        trial.worth_is_sure = self._is_sure_off_policy(state, candidate, trial.old)
        if trial.worth_is_sure:
            state.screens.win()
        state.comparison = trial
        state.evidence.thinning = 0
        self._write_route(state, ruling, reason)

    def _is_sure_off_policy(
        self, state: PromotionState, candidate: Checkpoint, champion: str
    ) -> bool:
        """Return whether held-out rollouts show that a policy earns no less than a version.

        They do so only where each made one decision: the value of a rollout with several is the
        effect of changing one of them, and not of changing all.
        """
        evidence, promoted = state.evidence.logged(), state.registry.promoted
        if candidate.kind != "policy" or len(evidence) != rollouts_of(evidence):
            return False
        if champion != (promoted.version if promoted is not None else UNIFORM_VERSION):
            return False
        try:
            policy, other = self._policy(candidate), self._policy(promoted)
            return judge(policy, other, evidence, self.config, state.level).passed
        except (ValueError, RejectedRecordError):
            return False  # the champion is broken; its own rollouts are what is compared with

    def _promote(
        self, state: PromotionState, ruling: Ruling, candidate: Checkpoint, reason: str
    ) -> None:
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        champion, state.replaced = state.registry.promoted, state.stable
        if champion is not None:
            change(
                state, ruling, champion, CheckpointState.RETIRED, f"replaced by {candidate.version}"
            )
        change(state, ruling, candidate, CheckpointState.PROMOTED, reason)
        state.watched = None
        if self.config.control_share > 0.0:
            state.watched = Comparison.of(
                candidate.version,
                heaviest(state.replaced),
                state.watches.begin(self.config.error),
                self.config.drop,
                self.config,
            )
        served = {"targets": [target_of(candidate)], "fallbacks": behind(state)}
        self._serve(state, ruling, state.stable.model_copy(update=served), reason)

    def _end_trial(
        self, state: PromotionState, ruling: Ruling, trial: Comparison, decided: Decided
    ) -> None:
        """Promote or roll back the candidate, then judge who waits."""
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        candidate, state.comparison = state.checkpoints[trial.new], None
        state.judged = 0  # the candidate that waits is judged anew, maybe beside another champion
        if decided.passed:
            state.trials.win()
            self._promote(state, ruling, candidate, decided.reason)
        else:
            change(state, ruling, candidate, CheckpointState.ROLLED_BACK, decided.reason)
            self._serve(state, ruling, state.stable, decided.reason)
        self._judge_waiting(state, ruling)

    def _end_watch(
        self, state: PromotionState, ruling: Ruling, watch: Comparison, decided: Decided
    ) -> None:
        """Give the control's share back, or serve it again where the promoted version dropped."""
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        state.watched = None
        if decided.passed:
            self._write_route(state, ruling, f"watched: {decided.reason}")
            return
        state.watches.win()
        if state.comparison is not None:
            reason = f"{watch.new}, which it was compared with, was taken back"
            self._stop_trial(state, ruling, state.comparison.new, reason)
        dropped = state.checkpoints[watch.new]
        change(state, ruling, dropped, CheckpointState.ROLLED_BACK, decided.reason)
        self._serve_replaced(state, ruling, f"served again: {watch.new}: {decided.reason}")
        self._judge_waiting(state, ruling)

    def _serve_replaced(self, state: PromotionState, ruling: Ruling, reason: str) -> None:
        assert state.replaced is not None  # noqa: S101 - noted when it was replaced
        before = state.checkpoints.get(heaviest(state.replaced))
        if before is not None:
            change(state, ruling, before, CheckpointState.PROMOTED, reason)
        served, state.watched, state.replaced = state.replaced, None, None
        self._serve(state, ruling, served, reason)

    def _serve(self, state: PromotionState, ruling: Ruling, route: Route, reason: str) -> None:
        """Serve a route from now on, with the reason."""
        state.stable = route
        self._write_route(state, ruling, reason)

    def _write_route(self, state: PromotionState, ruling: Ruling, reason: str) -> None:
        """Write what is served: the stable route, a candidate on trial beside it, and the control.

        The route carries its history, which must outlive the compaction of the topic.
        """
        assert state.stable is not None  # noqa: S101 - it is known what is served
        state.stable = state.stable.model_copy(update={"reason": reason, "control": None})
        changes: dict[str, object] = {}
        if state.comparison is not None:
            candidate = state.checkpoints[state.comparison.new]
            share = self.config.share_beside(state.comparison.old)
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
        state.current = route.succeeding(state.current)
        ruling.routes.append(state.current)

    def _tell(self, state: PromotionState, ruling: Ruling, name: str) -> None:
        """Tell what the gate waits for, where that has changed."""
        status, sign = status_of(name, state, self.config)
        if sign != state.told:
            state.told = sign
            ruling.statuses.append(status)

    def _policy(self, checkpoint: Checkpoint | None) -> Policy:
        if checkpoint is None:
            return UniformPolicy()
        if checkpoint.artifact is None:
            raise ValueError(f"{checkpoint.name} {checkpoint.version} has no artifact")
        artifact = checkpoint.artifact
        return self._policies.load(self._artifacts.get(artifact), artifact.media_type)
