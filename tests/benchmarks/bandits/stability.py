"""Ten million examples: do the weights stay numbers, the covariances covariances, and the memory
what it was?
"""

import time
from random import Random
from typing import Any

import numpy as np
import psutil

from learners.bandit.regressor import BlockBayesianRegressor, RegressorConfig

EXAMPLES = 10_000_000
LOOKS = 10
FEATURES = 400
A_EXAMPLE = 8
SIZES = (1.0, -1.0, 0.5, 1e-3, 1e3)


def measured() -> dict[str, Any]:
    """Learn from random features of sizes that differ by a million, more of them than find room in
    blocks.
    """
    regressor = BlockBayesianRegressor(RegressorConfig(block=16, dense=128))
    random, process, looks = Random(0), psutil.Process(), []
    begun = time.perf_counter()
    for number in range(1, EXAMPLES + 1):
        x = {random.randrange(FEATURES): random.choice(SIZES) for _ in range(A_EXAMPLE)}
        regressor.learn_one(x, random.random())
        if number % (EXAMPLES // LOOKS) == 0:
            covariances = [member for block in regressor.blocks.values() for member in block.filled]
            looks.append(
                {
                    "examples": number,
                    "finite": bool(
                        np.isfinite(regressor.means).all()
                        and np.isfinite(regressor.variances).all()
                    ),
                    "smallest_eigenvalue": min(
                        float(np.linalg.eigvalsh(of).min()) for of in covariances
                    ),
                    "largest_weight": float(np.abs(regressor.means).max()),
                    "memory_mib": round(process.memory_info().rss / 2**20, 1),
                }
            )
    return {"examples_per_second": round(EXAMPLES / (time.perf_counter() - begun)), "looks": looks}
