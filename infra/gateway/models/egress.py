"""Where the gateway may send requests: model servers, never the machine's own metadata service.

Endpoints are registered over the network, so an address is checked when it is registered, when it
is called, and once more when its name has been resolved: a name that pointed elsewhere when it was
checked gains nothing
(https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html).
Redirects are not followed. Private networks and loopback are where model servers live, so they are
allowed.
"""

import socket
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

METADATA_NAMES = frozenset({"metadata.google.internal", "metadata.goog", "instance-data"})


class EndpointRefusedError(ValueError):
    """Requests are not sent there; the message says why."""


@lru_cache(maxsize=1024)
def check_address(base_url: str) -> None:
    """Refuse a base URL that is none, or that leads where no model server is.

    Raises:
        EndpointRefusedError: with what is wrong.
    """
    try:
        parts = urlsplit(base_url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise EndpointRefusedError(f"{base_url!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise EndpointRefusedError(
            f"{base_url!r} must begin with http:// or https:// and name a host"
        )
    if parts.username is not None or parts.password is not None:
        raise EndpointRefusedError(
            f"the endpoint at {host} holds credentials in its URL; use api_key_env"
        )
    if parts.query or parts.fragment:
        raise EndpointRefusedError(
            f"{base_url!r} has a query or a fragment; it must end in the API's base path"
        )
    if host.lower().rstrip(".") in METADATA_NAMES:
        raise EndpointRefusedError(f"{host} is a metadata service, not a model server")
    check_host(host)


def check_host(host: str) -> None:
    """Refuse an IP address that belongs to no model server; names pass, they are looked at when
    resolved.

    Raises:
        EndpointRefusedError: it is link-local (cloud metadata), multicast, unspecified or reserved.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        if host.replace(".", "").isdigit() or host.lower().startswith(
            "0x"
        ):  # inet_aton's other notations
            raise EndpointRefusedError(
                f"{host} is an address in a notation that is not accepted"
            ) from None
        return
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return
    if (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
    ):
        raise EndpointRefusedError(
            f"{host} is link-local, multicast, unspecified or reserved; no model server is there"
        )


class GuardedResolver(AbstractResolver):
    """Resolves names as the system does, and refuses answers that `check_host` refuses."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises:
            OSError: there is none, or one is refused.
        """
        found = await self._resolver.resolve(host, port, family)
        for result in found:
            try:
                check_host(result["host"])
            except EndpointRefusedError as error:
                raise OSError(None, str(error)) from error
        return found

    async def close(self) -> None:
        """Release the resolver."""
        await self._resolver.close()
