"""Requests go to model servers and nowhere else, whatever an endpoint or a name server says."""

import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from infra.gateway.http.egress import EndpointRefusedError, GuardedResolver, check_address


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1",
        "http://10.0.0.5/v1",
        "https://api.openai.com/v1",
        "http://[::1]:8000/v1",
        "http://[fd12:3456::7]/v1",
        "http://100.101.102.103/v1",
        "http://8.8.8.8/v1",
        "http://[64:ff9b::808:808]/v1",
        "http://vllm.models.svc.cluster.local/v1",
    ],
)
def test_model_servers_may_be_called(url: str) -> None:
    check_address(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://169.254.169.254/latest/meta-data", "metadata"),
        ("http://[fe80::1%25eth0]/v1", "metadata"),
        ("http://[::ffff:169.254.169.254]/v1", "metadata"),
        ("http://[::ffff:169.254.169.254%25eth0]/v1", "metadata"),
        ("http://[fd00:ec2::254]/latest", "metadata"),
        ("http://[fd00:ec2::254%25eth0]/latest", "metadata"),
        ("http://[fd20:ce::254]/", "metadata"),
        ("http://100.100.100.200/latest", "metadata"),
        ("http://[::ffff:100.100.100.200]/latest", "metadata"),
        ("http://192.0.0.192/opc", "metadata"),
        ("http://168.63.129.16/", "metadata"),
        ("http://[64:ff9b::a9fe:a9fe]/", "metadata"),
        ("http://[2002:a9fe:a9fe::1]/", "metadata"),
        ("http://[64:ff9b:1::a9fe:a9fe]/", "reserved"),
        ("http://[::a9fe:a9fe]/", "reserved"),
        ("http://240.0.0.1/", "reserved"),
        ("http://169\u3002254\u3002169\u3002254/", "not ASCII"),
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
    with pytest.raises(OSError, match="metadata service"):
        await resolver.resolve("innocent.example", 80)
    await resolver.close()


async def test_a_name_that_leads_to_a_model_server_is_resolved() -> None:
    resolver = GuardedResolver(Lying("10.0.0.5"))
    (found,) = await resolver.resolve("model.example", 80)
    assert found["host"] == "10.0.0.5"
    own = GuardedResolver()
    assert await own.resolve("localhost", 80)
    await own.close()
