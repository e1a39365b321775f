"""Who is calling: API keys with scopes and tenants, known by their hashes alone."""

from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import Annotated

from fastapi import Depends, Request

from infra.control.keys import KEY_PREFIX
from infra.gateway.http.problems import ProblemError
from schemas.clock import now
from schemas.envelope import DEFAULT_TENANT
from schemas.keys import ApiKey, Scope
from streams.views.keys import Keys

_NO_HASH = "0" * 64


@dataclass(frozen=True)
class Caller:
    """Who is calling.

    Attributes:
        key: the key that the caller showed; None for a caller who needs none and showed none.
    """

    tenant: str = DEFAULT_TENANT
    scopes: frozenset[Scope] = frozenset(Scope)
    key: ApiKey | None = None

    @property
    def key_id(self) -> str | None:
        """The key's public part."""
        return self.key.id if self.key is not None else None

    def may(self, scope: Scope) -> bool:
        """Return whether the caller has a scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


ANONYMOUS = Caller()
"""A caller without a key, on a gateway that needs none: the default tenant, with every scope."""


class KeyRing:
    """Finds the caller of a request by its API key.

    Args:
        required: whether a call without a key is refused.
        keys: the keys; a follower keeps them up to date.
    """

    def __init__(self, required: bool, keys: Keys) -> None:
        self.required = required
        self._keys = keys

    def caller(self, credential: str | None) -> Caller:
        """Return the caller who shows this credential.

        Many clients cannot send a request without some key. If keys are not required, a credential
        that is not one of ours counts as none.

        Raises:
            ProblemError: 401, it is missing, unknown, expired or revoked.
        """
        if credential is None or not credential.startswith(KEY_PREFIX):
            if self.required:
                what = "no API key" if credential is None else "not an API key of this gateway"
                raise _unauthorized(
                    f"{what}; send one as `Authorization: Bearer {KEY_PREFIX}…` or `x-api-key`"
                )
            return ANONYMOUS
        key = self._keys.all.get(credential[len(KEY_PREFIX) :].partition("_")[0])
        # The log holds hashes only, so a key that is shown is hashed and compared.
        shown = sha256(credential.encode("utf-8", "surrogateescape")).hexdigest()
        # An unknown id is compared as well, so that it takes as long as a wrong secret.
        if not compare_digest(shown, key.sha256 if key is not None else _NO_HASH) or key is None:
            raise _unauthorized("the API key is not known here")
        if key.revoked:
            raise _unauthorized(f"the API key {key.id} was revoked")
        if key.expires is not None and key.expires <= now():
            raise _unauthorized(f"the API key {key.id} expired on {key.expires.isoformat()}")
        return Caller(key.tenant, frozenset(key.scopes), key)


def credential_of(request: Request) -> str | None:
    """Return the credential a request shows, as bearer token or as `x-api-key`."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.headers.get("x-api-key") or None


def caller_with(request: Request, scope: Scope) -> Caller:
    """Return who is calling.

    Raises:
        ProblemError: 401, no valid key; 403, the key lacks the scope.
    """
    ring: KeyRing = request.app.state.services.keys
    caller = ring.caller(credential_of(request))
    if not caller.may(scope):
        has = ", ".join(sorted(caller.scopes))
        raise ProblemError(
            403,
            "Not allowed",
            f"the API key {caller.key_id} has the scopes {has}; this needs {scope}",
        )
    return caller


async def _agent(request: Request) -> Caller:
    return caller_with(request, Scope.AGENT)


async def _feedback(request: Request) -> Caller:
    return caller_with(request, Scope.FEEDBACK)


async def _admin(request: Request) -> Caller:
    return caller_with(request, Scope.ADMIN)


Agent = Annotated[Caller, Depends(_agent)]
Feedback = Annotated[Caller, Depends(_feedback)]
Admin = Annotated[Caller, Depends(_admin)]


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, "Not authorized", detail, {"www-authenticate": "Bearer"})
