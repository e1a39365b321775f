"""Requests go to model servers and nowhere else, whatever an endpoint or a name server says."""

import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from infra.gateway.models.egress import EndpointRefusedError, GuardedResolver, check_address


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://10.0.0.5/v1",
        "https://api.openai.com/v1",
        "http://[::1]:8000/v1",
        "http://vllm.models.svc.cluster.local/v1",
    ],
)
def test_model_servers_may_be_called(url: str) -> None:
    check_address(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://169.254.169.254/latest/meta-data", "link-local"),
        ("http://[fe80::1%25eth0]/v1", "link-local"),
        ("http://[::ffff:169.254.169.254]/v1", "link-local"),
        ("http://224.0.0.1/v1", "multicast"),
        ("http://0.0.0.0/v1", "unspecified"),
        ("http://2852039166/v1", "notation"),
        ("http://0xA9FEA9FE/v1", "notation"),
        ("http://metadata.google.internal/v1", "metadata"),
        ("http://METADATA.google.internal./v1", "metadata"),
        ("file:///etc/passwd", "must begin with http"),
        ("gopher://x/", "must begin with http"),
        ("http:///v1", "name a host"),
        ("http://user:secret@host/v1", "credentials"),
        ("http://host/v1?key=x", "query"),
        ("http://host:port/v1", "no URL"),
        ("http://[::1/v1", "no URL"),
    ],
)
def test_what_is_no_model_server_is_refused_with_why(url: str, says: str) -> None:
    with pytest.raises(EndpointRefusedError, match=says) as error:
        check_address(url)
    assert "secret" not in str(error.value)


class Lying(AbstractResolver):
    """Resolves every name to the same address."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = {
            "hostname": host,
            "host": self._address,
            "port": port,
            "family": family,
            "proto": 0,
            "flags": 0,
        }
        return [ResolveResult(**found)]  # type: ignore[typeddict-item]

    async def close(self) -> None:
        """Nothing is held."""


async def test_a_name_that_leads_to_the_metadata_service_is_refused_when_it_is_resolved() -> None:
    resolver = GuardedResolver(Lying("169.254.169.254"))
    with pytest.raises(OSError, match="link-local"):
        await resolver.resolve("innocent.example", 80)
    await resolver.close()


async def test_a_name_that_leads_to_a_model_server_is_resolved() -> None:
    resolver = GuardedResolver(Lying("10.0.0.5"))
    (found,) = await resolver.resolve("model.example", 80)
    assert found["host"] == "10.0.0.5"
    own = GuardedResolver()
    assert await own.resolve("localhost", 80)
    await own.close()
