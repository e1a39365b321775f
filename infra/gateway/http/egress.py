"""Where the gateway may send requests: model servers, never the machine's own metadata service.

Endpoints are registered over the network. So an address is checked three times: when it is
registered, when it is called, and when its name has been resolved. The last check stops a name
that pointed to another address before
(https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html).
Redirects are not followed. Private networks and loopback are allowed, because model servers live
there.
"""

import socket
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

METADATA_NAMES = frozenset({"metadata.google.internal", "metadata.goog", "instance-data"})


METADATA = tuple(
    ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local: AWS, Azure, Google, Oracle, OpenStack and most others
        "fe80::/10",
        "100.100.100.200/32",  # Alibaba Cloud; in a private range
        "192.0.0.192/32",  # Oracle Cloud, its older address
        "168.63.129.16/32",  # Azure's host ("wire server"); a public address
        "fd00:ec2::/32",  # AWS: metadata, time, DNS, pod identity
        "fd20:ce::254/128",  # Google Cloud
        "fd00:c1::a9fe:a9fe/128",  # Oracle Cloud
        "fd00:42::42/128",  # Scaleway
    )
)
"""Addresses of clouds' metadata services. They give a machine its own credentials."""

PRIVATE = tuple(
    ip_network(network)
    for network in (
        *("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("100.64.0.0/10", "fc00::/7"),  # carriers' networks, as VPNs use them; unique local
    )
)
"""Loopback and private networks, where model servers live."""

NAT64 = ip_network("64:ff9b::/96")
"""IPv4 addresses as an IPv6-only network reaches them (RFC 6052)."""


class EndpointRefusedError(ValueError):
    """The gateway sends no requests to this address. The message says why."""


@lru_cache(maxsize=1024)
def check_address(base_url: str) -> None:
    """Refuse a base URL that is malformed, or whose address can be no model server's.

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
    if not host.isascii():  # the HTTP client would map `169。254` and the like to an address
        raise EndpointRefusedError(
            f"the host {host!r} is not ASCII; write the name in its xn-- form"
        )
    if host.lower().rstrip(".") in METADATA_NAMES:
        raise EndpointRefusedError(f"{host} is a metadata service, not a model server")
    check_host(host)


def check_host(host: str) -> None:
    """Refuse an IP address that can be no model server's. Names are checked when resolved.

    Raises:
        EndpointRefusedError: it is a cloud's metadata service, multicast, or neither public nor of
            `PRIVATE`; or it is written in a notation that is not accepted.
    """
    try:
        address = ip_address(host.partition("%")[0])  # without an IPv6 zone
    except ValueError:
        # `inet_aton` also reads 2130706433, 0x7f000001 and 127.1 as addresses.
        if host.replace(".", "").isdigit() or host.lower().startswith("0x"):
            raise EndpointRefusedError(
                f"{host} is an address in a notation that is not accepted"
            ) from None
        return
    for reached in (address, *_carried_address(address)):
        if any(reached in network for network in METADATA):
            raise EndpointRefusedError(f"{host} is a metadata service, not a model server")
    # Packets to an address that carries another end at the carried one. So that one counts.
    reached = (address, *_carried_address(address))[-1]
    if any(reached in network for network in PRIVATE):
        return
    if reached.is_multicast or reached.is_reserved or not reached.is_global:
        raise EndpointRefusedError(
            f"{host} is link-local, multicast, unspecified or reserved; no model server is there"
        )


def _carried_address(address: IPv4Address | IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 address that packets to an IPv6 address end at, if it carries one."""
    if not isinstance(address, IPv6Address):
        return ()
    carried = address.ipv4_mapped or address.sixtofour
    if carried is None and address in NAT64:
        carried = IPv4Address(int(address) & 0xFFFFFFFF)
    if carried is None and address.teredo is not None:
        carried = address.teredo[1]
    return (carried,) if carried is not None else ()


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
