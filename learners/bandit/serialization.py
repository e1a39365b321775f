"""A regressor and a vocabulary as JSON, exact to the bit."""

from dataclasses import asdict
from typing import Any

import numpy as np

from learners.bandit.arrays import finite, packed, unpacked
from learners.bandit.beliefs import BY_MEMBER
from learners.bandit.regressor import BlockBayesianRegressor, RegressorConfig
from learners.bandit.vocabulary import FrequentItems, Vocabulary


def regressor_to_json(regressor: BlockBayesianRegressor) -> dict[str, Any]:
    """Return the whole state of a regressor. Equal regressors give equal documents.

    Covariances are symmetric, so the upper triangles are enough.
    """
    beliefs = regressor.beliefs
    met = slice(1, len(beliefs.features))
    return {
        "config": asdict(regressor.config),
        "lessons": regressor.examples,
        "energy": regressor.energy,
        "errors": regressor.errors.tolist(),
        "evidence": regressor.evidence.tolist(),
        "least": regressor.least,
        "greatest": regressor.greatest,
        "features": packed(beliefs.features[met], "<u4"),
        "since": packed(beliefs.since[met], "<u4"),
        "priors": packed(beliefs.priors[met], "<f8"),
        **{name: packed(getattr(beliefs, name)[:, met], "<f8") for name in BY_MEMBER},
        "blocks": [
            {
                "id": block_id,
                "slots": packed(block.slots, "<u4"),
                "covariances": packed(block.filled[:, *np.triu_indices(block.width)], "<f8"),
            }
            for block_id, block in beliefs.blocks.items()
        ],
    }


def regressor_from_json(document: dict[str, Any]) -> BlockBayesianRegressor:
    """Return the regressor that `regressor_to_json` wrote.

    Raises:
        ValueError: the document is damaged, or holds a number that is not finite.
        KeyError, TypeError: it is another kind of document.
    """
    config = document["config"]
    # Policies of an earlier version have no member that expects more noise.
    lists = {name: tuple(config.get(name, ())) for name in ("forgetting", "noisier")}
    regressor = BlockBayesianRegressor(RegressorConfig(**config | lists))
    members = regressor.config.members
    regressor.examples = int(document["lessons"])
    regressor.energy = float(document["energy"])
    regressor.errors = np.array(document["errors"], dtype=float).reshape(members)
    regressor.evidence = np.array(document["evidence"], dtype=float).reshape(members)
    regressor.heed()
    features = unpacked(document["features"], "<u4").tolist()
    shape = (members, len(features))
    # Policies of an earlier version have means and variances alone. They only choose.
    since = np.zeros(len(features), dtype=np.int64)
    if "since" in document:
        since = unpacked(document["since"], "<u4").astype(np.int64)
        regressor.least, regressor.greatest = document["least"], document["greatest"]
    # What was written without priors faded towards that of a new weight.
    priors = np.full(len(features), regressor.prior)
    if "priors" in document:
        priors = finite(document["priors"])
    by_member = {
        name: finite(document[name]).reshape(shape) for name in BY_MEMBER if name in document
    }
    regressor.beliefs.restore(features, since, priors, by_member)
    for block in document["blocks"]:
        slots = unpacked(block["slots"], "<u4").tolist()
        rows, columns = np.triu_indices(len(slots))
        covariances = np.zeros((members, len(slots), len(slots)))
        covariances[:, rows, columns] = finite(block["covariances"]).reshape(members, len(rows))
        covariances[:, columns, rows] = covariances[:, rows, columns]
        regressor.beliefs.restore_block(int(block["id"]), slots, covariances)
    return regressor


def vocabulary_to_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return a vocabulary as JSON. Equal vocabularies give equal documents."""
    return {
        "contexts": vocabulary.contexts,
        "words": _counts_to_json(vocabulary.words),
        "candidates": _counts_to_json(vocabulary.candidates),
    }


def vocabulary_from_json(document: dict[str, Any]) -> Vocabulary:
    """Return the vocabulary that `vocabulary_to_json` wrote."""
    return Vocabulary(
        int(document["contexts"]),
        _counts_from_json(document["words"]),
        _counts_from_json(document["candidates"]),
    )


def _counts_to_json(counts: FrequentItems) -> list[str]:
    items = counts.items()
    return [packed([item[side] for item in items], "<u4") for side in (0, 1)]


def _counts_from_json(document: list[str]) -> FrequentItems:
    counted, often = (unpacked(text, "<u4").tolist() for text in document)
    return FrequentItems(dict(zip(counted, often, strict=True)))
