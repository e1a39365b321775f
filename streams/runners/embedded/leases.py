"""Leases: which worker of a consumer group processes which partition, so that workers share one
log.

A worker announces itself, takes free or expired partitions up to its fair share, and renews the
ones it holds. Each lease has an epoch that grows when the lease changes hands. A commit checks the
epoch in its own transaction, so a worker that lost a partition while it was busy writes nothing.
"""

from collections.abc import Iterable

from schemas.clock import now, to_milliseconds
from streams.runners.config import DEFAULT_LEASE_S
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.errors import LeaseLostError


class Leases:
    """One worker's share of a consumer group.

    Args:
        group: consumer group.
        member: this worker's name, unique among those that live.
        partitions: how many partitions the group has.
        lease_s: how long a lease lasts without renewal; a dead worker's partitions are free after
            that.
    """

    def __init__(
        self,
        log: EmbeddedLog,
        group: str,
        member: str,
        partitions: int,
        lease_s: float = DEFAULT_LEASE_S,
    ) -> None:
        self._log = log
        self._group = group
        self._member = member
        self._partitions = partitions
        self._lease_ms = int(lease_s * 1000)
        self._renew_at_ms = 0
        self.held: dict[int, int] = {}
        """Partition to epoch."""

    def refresh(self) -> bool:
        """Renew, take and give up leases when it is time; return whether the set of partitions
        changed.
        """
        now_ms = to_milliseconds(now())
        if now_ms < self._renew_at_ms:
            return False
        before = dict(self.held)
        with self._log.transaction():
            share = self._announce(now_ms)
            self._renew(now_ms)
            # Release before taking: a worker with more than its share must first make room for a
            # new one.
            self._release(sorted(self.held)[share:])
            self._take(share - len(self.held), now_ms)
        # Renew at a third, so that two renewals may fail before the lease ends.
        self._renew_at_ms = now_ms + self._lease_ms // 3
        return self.held != before

    def verify_within(self) -> None:
        """Check, inside the caller's transaction, that this worker still holds every lease.

        Raises:
            LeaseLostError: another worker took a partition.
        """
        rows = self._log.connection.execute(
            'SELECT "partition", epoch FROM leases WHERE consumer_group = ? AND member = ?',
            (self._group, self._member),
        ).fetchall()
        if lost := self.held.items() - {(partition, epoch) for partition, epoch in rows}:
            raise LeaseLostError(
                f"{self._member} lost partitions {sorted(p for p, _ in lost)} of {self._group}"
            )

    def forget(self) -> None:
        """Forget the held leases, so that the next refresh reads them from the log."""
        self.held = {}
        self._renew_at_ms = 0

    def leave(self) -> None:
        """Give up every lease at once, so that others need not wait until they expire."""
        with self._log.transaction():
            self._release(list(self.held))
            self._log.connection.execute(
                "DELETE FROM members WHERE consumer_group = ? AND member = ?",
                (self._group, self._member),
            )

    def _announce(self, now_ms: int) -> int:
        """Announce that this worker lives; return its share, in partitions."""
        # Members that died are removed first, or they would keep their share for ever.
        execute = self._log.connection.execute
        execute(
            "DELETE FROM members WHERE consumer_group = ? AND expires_ms < ?", (self._group, now_ms)
        )
        execute(
            "INSERT INTO members (consumer_group, member, expires_ms) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET expires_ms = excluded.expires_ms",
            (self._group, self._member, now_ms + self._lease_ms),
        )
        members = [
            row[0]
            for row in execute(
                "SELECT member FROM members WHERE consumer_group = ? ORDER BY member",
                (self._group,),
            )
        ]
        # The names are sorted, so all workers compute the same shares without talking to each
        # other.
        whole, rest = divmod(self._partitions, len(members))
        return whole + (members.index(self._member) < rest)

    def _renew(self, now_ms: int) -> None:
        self._log.connection.execute(
            # A lease that expired but that nobody took is still ours, so it is renewed, too.
            "UPDATE leases SET expires_ms = ? WHERE consumer_group = ? AND member = ?",
            (now_ms + self._lease_ms, self._group, self._member),
        )
        rows = self._log.connection.execute(
            'SELECT "partition", epoch FROM leases WHERE consumer_group = ? AND member = ?',
            (self._group, self._member),
        )
        self.held = dict(rows)

    def _release(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._log.connection.execute(
                'UPDATE leases SET expires_ms = 0 WHERE consumer_group = ? AND "partition" = ?'
                " AND member = ?",
                (self._group, partition, self._member),
            )
            del self.held[partition]

    def _take(self, count: int, now_ms: int) -> None:
        rows = self._log.connection.execute(
            'SELECT "partition", epoch, expires_ms FROM leases WHERE consumer_group = ?',
            (self._group,),
        ).fetchall()
        taken = {partition: (epoch, expires_ms) for partition, epoch, expires_ms in rows}
        free = [
            p
            for p in range(self._partitions)
            if p not in self.held and taken.get(p, (0, 0))[1] < now_ms
        ]
        for partition in free[: max(count, 0)]:
            # A higher epoch makes a commit of the last owner fail, even if it is this same worker.
            epoch = taken.get(partition, (0, 0))[0] + 1
            self._log.connection.execute(
                'INSERT INTO leases (consumer_group, "partition", member, epoch, expires_ms)'
                " VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET member = excluded.member, epoch = excluded.epoch,"
                " expires_ms = excluded.expires_ms",
                (self._group, partition, self._member, epoch, now_ms + self._lease_ms),
            )
            self.held[partition] = epoch
