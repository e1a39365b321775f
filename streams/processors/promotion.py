"""Promotion: candidates pass the gate and a trial or are rejected with a reason; what drops is
taken back.
"""

from typing import ClassVar

from learners.gate import GateConfig, Verdict
from learners.policies import BUILT_IN, PolicyLoader
from learners.trial import Comparison, Decided, trial_verdict, watch_verdict
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.clock import from_milliseconds
from schemas.envelope import AnyEvent
from schemas.outcomes import OutcomeEvent, RolloutOutcome
from schemas.routes import Route, RouteEvent
from schemas.topics import CHECKPOINTS, OUTCOMES, ROUTES, Topic
from streams.processing.processor import Outcome, Processor
from streams.processors.evidence import Worth, dated
from streams.processors.promotion_state import (
    PromotionState,
    apply,
    baseline_route,
    heaviest,
    trimmed,
)
from streams.processors.ruling import Ruling
from streams.processors.screen import Screen
from streams.storage.artifacts import ArtifactReader
from streams.storage.errors import RejectedRecordError
from streams.storage.records import Record

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
        self._screen = Screen(config, artifacts, policies)
        self._worth = worth

    def handle(
        self, state: PromotionState | None, event: AnyEvent, source: Record
    ) -> Outcome[PromotionState]:
        """Take in an outcome or a change made by hand, or judge a candidate."""
        state = state or PromotionState()
        ruling = Ruling(state, self.config)
        # An event of our own that has come back. It is in the state already.
        if event.event_id in state.own:
            state.own.remove(event.event_id)
        elif isinstance(event, OutcomeEvent):
            self._observe(ruling, dated(event, from_milliseconds(source.timestamp_ms)))
        elif isinstance(event, RouteEvent):
            self._follow_route(ruling, event.payload)
        else:
            assert isinstance(event, CheckpointEvent)  # noqa: S101 - the topics hold nothing else
            self._register(ruling, event.payload)
        # Last, when everything that follows from the event is known.
        ruling.tell(event.payload.name)
        return Outcome(ruling.outputs(self, source, event.time), trimmed(state))

    def encode_state(self, state: PromotionState) -> bytes:
        """Return the state as JSON."""
        return state.model_dump_json().encode()

    def decode_state(self, value: bytes) -> PromotionState:
        """Return the state from JSON."""
        return PromotionState.model_validate_json(value)

    def _observe(self, ruling: Ruling, event: OutcomeEvent) -> None:
        """Take in what a rollout came to. A trial or a watch may end by it, or a candidate pass."""
        state = ruling.state
        evidence, outcome = state.evidence, event.payload
        if outcome.split == "test":
            return
        self._end_orphans(ruling)
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
        self._look_again(state)
        self._conclude(ruling)
        self._judge_waiting(ruling)

    def _conclude(self, ruling: Ruling) -> None:
        """End the trial and the watch where their time has come, the watch first: a champion that
        is taken back is nothing to compare a candidate with.
        """
        state = ruling.state
        if state.watched is not None:
            decided = watch_verdict(state.watched, self.config)
            if decided is not None:
                self._end_watch(ruling, state.watched, decided)
        if state.comparison is not None:
            decided = trial_verdict(state.comparison, self.config)
            if decided is not None:
                self._end_trial(ruling, state.comparison, decided)
            elif self._may_have_more(state.comparison):
                state.comparison.get(self.config.raised_share)
                ruling.write_route("nothing speaks against what is on trial, so it gets more")

    def _look_again(self, state: PromotionState) -> None:
        """See whether held-out rollouts show by now that what is on trial earns no less. Many of
        them were choices of the candidate itself, so they tell more than those before the trial.
        """
        trial = state.comparison
        if trial is None or trial.worth_is_sure or not self._is_new(state):
            return
        state.judged = max(1, state.evidence.usable)
        if self._screen.is_sure(state, state.checkpoints[trial.new], trial.old):
            trial.worth_is_sure = True
            state.screens.win()

    def _is_new(self, state: PromotionState) -> bool:
        """Return whether there is enough new evidence since the last time that it was judged."""
        return state.evidence.usable >= JUDGED_AGAIN * state.judged

    def _may_have_more(self, trial: Comparison) -> bool:
        return (
            trial.share < self.config.raised_share
            and trial.pairs >= self.config.raise_after
            and trial.promises
        )

    def _end_orphans(self, ruling: Ruling) -> None:
        """Roll back what serves a share and is on nobody's trial: a person released its route, or
        an earlier release of Everloop began the trial.
        """
        state = ruling.state
        if state.comparison is not None or state.held or state.stable is None:
            return
        for checkpoint in list(state.checkpoints.values()):
            if checkpoint.state is CheckpointState.CANARY:
                ruling.stop_trial(checkpoint.version, "nobody tries it any more")
                ruling.write_route(f"without {checkpoint.version}")

    def _follow_route(self, ruling: Ruling, route: Route) -> None:
        """Note what somebody else serves.

        A trial goes on where both of its versions do. Else nothing is compared any more.
        """
        state = ruling.state
        state.held, trial = route.held, state.comparison
        state.current = route.with_history_after(state.current)
        state.stable = route.model_copy(update={"control": None})
        # A person, or the configuration, serves something else now: what was compared is over.
        state.watched = state.replaced = None
        versions = route.served.versions
        if trial is not None and (route.held or not {trial.new, trial.old} <= versions):
            if not route.held or trial.new not in versions:
                ruling.stop_trial(trial.new, "a person took over the route")
            state.comparison = None
            if not route.held and trial.new in versions:
                ruling.write_route(f"without {trial.new}")
        elif trial is not None:
            others = [target for target in route.targets if target.version != trial.new]
            state.stable = state.stable.model_copy(update={"targets": others})
        self._judge_waiting(ruling)

    def _register(self, ruling: Ruling, told: Checkpoint) -> None:
        """Take in a change of state that was not made here; a candidate waits to be judged."""
        state = ruling.state
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
            self._drop(ruling, told)
        if told.state is CheckpointState.CANDIDATE and (
            told.kind == "policy" or self._can_be_tried(state, told)
        ):
            self._queue(ruling, told)

    def _queue(self, ruling: Ruling, candidate: Checkpoint) -> None:
        """Let a candidate wait, in the place of an older one."""
        state = ruling.state
        older = state.checkpoints.get(state.waiting or "")
        if older is not None:
            reason = f"superseded by {candidate.version}; {state.verdict or 'not judged yet'}"
            ruling.change(older, CheckpointState.REJECTED, reason)
        state.waiting, state.verdict, state.needed, state.judged = candidate.version, "", None, 0
        self._judge_waiting(ruling)

    def _judge_waiting(self, ruling: Ruling) -> None:
        """Judge the candidate that waits, unless one is on trial, or little is new since the last
        time. What passes is tried, or promoted where there are no trials.
        """
        state = ruling.state
        candidate = state.checkpoints.get(state.waiting or "")
        # One trial at a time: two would share the rollouts, and both would take longer.
        if candidate is None or state.comparison is not None:
            return
        if state.stable is not None and candidate.version in state.stable.served.versions:
            state.waiting = None
            ruling.change(candidate, CheckpointState.EVALUATED, "a person serves it")
            return
        is_policy = candidate.kind == "policy"
        if is_policy and state.verdict and not self._is_new(state):
            return
        # Without a known age, a trial would count rollouts whose reward is still to come.
        if not is_policy and not state.evidence.knows_delays(self.config):
            state.verdict = "no reward has come yet, so nobody knows how long to wait for one"
            return
        # Here and not later: the age must not change while a trial counts by it.
        state.evidence.learn_maturity(self.config)
        state.judged = max(1, state.evidence.usable)
        try:
            verdict = self._screen.verdict(state, candidate)
        except (ValueError, RejectedRecordError) as error:
            state.waiting = None
            reason = f"cannot be served: {error}"
            ruling.change(candidate, CheckpointState.REJECTED, reason)
            return
        state.verdict, state.needed = verdict.reason, verdict.needed
        # Where a trial follows, a good chance is enough: the trial must be sure. Off-policy it
        # takes very long to be sure of a version that differs much from what serves.
        tries = self.config.canary_share > 0.0 and not state.held
        if verdict.passed or (tries and verdict.likely):
            state.waiting = None
            self._let_through(ruling, candidate, verdict)

    def _let_through(self, ruling: Ruling, candidate: Checkpoint, verdict: Verdict) -> None:
        state, reason = ruling.state, verdict.reason
        if state.held:
            reason = f"{reason}; not promoted, since the route is held by hand"
        ruling.change(candidate, CheckpointState.EVALUATED, reason, verdict.metrics)
        if state.held:
            return
        if self.config.canary_share > 0.0:
            assert state.stable is not None  # noqa: S101 - nothing is judged before that is known
            sure = self._screen.is_sure(state, candidate, heaviest(state.stable))
            ruling.begin_trial(candidate, verdict.reason, sure)
        else:
            state.trials.win()
            ruling.promote(candidate, verdict.reason)

    def _drop(self, ruling: Ruling, fallen: Checkpoint) -> None:
        """Serve what was served before, when the server of a version has gone."""
        state = ruling.state
        if state.waiting == fallen.version:
            state.waiting = None
        if state.stable is None:
            return
        trial = state.comparison
        if trial is not None and trial.new == fallen.version:
            state.comparison = None
            ruling.write_route(fallen.reason)
            self._judge_waiting(ruling)
        elif (
            heaviest(state.stable) == fallen.version
            and state.replaced is not None
            and not state.held
        ):
            if trial is not None:
                reason = f"{fallen.version}, which it was compared with, is gone"
                ruling.stop_trial(trial.new, reason)
            ruling.serve_replaced(f"served again: {fallen.version} {fallen.reason}")
            self._judge_waiting(ruling)

    def _can_be_tried(self, state: PromotionState, candidate: Checkpoint) -> bool:
        known = state.stable is not None and state.stable.kind == "model"
        return known and candidate.endpoint is not None and self.config.canary_share > 0.0

    def _end_trial(self, ruling: Ruling, trial: Comparison, decided: Decided) -> None:
        """Promote or roll back the candidate, then judge who waits."""
        state = ruling.state
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        candidate, state.comparison = state.checkpoints[trial.new], None
        state.judged = 0  # the candidate that waits is judged anew, maybe beside another champion
        if decided.passed:
            state.trials.win()
            ruling.promote(candidate, decided.reason)
        else:
            ruling.change(candidate, CheckpointState.ROLLED_BACK, decided.reason)
            ruling.serve(state.stable, decided.reason)
        self._judge_waiting(ruling)

    def _end_watch(self, ruling: Ruling, watch: Comparison, decided: Decided) -> None:
        """Give the control's share back, or serve it again where the promoted version dropped."""
        state = ruling.state
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        state.watched = None
        if decided.passed:
            ruling.write_route(f"watched: {decided.reason}")
            return
        state.watches.win()
        if state.comparison is not None:
            # The trial compared with a version that serves no more, so it says nothing now.
            reason = f"{watch.new}, which it was compared with, was taken back"
            ruling.stop_trial(state.comparison.new, reason)
        dropped = state.checkpoints[watch.new]
        ruling.change(dropped, CheckpointState.ROLLED_BACK, decided.reason)
        ruling.serve_replaced(f"served again: {watch.new}: {decided.reason}")
        self._judge_waiting(ruling)
