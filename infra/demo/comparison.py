"""The demonstration: runs the whole loop on this machine. A second arm runs on the same tasks with
a policy that learns nothing.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import httpx
from pydantic import BaseModel
from research_society.runner import Attempt, Runner
from research_society.tasks import ResearchTask

from infra.analytics.client import connect
from infra.analytics.report import CheckpointReport, Report, build_report
from infra.analytics.sink import Sink
from infra.config.settings import Settings
from infra.installation.log import open_log
from infra.installation.processors import all_processors, learning_processors
from infra.processes.supervisor import Supervisor
from learners.gate import GateConfig
from schemas.topics import DECISIONS, ROLLOUTS, SPANS, TOPICS
from streams.runners.lag import wait_until_drained
from streams.runners.replay import live_state
from streams.storage.log import Log

LEARNED, RANDOM = "learned", "random"
DRAIN_TIMEOUT_S = 120.0
PARALLEL = 4
DEMO_GATE = GateConfig(confidence=0.75, tolerance=0.2, canary_share=0.0, least_evidence=20)
"""The gate's defaults need some hundred rewards more than a demonstration has."""


@dataclass(frozen=True)
class DemoOptions:
    """What to run.

    Attributes:
        rollouts: how many the learning arm runs. The random arm runs as many, on the same tasks.
        seed: gives the order of tasks and, because rollout ids contain it, every draw of a
            policy.
    """

    tasks: list[ResearchTask]
    rollouts: int
    seed: int


class PairedComparison(BaseModel):
    """The learned policy against the random one on the same tasks: paired t-test, two-sided.

    Attributes:
        difference: mean of the paired differences of reward, over all rollouts, also the first
            ones.
        low, high: its 95 % confidence interval.
    """

    pairs: int
    difference: float
    low: float
    high: float
    p_value: float


class DemoResult(BaseModel):
    """What `everloop demo --json` prints."""

    rollouts: int
    succeeded: int
    events: int
    mean_reward: float
    reward_first_third: float
    reward_last_third: float
    reward_random_policy: float
    learned_against_random: PairedComparison
    decision_alignment: float
    decision_alignment_random_policy: float
    mean_turns: float
    policy_updates: int
    checkpoints: list[CheckpointReport]
    switches: int
    failed_requests: int
    lost_events: int
    dead_letters: int
    weights_sha256: str
    tasks: int
    seed: int
    reward_kind: str
    models: str
    duration_s: float
    data_dir: Path


def run_demo(
    settings: Settings, options: DemoOptions, on_progress: Callable[[int], None] = lambda _: None
) -> tuple[DemoResult, Report]:
    """Run the demonstration. Return its figures, which are all read from the log, and the report.

    Args:
        settings: of the installation to start; its data folder should be new.
        on_progress: called with the number of rollouts done.

    Raises:
        ConfigError, StartError, NotDrainedError: see `infra.processes.supervisor` and
            `streams.runners.lag`.
    """
    begun = time.monotonic()
    supervisor = Supervisor(settings)
    supervisor.start()
    try:
        asyncio.run(_rollouts(supervisor.gateway_url, settings, options, on_progress))
        processors = all_processors(settings)
        with open_log(settings) as log:
            wait_until_drained(log, processors, DRAIN_TIMEOUT_S)
        # Asked before the supervisor stops it: its counts live in memory.
        gateway = httpx.get(f"{supervisor.gateway_url}/healthz").json()
    finally:
        supervisor.stop()
    with open_log(settings) as log:
        client = connect(settings.analytics_dsn)
        # The analytics process has ended, so nothing else has the embedded database open.
        Sink(log, client).catch_up()
        report = build_report(client)
        return _result(
            settings, options, log, client, report, gateway, time.monotonic() - begun
        ), report


async def _rollouts(
    gateway_url: str, settings: Settings, options: DemoOptions, on_progress: Callable[[int], None]
) -> None:
    runner = Runner(gateway_url, options.tasks, PARALLEL)
    done = 0
    async for _ in runner.run(_attempts(settings, options)):
        done += 1
        on_progress(done)
    await runner.close()


def _attempts(settings: Settings, options: DemoOptions) -> list[Attempt]:
    """Return the rollouts of both arms: the same tasks in the same order, one arm after the other.

    Nothing learns from the random arm; it is there for comparison. On held-out tasks both arms are
    evidence for the gate.
    """
    order = list(options.tasks)
    Random(options.seed).shuffle(order)  # noqa: S311 - a reproducible order, not a secret
    attempts = []
    for number in range(options.rollouts):
        task = order[number % len(order)]
        for group, policy in (
            (LEARNED, settings.bandit.targets[0]),
            (RANDOM, settings.baselines[0]),
        ):
            split = task.split if group == LEARNED or task.split == "validation" else "test"
            attempts.append(
                Attempt(f"demo-{options.seed}-{number:05d}-{group}", task, policy, split, group)
            )
    return attempts


def _result(
    settings: Settings,
    options: DemoOptions,
    log: Log,
    client: Any,
    report: Report,
    gateway: dict[str, Any],
    duration_s: float,
) -> DemoResult:
    groups = {group.group: group for group in report.groups}
    learned, random = groups[LEARNED], groups[RANDOM]
    learning = learning_processors(settings)[0]
    state = live_state(log, learning)
    return DemoResult(
        rollouts=learned.rollouts,
        succeeded=learned.succeeded,
        events=sum(sum(log.ends(topic).values()) for topic in TOPICS),
        mean_reward=learned.mean_reward or 0.0,
        reward_first_third=learned.reward_first_third or 0.0,
        reward_last_third=learned.reward_last_third or 0.0,
        reward_random_policy=random.mean_reward or 0.0,
        learned_against_random=_compare_arms(client),
        decision_alignment=learned.decision_alignment or 0.0,
        decision_alignment_random_policy=random.decision_alignment or 0.0,
        mean_turns=learned.mean_turns or 0.0,
        policy_updates=learning.learner.examples(state.state) if state else 0,
        checkpoints=report.checkpoints,
        switches=len(report.switches),
        failed_requests=gateway["requests"].get("failed", 0),
        lost_events=_count_lost(log, gateway["events"]["accepted"]),
        dead_letters=report.dead_letters,
        weights_sha256=sha256(learning.learner.encode(state.state)).hexdigest() if state else "",
        tasks=len(options.tasks),
        seed=options.seed,
        reward_kind="six criteria by a judge's model"
        if settings.judge.model
        else "measured criteria, no judge's model",
        models="simulated: " + ", ".join(settings.app_models)
        if settings.app_models
        else "configured",
        duration_s=round(duration_s, 1),
        data_dir=settings.data_dir,
    )


def _compare_arms(client: Any) -> PairedComparison:
    from scipy import (
        stats,  # takes a second to import, which only the end of a demonstration should cost
    )

    rows = client.query(
        "SELECT rollout_id, reward FROM rollouts WHERE reward IS NOT NULL ORDER BY rollout_id"
    )
    rewards: dict[str, dict[str, float]] = {}
    for rollout_id, reward in rows.result_rows:
        number, _, group = rollout_id.rpartition("-")
        # The ids differ only in the group, so the number pairs the arms.
        rewards.setdefault(number, {})[group] = reward
    # A rollout that failed has no reward, and so no pair.
    pairs = [both for both in rewards.values() if len(both) == 2]
    outcome = stats.ttest_rel([pair[LEARNED] for pair in pairs], [pair[RANDOM] for pair in pairs])
    interval = outcome.confidence_interval(0.95)
    return PairedComparison(
        pairs=len(pairs),
        difference=sum(pair[LEARNED] - pair[RANDOM] for pair in pairs) / len(pairs),
        low=float(interval.low),
        high=float(interval.high),
        p_value=float(outcome.pvalue),
    )


def _count_lost(log: Log, accepted: dict[str, int]) -> int:
    """Return how many events the gateway accepted that are not on the log.

    Only topics that nothing but the gateway writes are counted.
    """
    return sum(
        accepted.get(topic.name, 0) - sum(log.ends(topic.name).values())
        for topic in (ROLLOUTS, SPANS, DECISIONS)
    )
