"""API keys as they are made."""

import secrets
from hashlib import sha256

KEY_PREFIX = "evl_"


def new_key() -> tuple[str, str, str]:
    """Return a new key, its id and its hash. The key is shown once and kept nowhere."""
    key_id = secrets.token_hex(6)
    key = f"{KEY_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    return key, key_id, sha256(key.encode()).hexdigest()
