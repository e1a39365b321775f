"""The report: rewards and success of the agents, what was learned, and what was switched."""

from datetime import datetime
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

ROLLING = 10


class GroupReport(BaseModel):
    """One experiment arm.

    Attributes:
        success_rate: share of its rollouts that ended without error.
        decision_alignment: share of succeeded, labelled rollouts with GO for yes or NO-GO for no;
            maybe never counts.
        curve: rewards in the order the rollouts closed; rollouts without one are left out.
        rolling: mean of the last ten rewards, or of fewer at the start.
    """

    group: str
    rollouts: int
    succeeded: int
    success_rate: float
    mean_reward: float | None
    reward_first_third: float | None
    reward_last_third: float | None
    decision_alignment: float | None
    mean_turns: float | None
    curve: list[float]
    rolling: list[float]


class NodeReport(BaseModel):
    """One node or tool: calls, latencies in seconds, tokens, errors."""

    node: str
    operation: str
    calls: int
    p50_s: float
    p95_s: float
    input_tokens: int
    output_tokens: int
    errors: int


class CheckpointReport(BaseModel):
    """One checkpoint with its state."""

    name: str
    version: str
    state: str
    announced: datetime
    reason: str


class GateReport(BaseModel):
    """The status of a gate, in a sentence."""

    name: str
    phase: str
    text: str


class SwitchReport(BaseModel):
    """A change of the versions that a name leads to."""

    name: str
    time: datetime
    before: list[str]
    after: list[str]
    reason: str


class Report(BaseModel):
    """Everything `everloop report` shows."""

    groups: list[GroupReport]
    nodes: list[NodeReport]
    checkpoints: list[CheckpointReport]
    gates: list[GateReport]
    switches: list[SwitchReport]
    dead_letters: int
    events: int

    @property
    def grouped_checkpoints(self) -> list[CheckpointReport]:
        """The checkpoints, with one line for all rejected ones of a name.

        There may be thousands of them, and the reason of the last one tells most.
        """
        kept = [c for c in self.checkpoints if c.state != "rejected"]
        rejected: dict[str, list[CheckpointReport]] = {}
        for checkpoint in self.checkpoints:
            if checkpoint.state == "rejected":
                rejected.setdefault(checkpoint.name, []).append(checkpoint)
        return kept + [
            of[-1].model_copy(
                update={
                    "version": f"{len(of)} versions",
                    "reason": f"the last, {of[-1].version}: {of[-1].reason}",
                }
            )
            for of in rejected.values()
        ]


def build_report(client: Any) -> Report:
    """Return the report of the store's present content."""
    tables = (
        "spans",
        "trajectories",
        "rewards",
        "decisions",
        "checkpoints",
        "routes",
        "dead_letters",
    )
    # FINAL: rows that were inserted twice count once.
    counts = {
        table: client.query(f"SELECT count() FROM {table} FINAL").first_row[0]  # noqa: S608
        for table in tables
    }
    names = client.query(
        "SELECT `group` FROM rollouts GROUP BY `group` ORDER BY min(first_closed)"
    ).result_rows
    nodes = client.query("SELECT * FROM node_latency ORDER BY operation, node")
    checkpoints = client.query(
        "SELECT name, version, state, announced, reason FROM checkpoint_states ORDER BY"
        " announced, version"
    )
    gates = client.query(
        "SELECT name, argMax(phase, (time, `offset`)) AS phase, argMax(text, (time, `offset`)) AS"
        " text FROM gates FINAL GROUP BY name ORDER BY name"
    )
    return Report(
        groups=[_group(client, name) for (name,) in names],
        nodes=[NodeReport.model_validate(row) for row in nodes.named_results()],
        checkpoints=[CheckpointReport.model_validate(row) for row in checkpoints.named_results()],
        gates=[GateReport.model_validate(row) for row in gates.named_results()],
        switches=_switches(client),
        dead_letters=counts["dead_letters"],
        events=sum(counts.values()),
    )


def _group(client: Any, name: str) -> GroupReport:
    rows = client.query(
        "SELECT state, reward, turns, decision, expected FROM rollouts WHERE `group` ="
        " {name:String}"
        " ORDER BY first_closed, rollout_id",
        parameters={"name": name},
    ).result_rows
    succeeded = [row for row in rows if row[0] == "succeeded"]
    curve = [reward for _, reward, *_ in succeeded if reward is not None]
    labelled = [(decision, expected) for *_, decision, expected in succeeded if expected]
    aligned = [pair in (("GO", "yes"), ("NO-GO", "no")) for pair in labelled]
    # At least one, so that a report of one or two rollouts has numbers.
    third = max(len(curve) // 3, 1)
    return GroupReport(
        group=name,
        rollouts=len(rows),
        succeeded=len(succeeded),
        success_rate=len(succeeded) / len(rows),
        mean_reward=_mean(curve),
        reward_first_third=_mean(curve[:third]),
        reward_last_third=_mean(curve[-third:]),
        decision_alignment=_mean([float(met) for met in aligned]),
        mean_turns=_mean([float(row[2]) for row in succeeded if row[2] is not None]),
        curve=curve,
        rolling=[
            sum(curve[max(0, i - ROLLING + 1) : i + 1]) / min(i + 1, ROLLING)
            for i in range(len(curve))
        ],
    )


def _switches(client: Any) -> list[SwitchReport]:
    """Return the changes from one route of a name to the next. The first route of a name is no
    switch.
    """
    rows = client.query(
        "SELECT name, time, versions, reason FROM routes FINAL ORDER BY name, time, `offset`"
    ).result_rows
    return [
        SwitchReport(name=name, time=time, before=before, after=after, reason=reason)
        for (previous, _, before, _), (name, time, after, reason) in pairwise(rows)
        if previous == name and before != after
    ]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
