"""The knowledge of the bandit: what it has learned from rewarded decisions."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from learners.bandit.config import BanditConfig
from learners.bandit.features import Features
from learners.bandit.regressor import BlockBayesianRegressor
from learners.bandit.serialization import (
    finite,
    packed,
    regressor_from_json,
    regressor_to_json,
    unpacked,
)

if TYPE_CHECKING:
    from river.drift import ADWIN

# The errors lie in the state, so their number must be bounded.
ERRORS_WATCHED = 2000


@dataclass(frozen=True)
class Observation:
    """A decision and its reward.

    Attributes:
        decision_id: event id of the decision.
        x: features of the choice.
        propensity: probability that the choice had, in (0, 1].
        slate: number of candidates.
        value: the learned reward, costs subtracted.
        retracted: whether the reward was taken back. The decision then teaches nothing. It keeps
            its place, because a reward may come after all.
    """

    decision_id: str
    x: Features
    propensity: float
    slate: int
    value: float
    retracted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the observation as JSON, exact to the bit."""
        return asdict(self) | {
            "x": [packed(list(self.x), "<u4"), packed(list(self.x.values()), "<f8")]
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Observation":
        """Return the observation that `to_json` wrote."""
        indices, values = document["x"]
        x = dict(zip(unpacked(indices, "<u4").tolist(), finite(values).tolist(), strict=True))
        return cls(**document | {"x": x})


@dataclass
class Knowledge:
    """Everything learned from the examples so far.

    Attributes:
        examples: number of rewarded decisions learned.
        value_total: sum of the learned rewards.
        squared_error: exponentially weighted mean of the squared prediction errors, each before its
            example was learned.
        drifts: how often ADWIN found that the errors had risen.
        errors: absolute errors that ADWIN has seen since its last restart.
    """

    regressor: BlockBayesianRegressor
    examples: int = 0
    value_total: float = 0.0
    squared_error: float = 0.0
    drifts: int = 0
    errors: list[float] = field(default_factory=list)
    _detector: "ADWIN | None" = None

    def learn(self, observation: Observation, config: BanditConfig) -> None:
        """Learn one example. An example that was retracted changes nothing."""
        if observation.retracted:
            return
        believed = self.regressor.predict_one(observation.x)
        error = observation.value - believed
        recent = max(1.0 - 0.5 ** (1.0 / config.error_halflife), 1.0 / (self.examples + 1))
        self.squared_error += recent * (error * error - self.squared_error)
        self.value_total += observation.value
        self.examples += 1
        self._watch(abs(error), config)
        match config.update:
            case "direct":
                self.regressor.learn_one(observation.x, observation.value)
            case "importance":
                weight = min(1.0 / (observation.slate * observation.propensity), config.most_weight)
                self.regressor.learn_one(observation.x, observation.value, weight)
            # For a candidate that was not chosen the estimate equals the belief, so only the choice
            # teaches anything.
            case "doubly-robust":
                surprise = error * min(1.0 / observation.propensity, config.most_weight)
                self.regressor.learn_one(observation.x, believed + surprise)

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
            },
            option=orjson.OPT_SORT_KEYS,
        )

    @classmethod
    def from_bytes(cls, value: bytes) -> "Knowledge":
        """Return the knowledge that `to_bytes` wrote."""
        document = orjson.loads(value)
        regressor, errors = (
            regressor_from_json(document["regressor"]),
            finite(document["errors"]).tolist(),
        )
        # The first states called examples lessons, and their bytes must stay readable.
        examples = document.pop("lessons")
        return cls(**document | {"regressor": regressor, "errors": errors, "examples": examples})
