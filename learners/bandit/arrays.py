"""Arrays of numbers in JSON, exact to the bit: little-endian and in base64."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(numbers: Sequence[Any] | NDArray[Any], kind: str) -> str:
    """Return numbers as an array in base64."""
    return base64.b64encode(np.asarray(numbers, dtype=kind).tobytes()).decode()


def unpacked(text: str, kind: str) -> NDArray[Any]:
    """Return the array that `packed` wrote."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=kind)


def finite(text: str) -> NDArray[np.float64]:
    """Return an array of float64.

    Raises:
        ValueError: one of its numbers is not finite.
    """
    numbers = unpacked(text, "<f8").astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("an array holds numbers that are not finite; the state is damaged")
    return numbers
