"""What a topic says is one fold of it, the same for every reader."""

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.gates import GateEvent, GateStatus
from schemas.keys import ApiKey, KeyEvent, Scope
from schemas.rollouts import Rollout, RolloutEvent, RolloutState
from schemas.routes import HISTORY, Route, RouteEvent, RouteTarget
from schemas.topics import KEYS, ROUTES
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.errors import LogUnavailableError
from streams.storage.log import Log
from streams.storage.records import NewRecord, Outgoing, Record
from streams.views.checkpoints import Checkpoints
from streams.views.follower import Follower, read_views
from streams.views.gates import Gates
from streams.views.keys import Keys
from streams.views.rollouts import Rollouts
from streams.views.routes import Routes
from tests.waiting import eventually

NAME = "writer"


def route(*served: tuple[str, float], name: str = NAME) -> RouteEvent:
    targets = [RouteTarget(version=version, weight=weight) for version, weight in served]
    return RouteEvent(payload=Route(name=name, kind="policy", targets=targets))


def only(version: str) -> RouteEvent:
    return route((version, 1.0))


def trial(stable: str, candidate: str) -> RouteEvent:
    return route((stable, 0.9), (candidate, 0.1))


def history(*events: RouteEvent) -> list[list[str]]:
    view = Routes()
    for event in events:
        view.apply(event)
    return [sorted(past.versions) for past in view.current[NAME].history]


def test_what_a_route_served_before_is_kept_the_latest_last() -> None:
    assert history(only("a")) == []
    assert history(only("a"), only("b"), only("c")) == [["a"], ["b"]]


def test_other_weights_of_the_same_versions_are_no_step() -> None:
    assert history(route(("a", 0.9), ("b", 0.1)), route(("a", 0.5), ("b", 0.5))) == []


def test_a_trial_is_no_step_however_it_ends() -> None:
    assert history(only("a"), trial("a", "b")) == [["a"]]
    assert history(only("a"), trial("a", "b"), only("b")) == [["a"]]
    assert history(only("a"), trial("a", "b"), only("a")) == []
    assert history(only("a"), trial("a", "b"), trial("a", "c"), only("c")) == [["a"]]


def test_going_back_takes_the_step_off() -> None:
    assert history(only("a"), only("b"), only("c"), only("b")) == [["a"]]
    assert history(only("a"), only("b"), only("c"), only("b"), only("a")) == []


def test_a_drained_version_is_not_served() -> None:
    assert history(only("a"), route(("a", 0.0), ("b", 1.0)), only("c")) == [["a"], ["b"]]


def test_history_outlives_the_compaction_of_the_topic() -> None:
    view = Routes()
    for event in (only("a"), only("b")):
        view.apply(event)
    newest = RouteEvent(payload=view.current[NAME])  # as its writer wrote it
    assert history(newest, only("c")) == [["a"], ["b"]]


def test_history_is_bounded() -> None:
    kept = history(*(only(f"v{number}") for number in range(HISTORY + 10)))
    assert len(kept) == HISTORY
    assert kept[-1] == [f"v{HISTORY + 8}"]


VERSIONS = st.sampled_from("abcd")
ROUTE_EVENTS = st.lists(
    st.one_of(VERSIONS.map(only), st.tuples(VERSIONS, VERSIONS).map(lambda pair: trial(*pair)))
)


@given(ROUTE_EVENTS)
def test_a_route_that_comes_twice_changes_nothing(events: list[RouteEvent]) -> None:
    once, twice = Routes(), Routes()
    for event in events:
        once.apply(event)
        twice.apply(event)
        twice.apply(event)
    assert once.current == twice.current


@given(ROUTE_EVENTS)
def test_a_rollback_leads_to_something_that_was_served_and_is_not_served_now(
    events: list[RouteEvent],
) -> None:
    view = Routes()
    for event in events:
        view.apply(event)
    if not events or not view.current[NAME].history:
        return
    back = view.current[NAME].history[-1].versions
    assert back in [event.payload.served.versions for event in events]
    assert back != view.current[NAME].served.versions


def checkpoint(version: str, state: CheckpointState, **said: float) -> CheckpointEvent:
    return CheckpointEvent(
        payload=Checkpoint(name=NAME, version=version, kind="policy", state=state, metrics=said)
    )


def test_a_checkpoint_is_everything_that_was_said_of_it_and_its_last_state() -> None:
    view = Checkpoints()
    view.apply(checkpoint("v1", CheckpointState.CANDIDATE, loss=0.5))
    view.apply(checkpoint("v1", CheckpointState.EVALUATED, gain=0.1))
    assert view.of(NAME)["v1"].metrics == {"loss": 0.5, "gain": 0.1}
    assert view.promoted(NAME) is None
    view.apply(checkpoint("v1", CheckpointState.PROMOTED))
    promoted = view.promoted(NAME)
    assert promoted is not None
    assert promoted.version == "v1"


def test_a_version_that_is_announced_again_keeps_its_state() -> None:
    view = Checkpoints()
    for state in (CheckpointState.CANDIDATE, CheckpointState.REJECTED, CheckpointState.CANDIDATE):
        view.apply(checkpoint("v1", state))
    assert view.of(NAME)["v1"].state is CheckpointState.REJECTED


def rollout(rollout_id: str, state: RolloutState, tenant: str, **pins: str) -> RolloutEvent:
    payload = Rollout(state=state, agent="agent", checkpoints=pins)
    return RolloutEvent(tenant=tenant, rollout_id=rollout_id, payload=payload)


def test_open_rollouts_are_those_that_began_and_did_not_end_apart_by_tenant() -> None:
    view = Rollouts()
    view.apply(rollout("r1", RolloutState.STARTED, "default", writer="v1"))
    view.apply(rollout("r1", RolloutState.STARTED, "acme", writer="v2"))
    view.apply(rollout("r1", RolloutState.STARTED, "acme", reader="v3"))
    view.apply(rollout("r1", RolloutState.SUCCEEDED, "default"))
    assert {key: found.checkpoints for key, found in view.open.items()} == {
        "acme|r1": {"writer": "v2", "reader": "v3"}
    }


def key(label: str) -> KeyEvent:
    found = ApiKey(id="0123456789ab", sha256="0" * 64, scopes=[Scope.AGENT], label=label)
    return KeyEvent(payload=found)


def record(event: RouteEvent) -> NewRecord:
    return Outgoing.of(ROUTES, event.payload.name, event).record()


def unreadable(name: str) -> NewRecord:
    return NewRecord(ROUTES.name, name.encode(), b"{not json")


def test_a_record_that_cannot_be_read_is_skipped_and_counted(log: EmbeddedLog) -> None:
    log.append([record(only("a")), unreadable(NAME), record(only("b"))])
    log.append([Outgoing.of(KEYS, "0123456789ab", key("new")).record()])
    routes, keys = Routes(), Keys()
    assert read_views(log, routes, keys) == {ROUTES.name: 1}
    assert routes.current[NAME].served.versions == {"b"}
    assert [found.label for found in keys.all.values()] == ["new"]


def test_a_follower_takes_in_what_comes_and_nothing_twice(log: EmbeddedLog) -> None:
    routes = Routes()
    follower = Follower([routes])
    for version in ("a", "b", "c"):
        log.append([record(only(version))])
        follower.catch_up(log)
        follower.catch_up(log)
    assert [sorted(past.versions) for past in routes.current[NAME].history] == [["a"], ["b"]]


def test_a_follower_goes_on_after_an_outage_and_closes_the_log_that_it_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.views.follower.RECONNECT_S", 0.01)
    with EmbeddedLog(tmp_path / "log.db") as log:
        log.append([record(only("a"))])
    opened: list[Log] = []
    closed: list[Log] = []

    class Connection(EmbeddedLog):
        def close(self) -> None:
            closed.append(self)
            super().close()

    class BrokenConnection(Connection):
        """A connection to a log that is away."""

        def fetch(
            self, positions: Mapping[tuple[str, int], int], limit: int, wait_s: float = 0.0
        ) -> list[Record]:
            raise LogUnavailableError("away")

    def open_log() -> Log:
        opened.append((Connection if opened else BrokenConnection)(tmp_path / "log.db"))
        return opened[-1]

    routes, stop = Routes(), threading.Event()
    thread = threading.Thread(target=Follower([routes]).follow, args=(open_log, stop, 0.01))
    thread.start()
    try:
        eventually(lambda: NAME in routes.current, "the route")
    finally:
        stop.set()
        thread.join()
    assert len(opened) == 2
    assert closed == opened


def test_of_a_gate_the_last_status_counts() -> None:
    view = Gates()
    for phase in ("waiting", "trial"):
        status = GateStatus(name="p", phase=phase, text=f"{phase} now")
        view.apply(GateEvent(payload=status))
    assert [(name, gate.phase) for name, gate in view.current.items()] == [("p", "trial")]
