"""Changes of routes by hand: promote, roll back, canary, drain, release, set."""

from collections.abc import Callable

from infra.control.audit import ControlError, audit_record
from learners.policies import UNIFORM_VERSION
from schemas.checkpoints import TRANSITIONS, Checkpoint, CheckpointEvent, CheckpointState
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.topics import CHECKPOINTS, ROUTES
from streams.storage.log import Log
from streams.storage.records import Outgoing
from streams.views.checkpoints import Checkpoints
from streams.views.follower import read_views
from streams.views.routes import Routes

Change = tuple[Route, list[Checkpoint]]
"""The route after a change, and the checkpoints whose state changes with it, in order."""


def routes_on(log: Log) -> dict[str, Route]:
    """Return the present route of each logical name, with its history."""
    routes = Routes()
    read_views(log, routes)
    return routes.current


def checkpoints_on(log: Log, name: str) -> dict[str, Checkpoint]:
    """Return the checkpoints of a logical name by version."""
    checkpoints = Checkpoints()
    read_views(log, checkpoints)
    return checkpoints.of(name)


def change_route(
    log: Log,
    actor: str,
    action: str,
    name: str,
    reason: str,
    change: Callable[[Route | None], Change],
) -> Route:
    """Change a route, with the checkpoints whose state changes with it.

    Args:
        change: from the present route, None where there is none.

    Raises:
        ControlError: the change cannot be made.
    """
    before = routes_on(log).get(name)
    after, checkpoints = change(before)
    # Nothing is watched where a person changed what is served, so there is no control.
    after = after.with_history_after(before).model_copy(update={"reason": reason, "control": None})
    records = [
        Outgoing.of(CHECKPOINTS, checkpoint.name, CheckpointEvent(payload=checkpoint)).record()
        for checkpoint in checkpoints
    ]
    # Checkpoints first: whoever reads the route finds the states that go with it.
    records.append(Outgoing.of(ROUTES, name, RouteEvent(payload=after)).record())
    records.append(audit_record(actor, f"routes.{action}", name, reason, before, after))
    log.append(records)
    return after


def promote(log: Log, actor: str, name: str, version: str, reason: str) -> Route:
    """Serve a version to all new rollouts, whatever the gate says, and hold it there.

    Any version that can be served may be promoted: a checkpoint in any state, the baseline, and
    whatever the route serves or served before.

    Raises:
        ControlError: nothing tells how the version is served.
    """

    def change(before: Route | None) -> Change:
        known = checkpoints_on(log, name)
        target = _target(before, version, known.get(version))
        after = _route(before, name, [target], held=True)
        return after, _states_after(known, after, reason, CheckpointState.RETIRED)

    return change_route(log, actor, "promote", name, reason, change)


def roll_back(log: Log, actor: str, name: str, reason: str) -> Route:
    """Serve again what was served before, and hold it there.

    That is the last entry of the route's history: what served all rollouts before the present
    version, or, during a trial, what serves beside the candidate. Rolling back twice goes back
    further.

    Raises:
        ControlError: there is no route, or nothing else was served before.
    """

    def change(before: Route | None) -> Change:
        if before is None:
            raise ControlError(f"there is no route {name!r}; see `everloop routes list`")
        if not before.history:
            now = ", ".join(sorted(before.served.versions))
            raise ControlError(f"nothing but {now} was ever served as {name}")
        last = before.history[-1]
        after = before.model_copy(
            update={"targets": last.targets, "fallbacks": last.fallbacks, "held": True}
        )
        known = checkpoints_on(log, name)
        return after, _states_after(known, after, reason, CheckpointState.ROLLED_BACK)

    return change_route(log, actor, "rollback", name, reason, change)


def canary(log: Log, actor: str, name: str, version: str, share: float, reason: str) -> Route:
    """Serve a version to a share of new rollouts, in (0, 1), beside the versions that serve now.

    Raises:
        ControlError: there is no such route or version.
    """

    def change(before: Route | None) -> Change:
        if before is None:
            raise ControlError(
                f"there is no route {name!r} to try {version} beside; see `everloop routes list`"
            )
        stable = [target for target in before.targets if target.version != version]
        total = sum(target.weight for target in stable)
        if total <= 0:
            raise ControlError(f"{name} serves nothing but {version}")
        # The others keep their proportions.
        scaled = [t.model_copy(update={"weight": t.weight / total * (1 - share)}) for t in stable]
        checkpoint = checkpoints_on(log, name).get(version)
        tried = _target(before, version, checkpoint).model_copy(update={"weight": share})
        evaluated = checkpoint is not None and checkpoint.state is CheckpointState.EVALUATED
        changes = (
            [_in_state(checkpoint, CheckpointState.CANARY, reason)]
            if checkpoint is not None and evaluated
            else []
        )
        return _route(before, name, [*scaled, tried], held=True), changes

    return change_route(log, actor, "canary", name, reason, change)


def drain(log: Log, actor: str, name: str, version: str, reason: str) -> Route:
    """Give a version no new rollouts. Rollouts that are pinned to it go on to their end.

    Raises:
        ControlError: it is not served, or nothing else is.
    """

    def change(before: Route | None) -> Change:
        if before is None or version not in before.served.versions:
            raise ControlError(f"{name} does not serve {version!r}; see `everloop routes list`")
        # Weight 0, not removed: rollouts that are pinned to it still need its target.
        targets = [
            t.model_copy(update={"weight": 0.0}) if t.version == version else t
            for t in before.targets
        ]
        if sum(target.weight for target in targets) <= 0:
            raise ControlError(f"{name} would serve nothing; promote another version first")
        return _route(before, name, targets, held=before.held), []

    return change_route(log, actor, "drain", name, reason, change)


def release(log: Log, actor: str, name: str, reason: str) -> Route:
    """Let the gate decide again what is served.

    Raises:
        ControlError: there is no such route.
    """

    def change(before: Route | None) -> Change:
        if before is None:
            raise ControlError(f"there is no route {name!r}; see `everloop routes list`")
        return before.model_copy(update={"held": False}), []

    return change_route(log, actor, "release", name, reason, change)


def set_route(log: Log, actor: str, route: Route, reason: str) -> Route:
    """Serve exactly this, and hold it there."""
    # The history of the present route counts, not one that the caller wrote.
    held = route.model_copy(update={"held": True, "history": []})
    return change_route(log, actor, "set", route.name, reason, lambda _: (held, []))


def _states_after(
    known: dict[str, Checkpoint],
    after: Route,
    reason: str,
    leaving: CheckpointState,
) -> list[Checkpoint]:
    """Return the changes of checkpoints that follow from a new route.

    Args:
        leaving: what becomes of a promoted version that is served no more. A candidate on trial is
            rolled back in any case: only a promoted version can retire.
    """
    served = after.served.versions
    replaced = reason or f"replaced by {', '.join(sorted(served))}"
    changes = []
    for version, left in known.items():
        if version in served:
            continue
        if left.state is CheckpointState.PROMOTED:
            changes.append(_in_state(left, leaving, replaced))
        elif left.state is CheckpointState.CANARY:
            changes.append(_in_state(left, CheckpointState.ROLLED_BACK, replaced))
    for version in sorted(served):
        coming = known.get(version)
        if coming is None or coming.state is CheckpointState.PROMOTED:
            continue
        if CheckpointState.PROMOTED not in TRANSITIONS[coming.state]:
            # Whoever promotes a candidate has judged it.
            changes.append(_in_state(coming, CheckpointState.EVALUATED, reason))
        changes.append(_in_state(coming, CheckpointState.PROMOTED, reason))
    return changes


def _target(before: Route | None, version: str, checkpoint: Checkpoint | None) -> RouteTarget:
    """Return the target of a version. Looked for in this order: the route and its history, the
    baseline, the checkpoint's artifact or endpoint.

    Raises:
        ControlError: nothing tells.
    """
    if before is not None:
        # The latest first: a version may have moved to another server.
        earlier = [target for past in reversed(before.history) for target in past.targets]
        for target in (*before.targets, *before.shadows, *before.fallbacks, *earlier):
            if target.version == version:
                return target.model_copy(update={"weight": 1.0})
    is_policy = before is None or before.kind == "policy"
    if version == UNIFORM_VERSION and is_policy:
        return RouteTarget(version=version)
    artifact = (
        checkpoint.artifact if checkpoint is not None and checkpoint.kind == "policy" else None
    )
    if checkpoint is None or (artifact is None and checkpoint.endpoint is None):
        raise ControlError(
            f"there is no checkpoint {version!r} that can be served; see `everloop checkpoints`"
        )
    return RouteTarget(version=version, artifact=artifact, endpoint=checkpoint.endpoint)


def _route(before: Route | None, name: str, targets: list[RouteTarget], held: bool) -> Route:
    if before is None:
        return Route(name=name, kind="policy", targets=targets, held=held)
    return before.model_copy(update={"targets": targets, "held": held})


def _in_state(checkpoint: Checkpoint, state: CheckpointState, reason: str) -> Checkpoint:
    said = {"state": state, "reason": reason, "metrics": {}, "by_hand": True}
    return checkpoint.model_copy(update=said)
