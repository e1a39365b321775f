"""From a context and candidates to sparse features, by the hashing trick (Weinberger et al., ICML
2009).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise, product
from math import copysign, sqrt
from typing import Protocol
from zlib import crc32

import numpy as np

from learners.bandit.slates import BITS, MASK, Features, Floats, Integers, Part, Slate
from learners.bandit.texts import LONGEST_WORD, PAIR, Texts, saturated
from learners.bandit.tokens import tokens
from learners.bandit.vocabulary import Vocabulary

FEATURE_VERSION = 4
"""Raised whenever the same candidates would give other features."""

EMBEDDED_VERSION = 5
"""The features of version 4, and the embedding of the context for each candidate."""

# How much the groups weigh against each other: what did best in `make bench-bandit`.
PAIR_WEIGHT = 0.3
CONTEXT_BY_CANDIDATE = 2.0
CONTEXT_BY_WORD = 2.0
MEANING_BY_CANDIDATE = 2.0

# Bounds, so that a decision stays cheap. See docs/bandit.md, "What it reads".
TEXT_CHARACTERS = 16_384
SLATE_CHARACTERS = 1 << 18
CONTEXT_WORDS = 256
CROSSED_CONTEXT_WORDS = 16
CROSSED_WORDS = 64
MOST_CROSSES = 1 << 17
LARGEST_NUMBER = 3.0

__all__ = ["BITS", "FEATURE_VERSION", "Described", "Features", "features", "names_of", "slate_of"]


class Described(Protocol):
    """What can be chosen, as far as features go; a `schemas.decisions.Candidate` is one."""

    @property
    def id(self) -> str:
        """Its name, "" if it has none."""
        ...

    @property
    def text(self) -> str:
        """What a text policy reads."""
        ...

    @property
    def numbers(self) -> Mapping[str, float]:
        """Numeric features by name."""
        ...


def features(
    context: str,
    candidates: Sequence[Described],
    tenant: str = "",
    tenant_share: float = 0.0,
    vocabulary: Vocabulary | None = None,
    meaning: Floats | None = None,
) -> list[Features]:
    """Return the features of each candidate; see `slate_of`."""
    slate = slate_of(context, candidates, tenant, tenant_share, vocabulary, meaning)
    return [slate.features(row) for row in range(slate.count)]


def slate_of(
    context: str,
    candidates: Sequence[Described],
    tenant: str = "",
    tenant_share: float = 0.0,
    vocabulary: Vocabulary | None = None,
    meaning: Floats | None = None,
) -> Slate:
    """Return the features of choosing each of the candidates in this context.

    1. The words of its text (see `tokens`), pairs of neighbouring words, and the numbers in it, by
       the word before.
    2. The candidate itself, and it crossed with all words of the context, if the vocabulary knows
       it.
    3. Its numbers that tell candidates apart.
    4. Its words and numbers, crossed with those words of the context that weigh most, and with the
       numbers that are the same for all candidates. What all share cannot by itself make one better
       than another.
    5. The candidate itself, crossed with what the context means, if that is given.

    Each group is scaled to a fixed norm, so that long texts do not shout.

    Args:
        tenant_share: where above 0, every feature comes twice, once for all tenants and once for
            this one, whose weights have this share of the prior variance: what a tenant has not
            taught is believed as of all (a hierarchical prior; Daumé III, Frustratingly Easy Domain
            Adaptation, ACL 2007).
        vocabulary: which words of contexts and which candidates were met; none if None.
        meaning: embedding of the context, of norm 1; see `learners.bandit.embeddings`.

    Returns:
        Features with indices in [0, 2**18). The hash is CRC-32, the same on every machine.
    """
    vocabulary = vocabulary or Vocabulary()
    count = len(candidates)
    shared = shared_numbers([candidate.numbers for candidate in candidates])
    identities = [identity_of(candidate) for candidate in candidates]
    words, others = _read(candidates, identities)
    numbers = _numbers(candidates, shared)
    known = Part.of(
        [(row, index, 1.0) for row, index in enumerate(identities) if vocabulary.knows(index)]
    )
    said, weights = _said(context, vocabulary)

    # What the context and the shared numbers are crossed with.
    rights = Part.joined([_first(words, CROSSED_WORDS), numbers])
    by_candidate = _cut(said, weights, MOST_CROSSES // max(1, len(known.rows)), CONTEXT_WORDS)
    most = MOST_CROSSES // max(1, len(rights.rows))
    by_word = _cut(said, weights, most, CROSSED_CONTEXT_WORDS)
    state = np.array([_index("number", name) for name in shared], dtype=np.int64)
    values = np.array([_bounded(value) for value in shared.values()])
    state, values = state[:most], values[:most] / sqrt(max(1, len(values)))

    part = Part.joined(
        [
            words.scaled(_norms(words, count)),
            *(other.scaled(_norms(words, count)) for other in others),
            numbers.scaled(_norms(numbers, count)),
            known,
            known.crossed(*by_candidate).scaled(np.full(count, CONTEXT_BY_CANDIDATE)),
            rights.crossed(*by_word).scaled(CONTEXT_BY_WORD * _norms(rights, count)),
            rights.crossed(state, values).scaled(_norms(rights, count)),
            known.crossed(state, values),
        ]
    )
    if meaning is not None:
        by_meaning = known.crossed(_dimensions(len(meaning)), meaning)
        scaled = by_meaning.scaled(np.full(count, MEANING_BY_CANDIDATE))
        part = Part.joined([part, scaled])
    if tenant_share > 0.0:
        own = np.array([_index("tenant", tenant)])
        part = Part.joined([part, part.crossed(own, np.array([sqrt(tenant_share)]))])
    return Slate(count, part)


def words_of(context: str) -> list[int]:
    """Return the distinct words of a context, as a vocabulary counts them."""
    return sorted({_context_word(word) for word in tokens(context[:TEXT_CHARACTERS])})


def identity_of(candidate: Described) -> int:
    """Return what a vocabulary counts a candidate by: its name, or its whole text if it has
    none.
    """
    return _hash(f"id {candidate.id}" if candidate.id else f"text {candidate.text}")


def names_of(
    context: str,
    candidates: Sequence[Described],
    tenant: str = "",
    vocabulary: Vocabulary | None = None,
    dimensions: int = 0,
) -> dict[int, str]:
    """Return what the features of these candidates stand for, such as `word effect` or `context
    pain × word drug`.

    Args:
        dimensions: of the context's embedding.
    """
    shared = shared_numbers([candidate.numbers for candidate in candidates])
    lefts = [("context", word) for word in set(tokens(context[:TEXT_CHARACTERS]))] + [
        ("number", name) for name in shared
    ]
    names: dict[int, str] = {}
    for candidate in candidates:
        words = tokens(candidate.text[: _readable(len(candidates))])
        rights = [("word", word) for word in set(words)] + [
            ("number", name) for name in candidate.numbers
        ]
        found = {_index(*right): " ".join(right) for right in rights}
        if (vocabulary or Vocabulary()).knows(identity := identity_of(candidate)):
            found[identity] = f"candidate {candidate.id or candidate.text[:40]}"
            names |= {
                _cross(index, identity): f"meaning {number} × {found[identity]}"
                for number, index in enumerate(_dimensions(dimensions).tolist())
            }
        names |= {_pair(*pair): f"pair {' '.join(pair)}" for pair in pairwise(words)}
        names |= {_index("value", word): f"number after {word}" for word in words}
        names |= found
        names |= {
            _cross(_index(*left), index): f"{' '.join(left)} × {name}"
            for left, (index, name) in product(lefts, found.items())
        }
    own = _index("tenant", tenant)
    return {_cross(own, index): f"{name} for {tenant}" for index, name in names.items()} | names


def _read(candidates: Sequence[Described], identities: Sequence[int]) -> tuple[Part, list[Part]]:
    """Return the distinct words of the texts, each with value 1; and pairs and numbers in them.

    A text that is too long to be read to its end counts once more, by its name or as a whole.
    """
    limit = _readable(len(candidates))
    texts = _TEXTS.read([candidate.text[:limit] for candidate in candidates])
    values = [(row, *number) for row, text in enumerate(texts) for number in text.values]
    cut = [
        (row, identity, 1.0)
        for row, (candidate, identity) in enumerate(zip(candidates, identities, strict=True))
        if len(candidate.text) > limit
    ]
    return _of_rows([text.words for text in texts], 1.0), [
        _of_rows([text.pairs for text in texts], PAIR_WEIGHT),
        Part.of([*values, *cut]),
    ]


def _of_rows(indices: Sequence[Integers], value: float) -> Part:
    """Return the features of each row, all with one value."""
    sizes = [len(row) for row in indices]
    rows = np.repeat(np.arange(len(sizes)), sizes)
    return Part(rows, np.concatenate(indices), np.full(len(rows), value))


def _readable(count: int) -> int:
    """Return how many characters of each of so many candidates are read word by word."""
    return min(TEXT_CHARACTERS, SLATE_CHARACTERS // max(1, count))


def _first(part: Part, most: int) -> Part:
    """Return the first features of each row; the rows must be in order."""
    sizes = np.bincount(part.rows)
    kept = np.arange(len(part.rows)) - (np.cumsum(sizes) - sizes)[part.rows] < most
    return Part(part.rows[kept], part.indices[kept], part.values[kept])


def _norms(part: Part, count: int) -> Floats:
    """Return one over the root of each row's number of features."""
    sizes = np.bincount(part.rows, minlength=count)
    norms: Floats = 1.0 / np.sqrt(np.maximum(sizes, 1))
    return norms


def _said(context: str, vocabulary: Vocabulary) -> tuple[Integers, Floats]:
    """Return the words of a context and what each may tell; the most telling first."""
    words = words_of(context)
    weights = vocabulary.weights(words)
    order = np.argsort(-weights, kind="stable")
    return np.array(words, dtype=np.int64)[order], weights[order]


def _cut(said: Integers, weights: Floats, *most: int) -> tuple[Integers, Floats]:
    """Return the first of these words, with weights of norm 1."""
    said, weights = said[: min(most)], weights[: min(most)]
    # Added from first to last: the same on every machine.
    norm = sqrt(float(np.add.accumulate(weights * weights)[-1])) if len(weights) else 0.0
    return said, weights / (norm or 1.0)


def _numbers(candidates: Sequence[Described], shared: Mapping[str, float]) -> Part:
    """Return the numbers that are not shared. Where one candidate's is huge, all are divided, so
    that their order still counts and the other features are still heard.
    """
    terms = [
        (row, name, value)
        for row, candidate in enumerate(candidates)
        for name, value in candidate.numbers.items()
        if name not in shared
    ]
    largest: dict[str, float] = {}
    for _, name, value in terms:
        largest[name] = max(abs(value), largest.get(name, LARGEST_NUMBER))
    return Part.of(
        [
            (row, _index("number", name), LARGEST_NUMBER * (value / largest[name]))
            if largest[name] > LARGEST_NUMBER
            else (row, _index("number", name), value)
            for row, name, value in terms
        ]
    )


def _bounded(value: float) -> float:
    """Return a shared number as it is up to 2, and ever more slowly towards 3 beyond."""
    most = LARGEST_NUMBER - 1.0
    if abs(value) <= most:
        return value
    return copysign(most + saturated(sqrt(abs(value) - most), 30.0), value)


def shared_numbers(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the numbers that are the same for all candidates, in order; none where there is no
    choice.
    """
    if len(numbers) < 2:
        return {}
    first, *others = numbers
    same = first.items() & others[0].items()
    for other in others[1:]:
        if not same:
            break
        same &= other.items()
    return {name: value for name, value in first.items() if (name, value) in same} if same else {}


def _cross(first: int, second: int) -> int:
    return (first * 0x9E3779B1 ^ second) & MASK


def _pair(first: str, second: str) -> int:
    return _cross(_index("word", first) ^ PAIR, _index("word", second))


def _hash(text: str) -> int:
    return crc32(text.encode(errors="surrogatepass")) & MASK


@lru_cache
def _dimensions(count: int) -> Integers:
    """Return what stands for the dimensions of an embedding."""
    return np.array([_index("meaning", str(number)) for number in range(count)], dtype=np.int64)


def _context_word(word: str) -> int:
    return _index("context", word[:LONGEST_WORD])


@lru_cache(maxsize=1 << 16)
def _index(kind: str, name: str) -> int:
    return _hash(f"{kind} {name}")


_TEXTS = Texts()
