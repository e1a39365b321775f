"""The bandit learner: folds rewarded decisions, applies corrections, and announces policies."""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import sqrt

import orjson

from learners.bandit.config import BanditConfig
from learners.bandit.features import FEATURE_VERSION, identity_of, slate_of, words_of
from learners.bandit.knowledge import Knowledge, Observation
from learners.bandit.policy import MEDIA_TYPE, BanditPolicy, Weights
from learners.bandit.regressor import BlockBayesianRegressor
from learners.bandit.serialization import vocabulary_from_json, vocabulary_to_json
from learners.bandit.vocabulary import Vocabulary
from learners.bandit.worth import taught
from learners.contract import NewCheckpoint
from schemas.examples import BanditExample, ExampleEvent


def policy_of(
    knowledge: Knowledge, config: BanditConfig, vocabulary: Vocabulary | None = None
) -> BanditPolicy:
    """Return the policy of this knowledge. It changes as the knowledge grows."""
    squarecb = config.exploration == "squarecb"
    return BanditPolicy(
        beliefs=knowledge.regressor,
        exploration=config.exploration,
        greed=config.gamma_scale * sqrt(knowledge.examples + 1)
        if squarecb
        else config.thompson_greed,
        epsilon=config.epsilon,
        cost_weight=config.cost_weight,
        tenant_share=config.tenant_share,
        vocabulary=vocabulary or Vocabulary(),
    )


@dataclass
class BanditState:
    """The state of the bandit: a snapshot, the examples since then, and the knowledge from both.

    Attributes:
        snapshot: knowledge before the recent examples, as bytes.
        knowledge: the snapshot with the recent examples learned.
        recent: examples whose reward may still be corrected, in the order learned.
        vocabulary: the words of the contexts, and the candidates, of all examples.
        corrected: number of corrections and retractions learned; each undid the reward before it.
        uncorrected: number of those that came too late, or for decisions never learned.
    """

    snapshot: bytes
    knowledge: Knowledge
    recent: list[Observation] = field(default_factory=list)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    corrected: int = 0
    uncorrected: int = 0

    @property
    def examples(self) -> int:
        """Number of rewarded decisions learned."""
        return self.knowledge.examples


class BanditLearner:
    """Learns which candidate earns most, from the rewards of the chosen ones.

    It learns from rollouts of the split `train` only: the gate judges by the others, so they must
    never be learned.

    Args:
        target: logical name of the policy.
    """

    identity = f"bandit@2.{FEATURE_VERSION}"
    policy_type = BanditPolicy

    def __init__(self, target: str, config: BanditConfig | None = None) -> None:
        self.target = target
        self.config = config or BanditConfig()
        self.config_sha256 = sha256(
            orjson.dumps(self.config.model_dump(), option=orjson.OPT_SORT_KEYS)
        ).hexdigest()

    def initial(self) -> BanditState:
        """Return the state before the first example: equal expected rewards for all candidates."""
        knowledge = Knowledge(BlockBayesianRegressor(self.config.regressor()))
        return BanditState(knowledge.to_bytes(), knowledge)

    def fold(self, state: BanditState, event: ExampleEvent) -> BanditState:
        """Learn one rewarded decision, or the correction or retraction of one.

        Other events change nothing.
        """
        example = event.payload
        if not isinstance(example.body, BanditExample) or example.split != "train":
            return state
        if example.reward_revision > 1:
            value = taught(example, self.config)
            return self._corrected(state, example.body.decision_id, value, example.retracted)
        observation = self._observation(state, event, example.body)
        state.knowledge.learn(observation, self.config)
        state.recent.append(observation)
        # Settle many at once, because each time copies the knowledge. `correctable` of them remain.
        if len(state.recent) >= 2 * self.config.correctable:
            settled = state.recent[: self.config.correctable]
            state.snapshot = self._after(state.snapshot, settled).to_bytes()
            state.recent = state.recent[self.config.correctable :]
        return state

    def examples(self, state: BanditState) -> int:
        """Return the number of rewarded decisions in the state."""
        return state.examples

    def checkpoint(self, state: BanditState) -> NewCheckpoint | None:
        """Return the policy after every `announce_every`-th example, else None."""
        examples = state.examples
        if examples == 0 or examples % self.config.announce_every:
            return None
        artifact = self.policy(state).to_bytes()
        return NewCheckpoint(
            name=self.target,
            version=f"{examples:06d}-{sha256(artifact).hexdigest()[:12]}",
            kind="policy",
            artifact=artifact,
            media_type=MEDIA_TYPE,
            examples=examples,
            metrics={
                "mean_reward": state.knowledge.value_total / examples,
                "squared_error": state.knowledge.squared_error,
                "weights": float(len(state.knowledge.regressor.slot_of)),
                "drifts": float(state.knowledge.drifts),
                "corrected": float(state.corrected),
                "uncorrected": float(state.uncorrected),
            },
        )

    def policy(self, state: BanditState) -> BanditPolicy:
        """Return the policy of a state. It does not change when more is learned."""
        live = policy_of(state.knowledge, self.config, state.vocabulary.copy())
        if self.config.exploration in ("thompson", "bag"):
            return replace(live, beliefs=deepcopy(state.knowledge.regressor))
        return replace(live, beliefs=Weights.of(state.knowledge.regressor))

    def encode(self, state: BanditState) -> bytes:
        """Return the state as JSON, exact to the bit."""
        return orjson.dumps(
            {
                "snapshot": orjson.Fragment(state.snapshot),
                "recent": [observation.to_json() for observation in state.recent],
                "vocabulary": vocabulary_to_json(state.vocabulary),
                "corrected": state.corrected,
                "uncorrected": state.uncorrected,
            }
        )

    def decode(self, value: bytes) -> BanditState:
        """Return the state that `encode` wrote. The recent examples are learned again."""
        document = orjson.loads(value)
        snapshot = orjson.dumps(document["snapshot"], option=orjson.OPT_SORT_KEYS)
        recent = [Observation.from_json(one) for one in document["recent"]]
        return BanditState(
            snapshot,
            self._after(snapshot, recent),
            recent,
            vocabulary_from_json(document["vocabulary"]),
            document["corrected"],
            document["uncorrected"],
        )

    def _observation(
        self, state: BanditState, event: ExampleEvent, body: BanditExample
    ) -> Observation:
        """Count the words of a decision, and return it with the features that it has by then."""
        decision, share = body.decision, self.config.tenant_share
        context, candidates = decision.context, decision.candidates
        state.vocabulary.take(words_of(context), identity_of(candidates[decision.choice]))
        slate = slate_of(context, candidates, event.tenant, share, state.vocabulary)
        return Observation(
            decision_id=body.decision_id,
            x=slate.features(decision.choice),
            propensity=decision.propensity,
            slate=slate.count,
            value=taught(event.payload, self.config),
        )

    def _corrected(
        self, state: BanditState, decision_id: str, value: float, retracted: bool
    ) -> BanditState:
        """Learn the recent examples again, with the corrected reward of one decision or none."""
        if all(observation.decision_id != decision_id for observation in state.recent):
            state.uncorrected += 1
            return state
        state.recent = [
            replace(observation, value=value, retracted=retracted)
            if observation.decision_id == decision_id
            else observation
            for observation in state.recent
        ]
        state.knowledge = self._after(state.snapshot, state.recent)
        state.corrected += 1
        return state

    def _after(self, snapshot: bytes, observations: list[Observation]) -> Knowledge:
        knowledge = Knowledge.from_bytes(snapshot)
        for observation in observations:
            knowledge.learn(observation, self.config)
        return knowledge
