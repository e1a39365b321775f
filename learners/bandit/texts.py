"""The words of candidates' texts as features, remembered from one decision to the next: candidates
come again and again.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from math import isinf
from zlib import crc32

import numpy as np

from learners.bandit.slates import BITS, MASK, Integers, crossed
from learners.bandit.tokens import NUMBER, tokens

LONGEST_WORD = 64
MOST_CHARACTERS = 1 << 20
"""How long all remembered texts are together. What is remembered of one character takes up to 20
bytes.
"""

_WORD = crc32(b"word ")
PAIR = crc32(b"pair") & MASK
"""Stands before a pair of words."""


@dataclass(frozen=True, slots=True)
class Text:
    """What is read of a text.

    Attributes:
        words, pairs: the features of its distinct words, and of its distinct pairs of neighbouring
            words, in order.
        values: the feature of each number in it, by the word before, and its size in [0, 1].
    """

    words: Integers
    pairs: Integers
    values: tuple[tuple[int, float], ...]


class Texts:
    """Texts that were read, those that were asked for last. Any thread may ask."""

    def __init__(self, most_characters: int = MOST_CHARACTERS) -> None:
        self._most = most_characters
        self._characters = 0
        self._known: OrderedDict[str, Text] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, texts: Sequence[str]) -> list[Text]:
        """Return what is read of each text."""
        with self._lock:
            found = {text: known for text in texts if (known := self._known.get(text)) is not None}
            for text in found:
                self._known.move_to_end(text)
        new = [text for text in dict.fromkeys(texts) if text not in found]
        found |= zip(new, read_texts(new), strict=True)
        with self._lock:
            for text in new:
                self._remember(text, found[text])
        return [found[text] for text in texts]

    def _remember(self, text: str, read: Text) -> None:
        if text not in self._known:
            self._characters += len(text)
        self._known[text] = read
        while self._characters > self._most:
            forgotten, _ = self._known.popitem(last=False)
            self._characters -= len(forgotten)


def read_texts(texts: Sequence[str]) -> list[Text]:
    """Return what is read of each text. All are read at once, which is much faster."""
    split = [tokens(text) for text in texts]
    flat = list(chain.from_iterable(split))
    if max(map(len, flat), default=0) > LONGEST_WORD:
        flat = [word[:LONGEST_WORD] for word in flat]
    sizes = [len(words) for words in split]
    rows = np.repeat(np.arange(len(split)), sizes)
    found = hash_words(flat)
    together = rows[1:] == rows[:-1]
    pairs = crossed(found[:-1] ^ PAIR, found[1:])[together]
    values: list[list[tuple[int, float]]] = [[] for _ in texts]
    if NUMBER in flat:
        for place in range(1, len(flat) - 1):
            if flat[place] == NUMBER and rows[place - 1] == rows[place]:
                value = saturated(float(flat[place + 1]), 8.0)
                values[rows[place]].append((_value_index(flat[place - 1]), value))
    return [
        Text(words, neighbours, tuple(numbers))
        for words, neighbours, numbers in zip(
            _distinct(rows, found, len(texts)),
            _distinct(rows[1:][together], pairs, len(texts)),
            values,
            strict=True,
        )
    ]


def hash_words(words: Sequence[str]) -> Integers:
    """Return the features of words: the CRC-32 of `word` and the word, the same on every
    machine.
    """
    if not words:
        return np.empty(0, dtype=np.int64)
    # Encoded all at once. No word has a line break in it.
    encoded = "\n".join(words).encode(errors="surrogatepass").split(b"\n")
    hashes: Iterable[int] = map(crc32, encoded, repeat(_WORD))
    return np.fromiter(hashes, dtype=np.int64, count=len(words)) & MASK


def saturated(value: float, half: float) -> float:
    """Return a number >= 0 on a scale from 0 to 1; `half` is in the middle.

    It is no logarithm, because mathematics libraries differ in their last bits.
    """
    return 1.0 if isinf(value) else value / (value + half)


def _distinct(rows: Integers, indices: Integers, count: int) -> list[Integers]:
    """Return the distinct features of each row, in order."""
    keys = np.sort((rows << BITS) | indices)
    keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
    ends = np.searchsorted(keys >> BITS, np.arange(count), side="right")
    found = keys & MASK
    # Copies: a slice would keep the features of all other texts in memory.
    return [found[begin:end].copy() for begin, end in zip([0, *ends], ends, strict=False)]


@lru_cache(maxsize=1 << 16)
def _value_index(word: str) -> int:
    return crc32(f"value {word}".encode(errors="surrogatepass")) & MASK
