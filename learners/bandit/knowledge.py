"""The knowledge of the bandit: what it has learned from rewarded decisions."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from learners.bandit.arrays import finite, packed
from learners.bandit.config import BanditConfig
from learners.bandit.features import Features
from learners.bandit.history import History
from learners.bandit.regressor import BlockBayesianRegressor, Moment
from learners.bandit.serialization import regressor_from_json, regressor_to_json
from learners.bandit.steps import Steps

if TYPE_CHECKING:
    from river.drift import ADWIN

# The errors lie in the state, so their number must be bounded.
ERRORS_WATCHED = 2000


@dataclass(frozen=True)
class Observation:
    """A decision whose choice was rewarded.

    Attributes:
        x: features of the choice.
        propensity: probability that the choice had, in (0, 1].
        slate: number of candidates.
        key: a number of the decision, in [0, 2^64); it decides which members of a bootstrap
            learn it.
    """

    x: Features
    propensity: float
    slate: int
    key: int = 0


@dataclass
class Knowledge:
    """Everything learned from the examples so far.

    Attributes:
        examples: number of rewarded decisions learned, without those that were taken back.
        value_total: sum of the learned rewards.
        squared_error: exponentially weighted mean of the squared prediction errors, each before its
            example was learned.
        drifts: how often ADWIN found that the errors had risen.
        errors: absolute errors that ADWIN has seen since its last restart.
        history: when the examples were learned.
        steps: what the newest examples did.
    """

    regressor: BlockBayesianRegressor
    examples: int = 0
    value_total: float = 0.0
    squared_error: float = 0.0
    drifts: int = 0
    errors: list[float] = field(default_factory=list)
    history: History = field(default_factory=lambda: History(4096))
    steps: Steps = field(default_factory=lambda: Steps(2**18, 4096))
    _detector: "ADWIN | None" = None

    def learn(
        self, observation: Observation, value: float, config: BanditConfig, time_ms: int = 0
    ) -> None:
        """Learn one example.

        Args:
            value: the learned reward, costs subtracted.
            time_ms: when the example was made, in milliseconds since 1970.
        """
        regressor = self.regressor
        believed = regressor.predict_one(observation.x)
        error = value - believed
        recent = max(1.0 - 0.5 ** (1.0 / config.error_halflife), 1.0 / (self.examples + 1))
        self.squared_error += recent * (error * error - self.squared_error)
        self.value_total += value
        self.examples += 1
        self._watch(abs(error), config)
        self.history.note(observation.key, time_ms, regressor.moment(observation.x))
        target, weight = _lesson(observation, value, believed, config)
        step = regressor.take_step(observation.x, target, weight, observation.key)
        if step is not None:
            self.steps.note(step)

    def revise(
        self,
        observation: Observation,
        moment: Moment,
        old: float | None,
        new: float | None,
        config: BanditConfig,
    ) -> float | None:
        """Replace the reward of an example that was learned before.

        Args:
            moment: when it was learned, by the history.
            old: the reward learned; None if it was taken back.
            new: the right one; None takes it back.

        Returns:
            By how much the prediction for it moved, >= 0; None if none of its features was ever
            learned. Then nothing changed.
        """
        believed = self.regressor.predict_one(observation.x)
        before, after = (
            None if value is None else _lesson(observation, value, believed, config)[0]
            for value in (old, new)
        )
        weight = _lesson(observation, 0.0, believed, config)[1]
        if steps := self.steps.since(observation.key):
            self.regressor.revise_step(steps, moment, after, weight)
        elif not self.regressor.revise(
            observation.x, moment, before, after, weight, observation.key
        ):
            return None
        self.value_total += (new or 0.0) - (old or 0.0)
        self.examples += (new is not None) - (old is not None)
        return abs(self.regressor.predict_one(observation.x) - believed)

    def _watch(self, error: float, config: BanditConfig) -> None:
        """Give an error to ADWIN (Bifet & Gavaldà, SDM 2007); after an alarm, loosen the beliefs.

        ADWIN's own state cannot be stored, only the errors that it has seen. So it restarts: with
        the newer half of the errors when there are many, with none after an alarm.
        """
        # Imported here because it takes seconds, in every process that reads settings.
        from river.drift import ADWIN

        if self._detector is None:
            self._detector = ADWIN(delta=config.drift_delta)
            for seen in self.errors:
                self._detector.update(seen)
        before = self._detector.estimation
        self._detector.update(error)
        self.errors.append(error)
        if self._detector.drift_detected:
            if self._detector.estimation > before:
                self.drifts += 1
                self.regressor.loosen(config.drift_reaction)
            self.errors, self._detector = [], None
        elif len(self.errors) >= ERRORS_WATCHED:
            self.errors, self._detector = self.errors[ERRORS_WATCHED // 2 :], None

    def to_bytes(self) -> bytes:
        """Return the knowledge as JSON, exact to the bit."""
        return orjson.dumps(
            {
                "regressor": regressor_to_json(self.regressor),
                "lessons": self.examples,
                "value_total": self.value_total,
                "squared_error": self.squared_error,
                "drifts": self.drifts,
                "errors": packed(self.errors, "<f8"),
                "history": self.history.to_json(),
                "steps": self.steps.to_json(),
            },
            option=orjson.OPT_SORT_KEYS,
        )

    @classmethod
    def from_bytes(cls, value: bytes) -> "Knowledge":
        """Return the knowledge that `to_bytes` wrote."""
        return cls.from_json(orjson.loads(value))

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Knowledge":
        """Return the knowledge in a document that `to_bytes` wrote."""
        return cls(
            regressor=regressor_from_json(document["regressor"]),
            examples=document["lessons"],
            value_total=document["value_total"],
            squared_error=document["squared_error"],
            drifts=document["drifts"],
            errors=finite(document["errors"]).tolist(),
            history=History.from_json(document["history"]),
            steps=Steps.from_json(document["steps"]),
        )


def _lesson(
    observation: Observation, value: float, believed: float, config: BanditConfig
) -> tuple[float, float]:
    """Return the target and the weight of an example."""
    match config.update:
        case "direct":
            return value, 1.0
        case "importance":
            weight = 1.0 / (observation.slate * observation.propensity)
            return value, min(weight, config.most_weight)
        # For a candidate that was not chosen the estimate equals the belief, so only the choice
        # teaches anything.
        case "doubly-robust":
            surprise = (value - believed) * min(1.0 / observation.propensity, config.most_weight)
            return believed + surprise, 1.0
