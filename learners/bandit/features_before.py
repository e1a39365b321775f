"""The features of versions 2 and 3, for policies that were trained on them.

Nothing is trained on them any more, so nothing here may change: the weights of a policy mean these
features.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise, product
from math import sqrt
from zlib import crc32

from learners.bandit.features import Described, shared_numbers
from learners.bandit.tokens import tokens

BITS = 18
CROSS_CONTEXT_WORDS = 4
PAIR_WEIGHT = 0.3
MOST_CROSSES = 4096

_MASK = (1 << BITS) - 1
_ODD = 0x9E3779B1
_LATIN_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?|[%<>=]")
_DIGIT = re.compile(r"\d")

Features = dict[int, float]


def latin_words(text: str) -> list[str]:
    """Return what version 2 read: words of Latin letters, and every number as the same word."""
    return ["0" if _DIGIT.match(word) else word for word in _LATIN_WORD.findall(text.lower())]


TOKENS: dict[int, Callable[[str], list[str]]] = {2: latin_words, 3: tokens}
"""How each version reads a text."""


Term = tuple[str, str, float]
"""Kind, name and value of what is crossed."""


def features(
    version: int,
    context: str,
    candidates: Sequence[Described],
    tenant: str = "",
    tenant_share: float = 0.0,
) -> list[Features]:
    """Return the features of choosing each of the candidates in this context.

    Groups: words (see `TOKENS`); pairs of neighbouring words; words crossed with the longest words
    of the context; the numbers that tell candidates apart; and, since what all candidates share
    cannot by itself make one better than another, numbers that are the same for all, crossed with
    the numbers and words that are not. Each group is scaled by one over the root of its size, so
    that long texts do not shout. Numbers should be near [-1, 1].

    Args:
        tenant_share: where above 0, every feature comes twice, once for all tenants and once for
            this one, whose weights have this share of the prior variance: what a tenant has not
            taught is believed as of all (a hierarchical prior; Daumé III, Frustratingly Easy Domain
            Adaptation, ACL 2007).

    Returns:
        For each candidate, index in [0, 2**18) to value. The hash is CRC-32, the same on every
        machine.
    """
    shared = shared_numbers([candidate.numbers for candidate in candidates])
    lefts = [
        [("context", word, 1.0) for word in _longest(version, context)],
        [("number", *pair) for pair in shared.items()],
    ]
    found = []
    for candidate in candidates:
        words = TOKENS[version](candidate.text)
        distinct = sorted(set(words))
        own = (
            {n: v for n, v in candidate.numbers.items() if n not in shared}
            if shared
            else candidate.numbers
        )
        of: Features = {}
        if distinct:
            scale = 1.0 / sqrt(len(distinct))
            _add(of, [(_index("word", word), scale) for word in distinct])
            scale *= PAIR_WEIGHT
            _add(of, [(_pair(pair), scale) for pair in sorted(set(pairwise(words)))])
        if own:
            scale = 1.0 / sqrt(len(own))
            _add(of, [(_index("number", name), value * scale) for name, value in own.items()])
        for left in lefts:
            if left:
                right = [("word", word, 1.0) for word in distinct] + [
                    ("number", *pair) for pair in own.items()
                ]
                _add(of, _crosses(left, right))
        if tenant_share > 0.0:
            own_index, scale = _index("tenant", tenant), sqrt(tenant_share)
            _add(of, [(_cross(own_index, index), value * scale) for index, value in of.items()])
        found.append(of)
    return found


def names_of(
    version: int, context: str, candidates: Sequence[Described], tenant: str = ""
) -> dict[int, str]:
    """Return what the features of these candidates stand for, such as `word effect` or `context
    pain × word drug`.
    """
    shared = shared_numbers([candidate.numbers for candidate in candidates])
    lefts = [("context", word) for word in _longest(version, context)] + [
        ("number", name) for name in shared
    ]
    names: dict[int, str] = {}
    for candidate in candidates:
        words = TOKENS[version](candidate.text)
        rights = [("word", word) for word in words] + [
            ("number", name) for name in candidate.numbers
        ]
        names |= {_index(*right): " ".join(right) for right in rights}
        names |= {_index("pair", *pair): f"pair {' '.join(pair)}" for pair in pairwise(words)}
        names |= {
            _cross(_index(*left), _index(*right)): f"{' '.join(left)} × {' '.join(right)}"
            for left, right in product(lefts, rights)
        }
    own = _index("tenant", tenant)
    return {_cross(own, index): f"{name} for {tenant}" for index, name in names.items()} | names


def _add(found: Features, terms: Sequence[tuple[int, float]]) -> None:
    if not found:
        found.update(terms)
        if len(found) == len(terms):  # nearly always
            return
        found.clear()
    for index, value in terms:
        found[index] = found.get(index, 0.0) + value


def _crosses(left: Sequence[Term], right: Sequence[Term]) -> list[tuple[int, float]]:
    """Return each of the left times each of the right; nothing where that would be too many."""
    count = len(left) * len(right)
    if not 0 < count <= MOST_CROSSES:
        return []
    scale = 1.0 / sqrt(count)
    hashed = [(_index(kind, name), value * scale) for kind, name, value in right]
    return [
        (_cross(first, second), factor * value)
        for first, factor in [(_index(kind, name), value) for kind, name, value in left]
        for second, value in hashed
    ]


def _cross(first: int, second: int) -> int:
    return (first * _ODD ^ second) & _MASK


def _longest(version: int, context: str) -> list[str]:
    words = set(TOKENS[version](context))
    return sorted(words, key=lambda word: (-len(word), word))[:CROSS_CONTEXT_WORDS]


@lru_cache(maxsize=1 << 16)
def _pair(words: tuple[str, str]) -> int:
    return _index("pair", *words)


@lru_cache(maxsize=1 << 16)
def _index(*name: str) -> int:
    return crc32(" ".join(name).encode()) & _MASK
