"""How the simulator reads an abstract: the part of each section, and which sentences state a
positive or a negative finding.

Nothing here is a language model and nothing sees a label: it is a handful of lexical rules over the
task's own text.
"""

import re
from collections.abc import Iterable
from typing import Literal

Part = Literal["background", "methods", "results"]
PARTS: tuple[Part, ...] = ("background", "methods", "results")
Finding = Literal["positive", "negative", "none"]

_RESULTS = re.compile(r"result|finding|measurement|outcome", re.I)
_METHODS = re.compile(
    r"method|design|setting|patient|particip|subject|material|intervention|procedure|sample|data|study",
    re.I,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])")
_WORD = re.compile(r"[a-z]{3,}")
_NEGATIVE = re.compile(
    r"\bno (?:statistically )?(?:significant |clear |consistent )?"
    r"(?:difference|association|correlation|relationship|effect|change|evidence|benefit|improvement|influence)"
    r"|\bnot (?:statistically |significantly )?"
    r"(?:significant|associated|differ|correlat|improve|affect|change|increase|predict|related|influence)"
    r"|\b(?:did|does|do|was|were|is|are) not\b|\bsimilar\b|\bcomparable\b|\bfailed"
    r" to\b|\bP\s*[=>]\s*0?\.[1-9]",
    re.I,
)
_POSITIVE = re.compile(
    r"significant|\bP\s*<|associated with|correlated"
    r" with|\bhigher\b|\bgreater\b|increased|improved|\blower\b|reduced"
    r"|\bbetter\b|predict|decreas|superior|\d\s?%",
    re.I,
)
_STOPWORDS = frozenset(
    [
        "the",
        "and",
        "for",
        "with",
        "from",
        "that",
        "this",
        "are",
        "was",
        "were",
        "does",
        "did",
        "has",
        "have",
        "had",
        "not",
        "can",
        "may",
        "its",
        "their",
        "between",
        "among",
        "after",
        "before",
        "during",
        "than",
        "into",
        "which",
        "who",
        "what",
        "when",
        "how",
        "why",
        "use",
        "using",
        "used",
    ]
)


def part_of(label: str) -> Part:
    """Return the part of a paper that a section label names. Any other label is background."""
    if _RESULTS.search(label):
        return "results"
    return "methods" if _METHODS.search(label) else "background"


def sentences(text: str) -> list[str]:
    """Split a text into sentences."""
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def content_words(text: str) -> set[str]:
    """Return the lower-case words of a text that carry meaning."""
    return set(_WORD.findall(text.lower())) - _STOPWORDS


def finding_of(text: str) -> Finding:
    """Return which way most of the text's finding sentences point; a tie counts as positive."""
    positive = negative = 0
    for sentence in sentences(text):
        # First: `no significant difference` matches the positive pattern, too.
        if _NEGATIVE.search(sentence):
            negative += 1
        elif _POSITIVE.search(sentence):
            positive += 1
    if not positive and not negative:
        return "none"
    return "positive" if positive >= negative else "negative"


def most_relevant(question: str, candidates: Iterable[str], count: int) -> list[str]:
    """Return the `count` sentences that share most words with the question, findings first, in
    their own order.
    """
    asked = content_words(question)
    numbered = list(enumerate(candidates))
    ranked = sorted(
        numbered,
        key=lambda item: (
            finding_of(item[1]) == "none",
            -len(asked & content_words(item[1])),
            item[0],
        ),
    )
    return [sentence for _, sentence in sorted(ranked[:count])]
