"""The newest steps of the regression: what each moved, so that its target can be replaced."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.bandit.arrays import finite, packed, unpacked
from learners.bandit.beliefs import Floats, Integers, total

Singles = NDArray[np.float32]
Halves = NDArray[np.float16]

LEAST_NOISE = 1e-4
ERROR_RATE = 0.02
EVIDENCE_KEPT = 0.99


@dataclass
class Step:
    """One example as it was learned by E members.

    Attributes:
        example: its number, >= 1.
        key: a number of the decision.
        slots, values: its features, shape (n,).
        moved: slots of the weights that it moved, shape (m,).
        gains: by how much it moved each of them for an error of 1, shape (E, m); in half precision,
            since they are most of what is kept, and an error of 0.05 % is none here.
        target: None where the example was taken back.
        predicted: what each member predicted before it.
        errors, evidence: of each member before it, see `BlockBayesianRegressor`.
    """

    example: int
    key: int
    slots: Integers
    values: Singles
    moved: Integers
    gains: Halves
    target: float | None
    predicted: list[float]
    errors: list[float]
    evidence: list[float]

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        few = 24 * (1 + len(self.predicted))
        return few + 8 * len(self.slots) + 4 * len(self.moved) + 2 * self.gains.size


@dataclass
class Steps:
    """The newest steps, in order, as many as there is room for.

    Attributes:
        room: most bytes in all steps together.
        most: most steps.
    """

    room: int
    most: int
    _steps: list[Step] = field(default_factory=list)
    _size: int = 0

    def note(self, step: Step) -> None:
        """Note a step that was just taken, and forget the oldest ones."""
        self._steps.append(step)
        self._size += step.size
        old = 0
        while self._size > self.room or len(self._steps) - old > self.most:
            self._size -= self._steps[old].size
            old += 1
        del self._steps[:old]

    def since(self, key: int) -> Sequence[Step]:
        """Return the step of a decision and all later ones; none if it is not known any more."""
        for place in range(len(self._steps) - 1, -1, -1):
            if self._steps[place].key == key:
                return self._steps[place:]
        return ()

    def to_json(self) -> dict[str, Any]:
        """Return the steps as JSON, exact to the bit."""
        steps = self._steps
        return {
            "room": self.room,
            "most": self.most,
            "examples": packed([step.example for step in steps], "<i8"),
            "keys": packed([step.key for step in steps], "<u8"),
            "widths": packed([(len(step.slots), len(step.moved)) for step in steps], "<u4"),
            "slots": packed(_joined([step.slots for step in steps]), "<u4"),
            "values": packed(_joined([step.values for step in steps]), "<f4"),
            "moved": packed(_joined([step.moved for step in steps]), "<u4"),
            "gains": packed(_joined([step.gains.ravel() for step in steps]), "<f2"),
            "known": packed([step.target is not None for step in steps], "<u1"),
            "targets": packed([step.target or 0.0 for step in steps], "<f8"),
            "before": packed(
                [(step.predicted, step.errors, step.evidence) for step in steps], "<f8"
            ),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Steps":
        """Return the steps that `to_json` wrote."""
        widths = unpacked(document["widths"], "<u4").astype(int).reshape(-1, 2)
        examples = unpacked(document["examples"], "<i8").tolist()
        keys, known = unpacked(document["keys"], "<u8").tolist(), unpacked(document["known"], "<u1")
        targets = finite(document["targets"]).tolist()
        before = finite(document["before"]).reshape(max(1, len(keys)), 3, -1).tolist()
        features, moves = ([0, *np.cumsum(widths[:, side]).tolist()] for side in (0, 1))
        slots, moved = (
            unpacked(document[name], "<u4").astype(np.int64) for name in ("slots", "moved")
        )
        values = unpacked(document["values"], "<f4").astype(np.float32)
        gains = unpacked(document["gains"], "<f2").astype(np.float16)
        found = cls(int(document["room"]), int(document["most"]))
        for place, key in enumerate(keys):
            here = slice(features[place], features[place + 1])
            first, last = moves[place], moves[place + 1]
            predicted, errors, evidence = before[place]
            members = len(predicted)
            found.note(
                Step(
                    example=examples[place],
                    key=key,
                    slots=slots[here],
                    values=values[here],
                    moved=moved[first:last],
                    gains=gains[first * members : last * members].reshape(members, -1),
                    target=targets[place] if known[place] else None,
                    predicted=predicted,
                    errors=errors,
                    evidence=evidence,
                )
            )
        return found


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0)


def carry(steps: Sequence[Step], target: float | None, change: Floats) -> Floats:
    """Give the first of some steps another target, and return by how much the means change today.

    A step moves the means by its gains times its error, y - x m. Gains do not depend on targets. So
    the means are linear in each target: a change of the means before a step is a change of its
    error, and comes out as change - gains (x change).

    Args:
        steps: in order, up to the newest; what they predicted is changed.
        target: None if the step is as if it had never been taken.
        change: zeros, shape (E, room).
    """
    first = steps[0]
    before, after = (
        [0.0 if goal is None else goal - one for one in first.predicted]
        for goal in (first.target, target)
    )
    change[:, first.moved] = first.gains * (np.array(after) - np.array(before))[:, None]
    first.target = target
    for step in steps[1:]:
        moved = total(change[:, step.slots] * step.values)
        step.predicted = [one + by for one, by in zip(step.predicted, moved.tolist(), strict=True)]
        if step.target is not None:
            change[:, step.moved] -= step.gains * moved[:, None]
    return change


def judged(
    steps: Sequence[Step], errors: list[float], evidence: list[float]
) -> tuple[list[float], list[float]]:
    """Return each member's recent squared error and log-likelihood after some steps.

    Args:
        errors, evidence: before them. Each step notes what they were before it.
    """
    for step in steps:
        step.errors, step.evidence = errors, evidence
        if step.target is None:
            continue
        target, rate = step.target, max(ERROR_RATE, 1.0 / (step.example + 5))
        spread = 2.0 * max(errors[0], LEAST_NOISE)
        squared = [(target - one) * (target - one) for one in step.predicted]
        evidence = [
            EVIDENCE_KEPT * one - by / spread for one, by in zip(evidence, squared, strict=True)
        ]
        errors = [one + rate * (by - one) for one, by in zip(errors, squared, strict=True)]
    return errors, evidence
