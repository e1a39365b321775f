"""`make bench-embeddings`: what embeddings of contexts earn, and what they cost.

The problems are those of `make bench-production`, and one more: `experts`. There, PubMedQA's
questions are the contexts. Of five experts, the one whose field the paper was indexed with (MeSH)
is right in 90 %, the others in 30 %.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated, Any

import typer

from learners.bandit.config import BanditConfig
from learners.bandit.learner import BanditLearner
from schemas.decisions import Candidate
from tests.benchmarks.machine import machine
from tests.benchmarks.production.players import Ungated, earned
from tests.benchmarks.production.problems import DELAY, TASKS, Turn, problems

SEEDS = range(3)

FIELDS = {
    "oncology": ("Neoplasm", "Carcinoma"),
    "obstetrics": ("Pregnan", "Infant, Newborn", "Cesarean", "Labor"),
    "surgery": ("Postoperative Complications", "Laparoscopy", "Surgical"),
    "cardiology": ("Heart", "Coronary", "Myocardial", "Cardiac", "Hypertension"),
    "psychiatry": ("Depress", "Mental", "Anxiety", "Psych"),
}
"""Beginnings of the headings of each field. A paper counts for the first field that fits."""


def experts(tasks: Path, seed: int) -> list[Turn]:
    """Return questions, and which of five experts answers each right."""
    random, found = Random(seed), []
    candidates = [Candidate(id=field, text=field) for field in FIELDS]
    for task in _shuffled(tasks, random):
        fits = [
            field
            for field, beginnings in FIELDS.items()
            if any(heading.startswith(beginnings) for heading in task["MESHES"])
        ]
        if fits:
            chances = [0.9 if field == fits[0] else 0.3 for field in FIELDS]
            rewards = [float(random.random() < chance) for chance in chances]
            found.append(Turn(task["QUESTION"], candidates, rewards, DELAY))
    return found


def _shuffled(tasks: Path, random: Random) -> list[dict[str, Any]]:
    found = list(json.loads(tasks.read_bytes()).values())
    random.shuffle(found)
    return found


def played(tasks: Path, game: tuple[str, bool, int]) -> float:
    """Return the mean reward of a problem, with embeddings or without."""
    name, embeds, seed = game
    turns = experts(tasks, seed) if name == "experts" else problems(tasks)[name](seed)
    return float(earned(Ungated(seed, BanditConfig(embeddings=embeds)), turns).mean())


def decision_ms(characters: int, embeds: bool) -> float:
    """Return the milliseconds of a decision among ten, whose context was never met."""
    learner = BanditLearner("p", BanditConfig(embeddings=embeds))
    policy = learner.policy(learner.initial())
    candidates = [Candidate(id=str(number), text=f"option {number}") for number in range(10)]
    random, took = Random(0), []
    for _ in range(100):
        words = (f"w{random.randrange(9000)}" for _ in range(characters // 6))
        context = " ".join(words)[:characters]
        begun = time.perf_counter()
        policy.probabilities(context, candidates)
        took.append(time.perf_counter() - begun)
    return 1000 * sorted(took)[50]


def _mean(rewards: dict[tuple[str, bool, int], float], name: str, embeds: bool) -> float:
    return fmean(rewards[name, embeds, seed] for seed in SEEDS)


def _both(measured: Callable[[bool], float]) -> dict[str, float]:
    return {"words": measured(False), "words and embeddings": measured(True)}


def main(
    out: Annotated[Path, typer.Option()] = Path("bench-embeddings.json"),
    tasks: Annotated[Path, typer.Option(help="PubMedQA's ori_pqal.json")] = TASKS,
) -> None:
    """Measure, print and write the figures."""
    names = [*(["experts"] if tasks.exists() else []), *problems(tasks)]
    games = [(name, embeds, seed) for name in names for embeds in (False, True) for seed in SEEDS]
    with get_context("fork").Pool() as pool:
        rewards = dict(
            zip(games, pool.map(partial(played, tasks), games, chunksize=1), strict=True)
        )
    results = {name: _both(partial(_mean, rewards, name)) for name in names}
    costs = {
        f"{characters} characters": _both(partial(decision_ms, characters))
        for characters in (100, 1_000, 10_000)
    }
    document = {"machine": machine(), "mean_reward": results, "decision_ms_median": costs}
    out.write_text(json.dumps(document, indent=2) + "\n")
    typer.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    typer.run(main)
