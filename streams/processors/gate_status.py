"""The status of a gate: what it waits for, and how long that is likely to take."""

from math import log
from typing import Literal

from learners.gate import GateConfig
from learners.trial import Comparison
from schemas.gates import ArmSummary, GateStatus
from streams.processors.promotion_state import PromotionState

HELD_OUT_SHARE = 0.2
"""Share of rollouts that the gateway holds out by default; only the estimated time uses it."""


def status_of(name: str, state: PromotionState, config: GateConfig) -> tuple[GateStatus, str]:
    """Return what the gate of a name waits for, and a short sign that changes when it is worth
    telling: with the phase, the version, and every tenth more of evidence.
    """
    if state.held:
        status = GateStatus(name=name, phase="held", text="a person decides what is served")
    elif state.comparison is not None:
        status = _of_trial(name, state, state.comparison)
    elif state.waiting is not None or state.watched is None:
        status = _waiting(name, state, config)
    else:
        status = _of_watch(name, state, state.watched, config)
    # A status for every rollout would fill the topic and say little that is new.
    steps = int(log(status.evidence + 1) / log(1.1))
    late = state.evidence.late.bit_length()
    return status, f"{status.phase} {status.version} {steps} {state.verdict != ''} {late}"


def _waiting(name: str, state: PromotionState, config: GateConfig) -> GateStatus:
    evidence = state.evidence
    rate = _share(evidence.per_hour, HELD_OUT_SHARE)
    if state.waiting is None:
        needed, text = None, "no version has been announced that is not judged yet"
    else:
        needed = max(state.needed or 0, config.least_evidence)
        text = f"{state.waiting} waits: {state.verdict or 'not judged yet'}"
        if state.verdict and state.needed is None:
            needed = None
            text += "; at the difference seen so far it will not pass"
        else:
            text += _remaining(needed - evidence.usable, "held-out rollouts with a reward", rate)
    return GateStatus(
        name=name,
        phase="waiting",
        version=state.waiting,
        evidence=evidence.usable,
        needed=needed,
        per_hour=rate,
        maturity_s=evidence.maturity,
        text=text,
    )


def _of_trial(name: str, state: PromotionState, trial: Comparison) -> GateStatus:
    each = [
        value.needed(trial.level / 2 if value is trial.worth else trial.level)
        for value in trial.unsure.values()
    ]
    known = [pairs for pairs in each if pairs is not None]
    needed = max(known) if known and len(known) == len(each) else None
    rate = _share(state.evidence.followed_per_hour, trial.share)
    unsure = ", ".join(trial.unsure)
    text = f"{trial.new} is on trial beside {trial.old}; not sure yet: {unsure} ({trial.words})"
    if needed is not None:
        text += _remaining(needed - trial.pairs, "pairs of rollouts", rate)
    return _compared(name, "trial", state, trial, needed, rate, text)


def _of_watch(
    name: str, state: PromotionState, watch: Comparison, config: GateConfig
) -> GateStatus:
    needed = watch.worth.needed(config.error)
    rate = _share(state.evidence.followed_per_hour, config.control_share)
    text = f"{watch.new} serves, and {watch.old} keeps a share beside it ({watch.words})"
    return _compared(name, "watch", state, watch, needed, rate, text)


def _compared(
    name: str,
    phase: Literal["trial", "watch"],
    state: PromotionState,
    comparison: Comparison,
    needed: int | None,
    rate: float | None,
    text: str,
) -> GateStatus:
    if late := state.evidence.late:
        text += (
            f"; rollouts left out, since they were heard of too long after they began: {late}"
            " (the clock of a gateway is behind, or its events came late)"
        )
    arms = [
        ArmSummary(
            version=version,
            rollouts=arm.rollouts,
            rewarded=arm.worth.count,
            failed=arm.failed,
            missing=arm.missing,
            mean=min(1.0, max(0.0, arm.worth.mean)),
        )
        for version, arm in comparison.arms.items()
    ]
    return GateStatus(
        name=name,
        phase=phase,
        version=comparison.new,
        evidence=comparison.pairs,
        needed=needed,
        per_hour=rate,
        arms=arms,
        maturity_s=state.evidence.maturity,
        text=text,
    )


def _share(per_hour: float | None, share: float) -> float | None:
    return None if per_hour is None else per_hour * share


def _remaining(more: int, what: str, per_hour: float | None) -> str:
    if more <= 0:
        return ""
    if not per_hour:
        return f"; about {more} more {what} are likely to be needed"
    hours = more / per_hour
    time = f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(hours * 60))} minutes"
    return f"; about {more} more {what} are likely to be needed, some {time} at the present rate"
