"""The screen: judges a candidate off-policy, on held-out rollouts, before it serves anybody."""

from dataclasses import replace

from learners.contract import Policy
from learners.gate import GateConfig, Verdict, judge
from learners.logged import rollouts_of
from learners.policies import UNIFORM_VERSION, PolicyLoader, UniformPolicy
from schemas.checkpoints import Checkpoint
from streams.processors.promotion_state import PromotionState
from streams.storage.artifacts import ArtifactReader
from streams.storage.errors import RejectedRecordError


class Screen:
    """Judges candidates on held-out rollouts, beside what is promoted.

    Args:
        policies: loads the artifacts of candidates and of what serves.
    """

    def __init__(
        self, config: GateConfig, artifacts: ArtifactReader, policies: PolicyLoader
    ) -> None:
        self.config = config
        self._artifacts = artifacts
        self._policies = policies

    def verdict(self, state: PromotionState, candidate: Checkpoint) -> Verdict:
        """Return the gate's verdict on a candidate.

        Raises:
            ValueError, RejectedRecordError: the candidate cannot be served.
        """
        # nothing is judged before it is known what is served
        assert state.stable is not None  # noqa: S101
        # A route that a person drained. A trial beside it would take all rollouts.
        if sum(target.weight for target in state.stable.targets) <= 0.0:
            raise RejectedRecordError("nothing is served that it could be tried beside")
        # A model's answers cannot be replayed from a log; only a trial can show what it does.
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

    def is_sure(self, state: PromotionState, candidate: Checkpoint, champion: str) -> bool:
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
            level = self._level(state, candidate)
            return judge(policy, other, evidence, self.config, level).passed
        except (ValueError, RejectedRecordError):
            return False  # the champion is broken; its own rollouts are what is compared with

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

    def _policy(self, checkpoint: Checkpoint | None) -> Policy:
        if checkpoint is None:
            return UniformPolicy()
        if checkpoint.artifact is None:
            raise ValueError(f"{checkpoint.name} {checkpoint.version} has no artifact")
        artifact = checkpoint.artifact
        return self._policies.load(self._artifacts.get(artifact), artifact.media_type)
