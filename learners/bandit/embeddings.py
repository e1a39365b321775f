"""Embeddings of contexts: what a text means, as few numbers. Needs the extra `embeddings`.

WordLlama (github.com/dleemiller/WordLlama, MIT) is a table of token vectors, taken from a large
language model and trained so that a prefix of each is an embedding too (Kusupati et al.,
Matryoshka Representation Learning, NeurIPS 2022). Its weights lie in its package, so nothing is
downloaded. An embedding is the mean of a text's token vectors.
"""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from learners.bandit.features import TEXT_CHARACTERS
from learners.bandit.slates import Floats

DIMENSIONS = 64

PACKAGE, RELEASE = "wordllama", "0.4.0.post1"

MODEL = f"{PACKAGE} {RELEASE} l2_supercat_256, first {DIMENSIONS}"
"""What computes embeddings here. A policy says what it was trained on."""

MISSING = f"embeddings need {PACKAGE} {RELEASE}; install everloop[embeddings]"


def check_installed() -> None:
    """Check that embeddings can be computed here.

    Raises:
        ValueError: the extra is missing, or is another release, which may embed otherwise.
    """
    try:
        found = version(PACKAGE)
    except PackageNotFoundError as error:
        raise ValueError(MISSING) from error
    if found != RELEASE:
        raise ValueError(f"{MISSING} (found {found})")


def load(model: str) -> None:
    """Load the model that a policy was trained on, so that its first decision need not.

    Raises:
        ValueError: another model computes embeddings here, or none does.
    """
    if model != MODEL:
        raise ValueError(f"the policy reads embeddings of {model}; here they are of {MODEL}")
    _model()


@lru_cache(maxsize=256)
def embedding(text: str) -> Floats:
    """Return the embedding of a text, shape (64,), of norm 1; zeros for a text without tokens.

    The vectors are added in order, so the same text has the same embedding to the last bit.

    Raises:
        ValueError: see `check_installed`.
    """
    tokenizer, table = _model()
    tokens = tokenizer.encode(text[:TEXT_CHARACTERS], add_special_tokens=False).ids
    if not tokens:
        return np.zeros(DIMENSIONS)
    summed = np.add.accumulate(table[tokens].astype(np.float64), axis=0)[-1]
    norm = sqrt(float(np.add.accumulate(summed * summed)[-1]))
    found: Floats = summed / norm if norm else summed
    found.flags.writeable = False  # it is cached
    return found


@lru_cache(maxsize=1)
def _model() -> tuple[Any, Floats]:
    """Return the tokenizer, and the vectors of all tokens, shape (32000, 64)."""
    check_installed()
    import wordllama

    # Without its own folder as the cache, it asks the network for the files that lie in it.
    model = wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__).parent, disable_download=True
    )
    return model.tokenizer, np.ascontiguousarray(model.embedding[:, :DIMENSIONS])
