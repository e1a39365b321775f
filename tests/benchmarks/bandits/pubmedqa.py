"""PubMedQA: how often the chosen hypothesis leads to the decision the experts' label asks for."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import orjson
from research_society.simulator.roles import JUNIORS, answer
from research_society.tasks import ResearchTask, load_tasks

from learners.bandit import OnlineBandit
from tests.benchmarks.bandits.comparison import earned
from tests.benchmarks.bandits.players import VW_GRID, Player, Uniform, VowpalWabbit
from tests.benchmarks.bandits.problems import Candidate, Round

SEEDS = tuple(range(10))
DECISIONS = {"GO": "yes", "NO-GO": "no"}


def measured(tasks: Path, vw: str) -> dict[str, Any]:
    """Play all tasks in their order, for each seed.

    Each task shows the hypotheses of the society's three juniors, as the simulator of the
    demonstration writes them from the abstract; what the investigator decides on the chosen one
    earns 1 where it agrees with the label.

    Args:
        vw: arguments of Vowpal Wabbit, as tuned on the six problems.
    """
    rounds = [round_of(task) for task in load_tasks(str(tasks))]
    fixed = {
        role: fmean(shown.rewards[place] for shown in rounds) for place, role in enumerate(JUNIORS)
    }
    players: dict[str, Callable[[int], Player]] = {
        "everloop": OnlineBandit,
        "Vowpal Wabbit, tuned": lambda seed: VowpalWabbit(seed, VW_GRID[vw]),
        "uniform": Uniform,
    }
    return {
        "tasks": len(rounds),
        "seeds": len(SEEDS),
        "alignment": {
            name: _summed([earned(of(seed), rounds) for seed in SEEDS])
            for name, of in players.items()
        },
        "best_fixed": max(fixed.items(), key=lambda item: item[1]),
        "some_hypothesis_aligns": fmean(max(shown.rewards) for shown in rounds),
    }


def round_of(task: ResearchTask) -> Round:
    """Return the hypotheses of the juniors for a task, and what the decision on each earns."""
    paper = {"id": task.id, "sections": [section.model_dump() for section in task.sections]}
    texts: list[Candidate] = []
    rewards = []
    for role in JUNIORS:
        proposed = answer(role, {"research_goal": task.goal}, [orjson.dumps([paper]).decode()])[
            "hypothesis"
        ]
        refined = answer("Hypothesis Refiner", {"selected_hypothesis": proposed}, [])[
            "refined_hypothesis"
        ]
        decided = answer(
            "Principal Investigator", {"refined_hypothesis": refined, "protocol": {}}, []
        )
        texts.append(proposed)
        rewards.append(float(DECISIONS[decided["final_decision"]] == task.expected_decision))
    return Round(texts, rewards)


def _summed(runs: list[Any]) -> dict[str, float]:
    means = [float(run.mean()) for run in runs]
    return {"mean": fmean(means), "least": min(means), "most": max(means)}
