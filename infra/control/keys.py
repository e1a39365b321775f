"""API keys: create, revoke."""

import secrets
from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256

from pydantic import BaseModel

from infra.control.audit import ControlError, audit_record
from schemas.keys import ApiKey, KeyEvent, Scope
from schemas.topics import KEYS
from streams.storage.log import Log
from streams.storage.records import Outgoing
from streams.views.follower import read_views
from streams.views.keys import Keys

KEY_PREFIX = "evl_"


def new_key() -> tuple[str, str, str]:
    """Return a new key, its id and its hash. The key is shown once and stored nowhere."""
    # The id is part of the key, so the gateway finds an entry without trying every hash.
    key_id = secrets.token_hex(6)
    key = f"{KEY_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    return key, key_id, sha256(key.encode()).hexdigest()


def keys_on(log: Log) -> dict[str, ApiKey]:
    """Return all keys by id, revoked ones too."""
    keys = Keys()
    read_views(log, keys)
    return keys.all


def create_key(
    log: Log,
    actor: str,
    tenant: str,
    scopes: Iterable[Scope],
    label: str = "",
    expires: datetime | None = None,
    **limits: float | None,
) -> tuple[str, ApiKey]:
    """Write a new key; return it, to be shown once, and its entry on the log.

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
            Outgoing.of(KEYS, key.id, KeyEvent(payload=key)).record(),
            # In one append with the key: no key without its entry in the audit.
            audit_record(actor, "keys.create", key.id, "", None, _without_hash(key)),
        ]
    )
    return secret, key


def revoke_key(log: Log, actor: str, key_id: str, reason: str) -> ApiKey:
    """Refuse a key from now on.

    Raises:
        ControlError: there is no such key.
    """
    key = keys_on(log).get(key_id)
    if key is None:
        raise ControlError(f"there is no key {key_id!r}; see `everloop keys list`")
    revoked = key.model_copy(update={"revoked": True})
    before, after = _without_hash(key), _without_hash(revoked)
    log.append(
        [
            Outgoing.of(KEYS, key_id, KeyEvent(payload=revoked)).record(),
            audit_record(actor, "keys.revoke", key_id, reason, before, after),
        ]
    )
    return revoked


def _without_hash(key: ApiKey) -> BaseModel:
    """Return a key as the audit trail may show it."""
    return key.model_copy(update={"sha256": "0" * 64})
