"""From a context and a candidate to sparse features, by the hashing trick (Weinberger et al., ICML 2009)."""

import re
from collections.abc import Iterable
from itertools import pairwise
from math import sqrt
from zlib import crc32

from schemas.decisions import Candidate

FEATURE_VERSION = 1
"""Raised whenever the same text would give other features."""

BITS = 18
BIAS = 1 << BITS
CROSS_CONTEXT_WORDS = 4

_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?|[%<>=]")
_NUMBER = re.compile(r"\d")

Features = dict[int, float]


def features(context: str, candidate: Candidate) -> Features:
    """Return the features of choosing `candidate` in `context`.

    Groups: words, pairs of neighbouring words, words crossed with the longest words of the context, and the numeric
    features. Each text group is scaled by one over the root of its size, so that long texts do not shout; numbers are
    taken as they are and should be near [-1, 1]. Index 2**18 is the bias.

    Returns:
        Index in [0, 2**18] to value. The hash is CRC-32, the same on every machine and in every process.
    """
    words = _words(candidate.text)
    crossed = sorted(set(_words(context)), key=lambda word: (-len(word), word))[:CROSS_CONTEXT_WORDS]
    found: Features = {BIAS: 1.0}
    _add(found, (f"w:{word}" for word in sorted(set(words))))
    _add(found, (f"p:{first} {second}" for first, second in sorted(set(pairwise(words)))))
    _add(found, (f"x:{left} {right}" for left in crossed for right in sorted(set(words))))
    for name, value in sorted(candidate.numbers.items()):
        index = _index(f"n:{name}")
        found[index] = found.get(index, 0.0) + value
    return found


def _words(text: str) -> list[str]:
    """Return lower-case words; every number is the same word, because which number it is says little."""
    return ["0" if _NUMBER.match(word) else word for word in _WORD.findall(text.lower())]


def _add(found: Features, names: Iterable[str]) -> None:
    indices = [_index(name) for name in names]
    if not indices:
        return
    value = 1.0 / sqrt(len(indices))
    for index in indices:
        found[index] = found.get(index, 0.0) + value


def _index(name: str) -> int:
    return crc32(name.encode()) & (BIAS - 1)
