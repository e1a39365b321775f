"""What operators change by hand: API keys and routes, each with a line in the audit trail."""

import getpass
import socket
from collections.abc import Callable, Iterable
from datetime import datetime

from pydantic import BaseModel

from infra.control.keys import new_key
from schemas.audit import Audit, AuditEvent
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.envelope import AnyEvent
from schemas.keys import ApiKey, KeyEvent, Scope
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.topics import AUDIT, CHECKPOINTS, KEYS, ROUTES, Topic
from streams.storage.log import Log
from streams.storage.records import NewRecord, Outgoing
from streams.views.checkpoints import folded_checkpoints
from streams.views.events import events_on
from streams.views.routes import RouteHistory, newest_routes, served_versions


class OperatingError(Exception):
    """What was asked for cannot be done; the message says why."""


def local_actor() -> str:
    """Return who works at the command line."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def keys_on(log: Log) -> dict[str, ApiKey]:
    """Return all keys by id, revoked ones too."""
    return {event.payload.id: event.payload for event in events_on(log, KEYS)}


def routes_on(log: Log) -> dict[str, Route]:
    """Return what is served by logical name."""
    return newest_routes(events_on(log, ROUTES))


def checkpoints_on(log: Log, name: str) -> dict[str, Checkpoint]:
    """Return the checkpoints of a logical name by version, each with its last state and with its
    artifact.
    """
    found = folded_checkpoints(events_on(log, CHECKPOINTS))
    return {version: checkpoint for (of, version), checkpoint in found.items() if of == name}


def create_key(
    log: Log,
    actor: str,
    tenant: str,
    scopes: Iterable[Scope],
    label: str = "",
    expires: datetime | None = None,
    **limits: float | None,
) -> tuple[str, ApiKey]:
    """Write a new key; return it, to be shown once, with what is kept of it.

    Args:
        limits: `requests_per_minute`, `tokens_per_minute`, `budget`.
    """
    secret, key_id, digest = new_key()
    key = ApiKey.model_validate(
        {
            "id": key_id,
            "sha256": digest,
            "tenant": tenant,
            "scopes": list(scopes),
            "label": label,
            "expires": expires,
            **limits,
        }
    )
    log.append(
        [
            _record(KEYS, key.id, KeyEvent(payload=key)),
            _audit(actor, "keys.create", key.id, "", None, _shown(key)),
        ]
    )
    return secret, key


def revoke_key(log: Log, actor: str, key_id: str, reason: str) -> ApiKey:
    """Refuse a key from now on.

    Raises:
        OperatingError: there is no such key.
    """
    key = keys_on(log).get(key_id)
    if key is None:
        raise OperatingError(f"there is no key {key_id!r}; see `everloop keys list`")
    revoked = key.model_copy(update={"revoked": True})
    log.append(
        [
            _record(KEYS, key_id, KeyEvent(payload=revoked)),
            _audit(actor, "keys.revoke", key_id, reason, _shown(key), _shown(revoked)),
        ]
    )
    return revoked


def change_route(
    log: Log,
    actor: str,
    action: str,
    name: str,
    reason: str,
    change: Callable[[Route | None], tuple[Route, list[Checkpoint]]],
) -> Route:
    """Write what a change makes of a route, with the checkpoints whose state changes with it.

    Raises:
        OperatingError: the change cannot be made.
    """
    before = routes_on(log).get(name)
    after, checkpoints = change(before)
    records = [_record(CHECKPOINTS, c.name, CheckpointEvent(payload=c)) for c in checkpoints]
    records.append(
        _record(ROUTES, name, RouteEvent(payload=after.model_copy(update={"reason": reason})))
    )
    records.append(_audit(actor, f"routes.{action}", name, reason, before, after))
    log.append(records)
    return after


def promote(log: Log, actor: str, name: str, version: str, reason: str) -> Route:
    """Serve a checkpoint to all new rollouts, whatever the gate says, and hold it there.

    Raises:
        OperatingError: there is no such checkpoint, or it has come to an end.
    """

    def change(before: Route | None) -> tuple[Route, list[Checkpoint]]:
        known = checkpoints_on(log, name)
        checkpoint = known.get(version)
        changes: list[Checkpoint] = []
        if checkpoint is not None:
            changes = _promoted(known, checkpoint, reason)
        target = _target(before, version, checkpoint)
        return _route(before, name, [target], held=True), changes

    return change_route(log, actor, "promote", name, reason, change)


def roll_back(log: Log, actor: str, name: str, reason: str) -> Route:
    """Serve what was served before the newest route again, and hold it there.

    Raises:
        OperatingError: nothing else was served before.
    """
    history = RouteHistory(name)
    for event in events_on(log, ROUTES, AUDIT):
        history.apply(event)
    if not history.steps:
        raise OperatingError(f"there is no route {name!r}; see `everloop routes list`")
    now = served_versions(history.steps[-1])
    if len(history.steps) == 1:
        raise OperatingError(
            f"nothing but {', '.join(now)} was ever served as {name}, as far as the log still says"
        )
    back = history.steps[-2]

    def change(_: Route | None) -> tuple[Route, list[Checkpoint]]:
        known = checkpoints_on(log, name)
        left = [
            c
            for v in now
            if (c := known.get(v)) is not None
            and c.state in (CheckpointState.PROMOTED, CheckpointState.CANARY)
        ]
        return (
            back.model_copy(update={"held": True}),
            [_moved(c, CheckpointState.ROLLED_BACK, reason) for c in left],
        )

    return change_route(log, actor, "rollback", name, reason, change)


def canary(log: Log, actor: str, name: str, version: str, share: float, reason: str) -> Route:
    """Serve a checkpoint to a share of new rollouts, in (0, 1), beside what is served now.

    Raises:
        OperatingError: there is no such route or checkpoint.
    """

    def change(before: Route | None) -> tuple[Route, list[Checkpoint]]:
        if before is None:
            raise OperatingError(
                f"there is no route {name!r} to try {version} beside; see `everloop routes list`"
            )
        stable = [target for target in before.targets if target.version != version]
        total = sum(target.weight for target in stable)
        if total <= 0:
            raise OperatingError(f"{name} serves nothing but {version}")
        scaled = [t.model_copy(update={"weight": t.weight / total * (1 - share)}) for t in stable]
        checkpoint = checkpoints_on(log, name).get(version)
        tried = _target(before, version, checkpoint).model_copy(update={"weight": share})
        changes = (
            [_moved(checkpoint, CheckpointState.CANARY, reason)]
            if checkpoint and checkpoint.state is CheckpointState.EVALUATED
            else []
        )
        return _route(before, name, [*scaled, tried], held=True), changes

    return change_route(log, actor, "canary", name, reason, change)


def drain(log: Log, actor: str, name: str, version: str, reason: str) -> Route:
    """Give a version no new rollouts; those pinned to it go on to their end.

    Raises:
        OperatingError: it is not served, or nothing else is.
    """

    def change(before: Route | None) -> tuple[Route, list[Checkpoint]]:
        if before is None or version not in served_versions(before):
            raise OperatingError(f"{name} does not serve {version!r}; see `everloop routes list`")
        targets = [
            t.model_copy(update={"weight": 0.0}) if t.version == version else t
            for t in before.targets
        ]
        if sum(target.weight for target in targets) <= 0:
            raise OperatingError(f"{name} would serve nothing; promote another version first")
        return _route(before, name, targets, held=before.held), []

    return change_route(log, actor, "drain", name, reason, change)


def release(log: Log, actor: str, name: str, reason: str) -> Route:
    """Let the gate decide again what is served.

    Raises:
        OperatingError: there is no such route.
    """

    def change(before: Route | None) -> tuple[Route, list[Checkpoint]]:
        if before is None:
            raise OperatingError(f"there is no route {name!r}; see `everloop routes list`")
        return before.model_copy(update={"held": False}), []

    return change_route(log, actor, "release", name, reason, change)


def set_route(log: Log, actor: str, route: Route, reason: str) -> Route:
    """Serve exactly this, and hold it there."""
    return change_route(
        log,
        actor,
        "set",
        route.name,
        reason,
        lambda _: (route.model_copy(update={"held": True}), []),
    )


def _promoted(
    known: dict[str, Checkpoint], checkpoint: Checkpoint, reason: str
) -> list[Checkpoint]:
    """Return the changes that make a checkpoint the promoted one."""
    ended = {CheckpointState.REJECTED, CheckpointState.ROLLED_BACK, CheckpointState.RETIRED}
    if checkpoint.state in ended:
        raise OperatingError(
            f"{checkpoint.name} {checkpoint.version} is {checkpoint.state}; use `everloop"
            " routes set`"
        )
    if checkpoint.state is CheckpointState.PROMOTED:
        return []
    changes = [
        _moved(other, CheckpointState.RETIRED, f"replaced by {checkpoint.version}")
        for other in known.values()
        if other.state is CheckpointState.PROMOTED
    ]
    if checkpoint.state is CheckpointState.CANDIDATE:
        changes.append(_moved(checkpoint, CheckpointState.EVALUATED, reason))
    return [*changes, _moved(checkpoint, CheckpointState.PROMOTED, reason)]


def _target(before: Route | None, version: str, checkpoint: Checkpoint | None) -> RouteTarget:
    """Return how a version is served: as it is served already, by its artifact, or where its
    checkpoint says.
    """
    served = [
        *(before.targets if before else ()),
        *(before.shadows if before else ()),
        *(before.fallbacks if before else ()),
    ]
    for target in served:
        if target.version == version:
            return RouteTarget.model_validate(target.model_dump() | {"weight": 1.0})
    artifact = (
        checkpoint.artifact if checkpoint is not None and checkpoint.kind == "policy" else None
    )
    if checkpoint is None or (artifact is None and checkpoint.endpoint is None):
        raise OperatingError(
            f"there is no checkpoint {version!r} that could be served; see `everloop"
            " checkpoints list`"
        )
    return RouteTarget(version=version, artifact=artifact, endpoint=checkpoint.endpoint)


def _route(before: Route | None, name: str, targets: list[RouteTarget], held: bool) -> Route:
    if before is None:
        return Route(name=name, kind="policy", targets=targets, held=held)
    return before.model_copy(update={"targets": targets, "held": held})


def _moved(checkpoint: Checkpoint, state: CheckpointState, reason: str) -> Checkpoint:
    return checkpoint.model_copy(update={"state": state, "reason": reason, "metrics": {}})


def _shown(key: ApiKey) -> BaseModel:
    return key.model_copy(update={"sha256": "0" * 64})


def _record(topic: Topic, key: str, event: AnyEvent) -> NewRecord:
    return Outgoing.of(topic, key, event).record()


def _audit(
    actor: str,
    action: str,
    subject: str,
    reason: str,
    before: BaseModel | None,
    after: BaseModel | None,
) -> NewRecord:
    payload = Audit(
        actor=actor,
        action=action,
        subject=subject,
        reason=reason,
        before=before.model_dump(mode="json") if before else None,
        after=after.model_dump(mode="json") if after else None,
    )
    return _record(AUDIT, subject, AuditEvent(payload=payload))
