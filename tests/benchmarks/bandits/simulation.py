"""Does evaluation tell the truth? A thousand simulated logs, gates and trials, whose truth is
known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.bounds import decisions_needed
from learners.evaluation import evaluate
from learners.gains import difference_deviation
from learners.gate import GateConfig, judge
from learners.logged import Logged
from learners.policies import UNIFORM_VERSION
from learners.trial import Comparison, Result, trial_verdict, watch_verdict
from schemas.decisions import Candidate, Decision

SIMULATIONS = 1000
CONFIDENCE = 0.95
CONTEXTS = ("pain", "sleep", "stroke", "memory")
ARMS = tuple(Candidate(text=word) for word in ("aspirin", "zinc", "coffee", "running", "rest"))
LOGS = (300, 1000)
GAINS = (0.05, 0.1, 0.2)
DROPS = (0.1, 0.2, 0.3)
ESTIMATORS = ("ips", "snips", "direct", "doubly_robust", "switch")
Floats = NDArray[np.float64]


@dataclass
class Table:
    """A policy by context: shape (contexts, arms), rows sum to 1."""

    chances: Floats
    feature_version: int = 0

    def probabilities(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[float]:
        """Return the row of a context."""
        row: list[float] = self.chances[CONTEXTS.index(context)].tolist()
        return row


def measured() -> dict[str, Any]:
    """Return coverage, bias and variance of evaluation, and how often gates and trials are
    right.
    """
    return {
        "simulations": SIMULATIONS,
        "evaluation": _evaluation(),
        "gate": _gate(),
        "trial": _trials(),
    }


def _log(
    random: np.random.Generator, worth: Floats, logger: Floats, count: int, version: str
) -> list[Logged]:
    """Return decisions of a policy, with Bernoulli rewards of mean `worth` by context and arm."""
    items = []
    for context in random.integers(len(CONTEXTS), size=count):
        chances = logger[context]
        arm = int(random.choice(len(ARMS), p=chances))
        decision = Decision.model_construct(
            policy="simulated",
            policy_version=version,
            feature_version=0,
            tenant="default",
            context=CONTEXTS[context],
            candidates=list(ARMS),
            probabilities=chances.tolist(),
            choice=arm,
            propensity=float(chances[arm]),
        )
        items.append(Logged(decision, float(random.random() < worth[context, arm])))
    return items


def _value(policy: Floats, worth: Floats) -> float:
    return float((policy * worth).sum(axis=1).mean())


def _leaning(best: Sequence[int], share: float) -> Floats:
    """Return a policy that takes one arm a context with this probability, the others alike."""
    chances = np.full((len(CONTEXTS), len(ARMS)), (1.0 - share) / (len(ARMS) - 1))
    chances[range(len(CONTEXTS)), best] = share
    return chances


def _world(random: np.random.Generator) -> Floats:
    worth: Floats = random.uniform(0.2, 0.8, size=(len(CONTEXTS), len(ARMS)))
    return worth


def _evaluation() -> dict[str, Any]:
    """Evaluate a policy on logs of another one whose least propensity is 0.06."""
    found: dict[str, Any] = {}
    for count in LOGS:
        runs = _all(partial(_evaluated, count))
        found[str(count)] = {
            "coverage": fmean(run["covered"] for run in runs),
            "mean_width": fmean(run["width"] for run in runs),
            "estimators": {
                name: {
                    "bias": fmean(run[name] for run in runs),
                    "deviation": float(np.std([run[name] for run in runs])),
                    "rmse": float(np.sqrt(np.mean([run[name] ** 2 for run in runs]))),
                }
                for name in ESTIMATORS
            },
        }
    return found


def _evaluated(count: int, seed: int) -> dict[str, float]:
    random = np.random.default_rng(seed)
    worth = _world(random)
    log = _log(random, worth, _leaning([0, 1, 2, 3], 0.76), count, "logger")
    policy = _leaning(worth.argmax(axis=1).tolist(), 0.9)
    truth, result = _value(policy, worth), evaluate(Table(policy), log, CONFIDENCE)
    return {
        "covered": float(result.interval.low <= truth <= result.interval.high),
        "width": result.interval.high - result.interval.low,
        **{name: getattr(result, name) - truth for name in ESTIMATORS},
    }


def _gate() -> dict[str, Any]:
    """Judge candidates of known gain over the champion, on uniform logs and on the champion's
    own.
    """
    exact, tolerant = GateConfig(tolerance=0.0), GateConfig()
    found: dict[str, Any] = {"confidence": exact.confidence, "tolerance": tolerant.tolerance}
    for logger in ("uniform", "champion"):
        for count in LOGS:
            rates = {
                "same value, no tolerance": _rate(partial(_judged, exact, logger, count, 0.0)),
                "worse by the tolerance": _rate(
                    partial(_judged, tolerant, logger, count, -tolerant.tolerance)
                ),
                **{
                    f"better by {gain}": _rate(partial(_judged, tolerant, logger, count, gain))
                    for gain in GAINS
                },
            }
            found[f"{count} decisions of the {logger}"] = rates
    found["decisions_needed"] = {f"better by {gain}": _needed(gain) for gain in GAINS}
    return found


def _pair(gain: float) -> tuple[Floats, Floats, Floats]:
    """Return worths, champion and candidate, which choose differently; the candidate earns this
    much more.
    """
    champion, candidate = _leaning([0] * len(CONTEXTS), 0.9), _leaning([1] * len(CONTEXTS), 0.9)
    worth = np.full_like(champion, 0.4)
    worth[:, 0] = 0.6
    worth[:, 1] = 0.6 + gain / float(candidate[0, 1] - champion[0, 1])
    return worth, champion, candidate


def _judged(config: GateConfig, logger: str, count: int, gain: float, seed: int) -> bool:
    worth, champion, candidate = _pair(gain)
    random = np.random.default_rng(seed)
    if logger == "uniform":
        log = _log(random, worth, np.full_like(worth, 1 / len(ARMS)), count, UNIFORM_VERSION)
    else:
        log = _log(random, worth, champion, count, "champion")
    return judge(Table(candidate), Table(champion), log, config).passed


def _needed(gain: float) -> int:
    """Return what the power calculator says of uniform logs."""
    worth, champion, candidate = _pair(gain)
    log = _log(
        np.random.default_rng(0), worth, np.full_like(worth, 1 / len(ARMS)), 2000, UNIFORM_VERSION
    )
    return decisions_needed(gain, difference_deviation(Table(candidate), Table(champion), log))


def _trials() -> dict[str, Any]:
    """Try candidates on a share of the traffic, looked at after every rollout, for 20,000 rollouts
    at most.
    """
    config, exact = GateConfig(), GateConfig(tolerance=0.0)
    return {
        "canary_share": config.canary_share,
        "same value, no tolerance: promoted": _rate(partial(_tried, exact, 0.0)),
        "worse by the tolerance: promoted": _rate(partial(_tried, config, -config.tolerance)),
        **{f"better by {gain}: promoted": _rate(partial(_tried, config, gain)) for gain in GAINS},
        **{f"worse by {gain}: promoted": _rate(partial(_tried, config, -gain)) for gain in GAINS},
        "no drop: rolled back within 20,000 rollouts": _rate(partial(_dropped, config, 0.0)),
        **{
            f"drop of {drop}: rolled back within 20,000": _rate(partial(_dropped, config, drop))
            for drop in DROPS
        },
    }


def _tried(config: GateConfig, gain: float, seed: int) -> bool:
    random = np.random.default_rng(seed)
    trial = Comparison.of("new", "old", config.error, config.tolerance, 0.5, config)
    for _ in range(20_000):
        version, mean = (
            ("new", 0.6 + gain) if random.random() < config.canary_share else ("old", 0.6)
        )
        trial.take(Result(version, float(random.random() < mean), failed=False))
        decided = trial_verdict(trial, config) if version == "new" else None
        if decided is not None:
            return decided.passed
    return False


def _dropped(config: GateConfig, drop: float, seed: int) -> bool:
    """Watch a version for 20,000 rollouts, beside a control of a twentieth."""
    random = np.random.default_rng(seed)
    watch = Comparison.of("new", "old", config.error, config.drop, 0.5, config)
    for _ in range(20_000):
        is_old = random.random() < config.control_share
        version, mean = ("old", 0.8) if is_old else ("new", 0.8 - drop)
        watch.take(Result(version, float(random.random() < mean), failed=False))
        decided = watch_verdict(watch, config) if is_old else None
        if decided is not None:
            return not decided.passed
    return False


def _rate(simulation: Callable[[int], bool]) -> float:
    return fmean(_all(simulation))


def _all(simulation: Callable[[int], Any]) -> list[Any]:
    with get_context("fork").Pool() as pool:
        return pool.map(simulation, range(SIMULATIONS), chunksize=10)
