"""The bandit learner: folds rewarded decisions, applies corrections, and announces policies."""

from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from hashlib import blake2b, sha256
from math import sqrt

import orjson

from learners.announcements import Announcements
from learners.bandit.config import BanditConfig
from learners.bandit.embeddings import embedding
from learners.bandit.features import (
    EMBEDDED_VERSION,
    FEATURE_VERSION,
    identity_of,
    slate_of,
    words_of,
)
from learners.bandit.history import History
from learners.bandit.knowledge import Knowledge, Observation
from learners.bandit.policy import MEDIA_TYPE, BanditPolicy, Weights
from learners.bandit.regressor import BlockBayesianRegressor
from learners.bandit.serialization import vocabulary_from_json, vocabulary_to_json
from learners.bandit.steps import Steps
from learners.bandit.vocabulary import Vocabulary
from learners.bandit.worth import taught
from learners.contract import Corrections, NewCheckpoint
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
        feature_version=EMBEDDED_VERSION if config.embeddings else FEATURE_VERSION,
        vocabulary=vocabulary or Vocabulary(),
    )


@dataclass
class BanditState:
    """The state of the bandit: what it knows, and what it has announced.

    Attributes:
        vocabulary: the words of the contexts, and the candidates, of all examples. A retraction
            does not take words out of it.
        corrected: number of corrections and retractions learned; each undid the reward before it.
        uncorrected: number of those that changed nothing: the example was never learned, or the
            correction does not say what it replaces.
    """

    knowledge: Knowledge
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    announcements: Announcements = field(default_factory=Announcements)
    corrected: int = 0
    uncorrected: int = 0

    @property
    def examples(self) -> int:
        """Number of rewarded decisions learned, without those that were taken back."""
        return self.knowledge.examples


class BanditLearner:
    """Learns which candidate earns most, from the rewards of the chosen ones.

    It learns from rollouts of the split `train` only: the gate judges by the others, so they must
    never be learned.

    Args:
        target: logical name of the policy.
    """

    identity = f"bandit@5.{FEATURE_VERSION}"
    policy_type = BanditPolicy
    corrections: Corrections = "approximate"

    def __init__(self, target: str, config: BanditConfig | None = None) -> None:
        self.target = target
        self.config = config or BanditConfig()
        self.config_sha256 = sha256(
            orjson.dumps(self.config.model_dump(), option=orjson.OPT_SORT_KEYS)
        ).hexdigest()

    def initial(self) -> BanditState:
        """Return the state before the first example: equal expected rewards for all candidates."""
        regressor = BlockBayesianRegressor(self.config.regressor())
        history = History(self.config.remembered)
        steps = Steps(self.config.steps, self.config.remembered)
        return BanditState(Knowledge(regressor, history=history, steps=steps))

    def fold(self, state: BanditState, event: ExampleEvent) -> BanditState:
        """Learn one rewarded decision, or the correction or retraction of one.

        Other events change nothing.
        """
        state.announcements.due = False
        example = event.payload
        if not isinstance(example.body, BanditExample) or example.split != "train":
            return state
        if example.reward_revision > 1:
            self._correct(state, event, example.body)
            return state
        decision = example.body.decision
        state.vocabulary.take(
            words_of(decision.context), identity_of(decision.candidates[decision.choice])
        )
        observation = self._observation(state.vocabulary, event, example.body)
        value = taught(example, self.config)
        state.knowledge.learn(observation, value, self.config, _milliseconds(event.time))
        state.announcements.note(self.config.announce)
        return state

    def examples(self, state: BanditState) -> int:
        """Return the number of rewarded decisions in the state."""
        return state.examples

    def checkpoint(self, state: BanditState) -> NewCheckpoint | None:
        """Return the policy when one is due (see `AnnouncementConfig`), else None."""
        examples = state.examples
        if examples == 0 or not state.announcements.due:
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
                "weights": float(len(state.knowledge.regressor.beliefs.slot_of)),
                "drifts": float(state.knowledge.drifts),
                "corrected": float(state.corrected),
                "uncorrected": float(state.uncorrected),
            },
            uncorrected=state.uncorrected,
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
                "knowledge": orjson.Fragment(state.knowledge.to_bytes()),
                "vocabulary": vocabulary_to_json(state.vocabulary),
                "announcements": asdict(state.announcements),
                "corrected": state.corrected,
                "uncorrected": state.uncorrected,
            }
        )

    def decode(self, value: bytes) -> BanditState:
        """Return the state that `encode` wrote."""
        document = orjson.loads(value)
        return BanditState(
            Knowledge.from_json(document["knowledge"]),
            vocabulary_from_json(document["vocabulary"]),
            Announcements(**document["announcements"]),
            document["corrected"],
            document["uncorrected"],
        )

    def _observation(
        self, vocabulary: Vocabulary, event: ExampleEvent, body: BanditExample
    ) -> Observation:
        """Return the choice with the features that it has by a vocabulary."""
        decision, share = body.decision, self.config.tenant_share
        meaning = embedding(decision.context) if self.config.embeddings else None
        asked = decision.context, decision.candidates, event.tenant, share, vocabulary
        slate = slate_of(*asked, meaning)
        return Observation(
            x=slate.features(decision.choice),
            propensity=decision.propensity,
            slate=slate.count,
            key=_key(body),
        )

    def _correct(self, state: BanditState, event: ExampleEvent, body: BanditExample) -> None:
        """Replace what an example taught, as far as the correction says what that was."""
        example, moved = event.payload, None
        if (replaced := example.replaces) is not None:
            said = {name: getattr(replaced, name) for name in ("reward", "criteria", "cost")}
            before = example.model_copy(update=said)
            time_ms = _milliseconds(replaced.first)
            moment = state.knowledge.history.find(_key(body), time_ms)
            if moment is not None:
                vocabulary = state.vocabulary.before(moment.example)
                moved = state.knowledge.revise(
                    self._observation(vocabulary, event, body),
                    moment,
                    None if replaced.retracted else taught(before, self.config),
                    None if example.retracted else taught(example, self.config),
                    self.config,
                )
        if moved is None:
            state.uncorrected += 1
            return
        state.corrected += 1
        state.announcements.note(self.config.announce, moved)


def _key(body: BanditExample) -> int:
    return int.from_bytes(blake2b(body.decision_id.encode(), digest_size=8).digest())


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)
