"""A user's program at work: tickets go in, one at a time, and what it used comes out."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.users.tickets import Ticket

AGENTS = Path(__file__).parent / "agents"
MOST_PER_S = 10.0
"""Tickets a second, at most. Rollouts count when they are some seconds old. Of a flood of rollouts
most would come while the gate waits, and say nothing of how many it takes.
"""

WINDOW = 100
"""Rollouts over which the share of the better option is taken."""

ENOUGH = 0.9
STEP = 25
BLOCKS = " ▁▂▃▄▅▆▇█"


class Program(AbstractContextManager["Program"]):
    """Runs one of the agents, and starts it again when it died, as a service manager would.

    Attributes:
        deaths: how often it died.
    """

    def __init__(self, agent: str, gateway: str) -> None:
        self._command = [sys.executable, str(AGENTS / f"{agent}.py")]
        self._environment = os.environ | {"GATEWAY": gateway}
        self._next = 0.0
        self._process = self._started()
        self.deaths = 0

    def work(self, ticket: Ticket) -> list[str]:
        """Hand it a ticket and return what it used."""
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + 1.0 / MOST_PER_S
        line = self._answer(ticket)
        if not line:  # it died after the ticket before
            self.deaths += 1
            self._process.communicate()
            self._process = self._started()
            line = self._answer(ticket)
        used: list[str] = json.loads(line)["used"]
        return used

    def _answer(self, ticket: Ticket) -> str:
        """Return the line that it writes about a ticket; nothing where it has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(ticket) + "\n")
            self._process.stdin.flush()
        return self._process.stdout.readline()

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=30)


@dataclass
class Curve:
    """The share of the better option in each rollout of a user.

    Attributes:
        deaths: how often the program died meanwhile.
    """

    shares: list[float] = field(default_factory=list)
    deaths: int = 0

    @property
    def needed(self) -> int | None:
        """How many rollouts came before 100 of which the better option served 90 %."""
        begins = range(len(self.shares) - WINDOW + 1)
        return next(
            (b for b in begins if sum(self.shares[b : b + WINDOW]) >= ENOUGH * WINDOW), None
        )

    @property
    def steps(self) -> list[float]:
        """Mean share of each 25 rollouts."""
        parts = [self.shares[b : b + STEP] for b in range(0, len(self.shares), STEP)]
        return [sum(part) / len(part) for part in parts]

    def __str__(self) -> str:
        drawn = "".join(BLOCKS[round(share * (len(BLOCKS) - 1))] for share in self.steps)
        return f"90 % after {self.needed} of {len(self.shares)} rollouts {drawn}"


def rollouts_until_better(program: Program, tickets: Iterator[Ticket], most: int) -> Curve:
    """Let a program work until the better option serves 90 % of its rollouts, or for `most`."""
    curve = Curve()
    for ticket, _ in zip(tickets, range(most), strict=False):
        used, right = program.work(ticket), ticket["right"]
        curve.shares.append(sum(map(str.__eq__, used, right)) / len(right))
        if sum(curve.shares[-WINDOW:]) >= ENOUGH * WINDOW:
            break
    return curve
