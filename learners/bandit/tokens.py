"""From a text in any script to tokens, the same on every machine and every Python.

Each Python brings its own version of Unicode, which would give other tokens for characters that
are new in it. Unicode 3.2 is in all of them (`unicodedata.ucd_3_2_0`), so it decides here.
"""

import re
from functools import lru_cache
from operator import add
from unicodedata import ucd_3_2_0 as unicode

NUMBER = "#"
"""Stands before every number: texts with different numbers still share this token."""

ARABIC_DECIMAL_POINT = "\u066b"

_LATIN = re.compile(r"[a-z]+|\d+(?:\.\d+)?|[%<>=]")
_DIGIT = re.compile(r"[0-9]")
_PLAIN = re.compile(
    "["
    "\x00-\x7f"
    "\u0401\u0410-\u044f\u0451"  # Cyrillic of Russian
    "\u3001\u3002\u3041-\u3094\u30a1-\u30fa"  # Kana
    "\u4e00-\u9fa5"  # Han
    "\uac00-\ud7a3"  # Hangul
    "]*"
)
"""Texts that are in normal form whatever stands beside what, and that fold as `lower` does."""
_ANY = re.compile(r"L+|(?P<unspaced>U+)|D+(?:\.D+)?|S")
"""A token in the string of the characters' kinds, see `_kind`."""

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x3007),  # Han iteration mark and zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana of Ainu
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),  # Myanmar
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # Han
    (0x1AFF0, 0x1B16F),  # Kana
    (0x20000, 0x3FFFF),  # Han
)
"""First and last character of the scripts that put no spaces between words."""

_NEWER_SYMBOLS = ((0x20A0, 0x20CF), (0x2190, 0x2BFF), (0x1F000, 0x1FBFF))
"""Blocks of currency signs, signs and emoji; many are newer than Unicode 3.2."""

_UNSEEN = ((0x00AD, 0x00AD), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
"""The soft hyphen, and variation selectors: they change how a word looks, not which it is."""


def tokens(text: str) -> list[str]:
    """Return the tokens of a text, in order.

    - A word is a run of letters and their marks. `don't` is two words, `gpt4` a word and a number.
    - Han, Hiragana, Katakana, Thai, Lao, Khmer and Myanmar put no spaces between words. A run of
      them gives each pair of neighbouring characters; a single character gives itself. This is
      usual in search (Nie et al., On the use of words and n-grams for Chinese information
      retrieval, IRAL 2000).
    - A number is a run of digits, in any script, with or without a decimal part. It gives `NUMBER`
      and itself.
    - A symbol is a token of its own. Of ASCII these are only `%`, `<`, `>` and `=`.

    Texts that differ in case or form only give the same tokens (NFKC and case folding: Unicode
    Standard, section 3.13, toNFKC_Casefold).
    """
    if text.isascii():  # Most texts are, and this is faster. The general way gives the same.
        found = _LATIN.findall(text.lower())
        return _numbered(found) if _DIGIT.search(text) else found
    text = _folded(text)
    found = []
    for match in _ANY.finditer("".join(map(_kind, text))):
        token = text[match.start() : match.end()]
        if match["unspaced"] and len(token) > 1:
            found += map(add, token, token[1:])
        else:
            found.append(token)
    return _numbered(found) if _DIGIT.search(text) else found


def _numbered(found: list[str]) -> list[str]:
    """Return the tokens with `NUMBER` before each number. Digits are ASCII here."""
    numbered: list[str] = []
    for token in found:
        if "0" <= token[0] <= "9":
            numbered.append(NUMBER)
        numbered.append(token)
    return numbered


def _folded(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text.lower()
    # Folding can undo the normal form, so it is restored: 3.13 asks for both.
    text = "".join(map(_folded_character, unicode.normalize("NFKC", text)))
    return unicode.normalize("NFKC", text)


@lru_cache(maxsize=1 << 14)
def _folded_character(character: str) -> str:
    """Return a character without case, digits as ASCII, and nothing for what is never seen."""
    if character == ARABIC_DECIMAL_POINT:
        return "."
    category = unicode.category(character)
    if category == "Cf" or _within(character, _UNSEEN):
        return ""
    if category == "Nd":
        return str(unicode.decimal(character))
    # How newer characters fold depends on the Python; they stay as they are.
    return character if category == "Cn" else character.casefold()


@lru_cache(maxsize=1 << 14)
def _kind(character: str) -> str:
    """Return `D` for a digit, `L` for a letter or mark, `U` for one of a script without spaces,
    `S` for a symbol, the decimal point for itself, and a space for all that separates.
    """
    category = unicode.category(character)
    if character == ".":
        return character
    if category == "Nd":
        return "D"
    if category == "Cn" and _within(character, _NEWER_SYMBOLS):
        return "S"
    if category[0] in "LMN" or category == "Cn":  # Newer than 3.2: most are letters.
        return "U" if _within(character, _UNSPACED) else "L"
    if character in "%<>=" or (category[0] == "S" and not character.isascii()):
        return "S"
    return " "


def _within(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(character) <= last for first, last in ranges)
