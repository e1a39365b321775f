"""A Kafka cluster: its address, the login, and the names of our topics on it. It has the options of
each client that we use.
"""

import ssl
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True)
class Cluster:
    """How to reach a cluster.

    Attributes:
        bootstrap: `host:port[,host:port]`.
        prefix: put before the name of every topic, group and transaction, so that installations
            share a cluster without meeting. Access lists by prefix keep them apart.
        ca_file: certificates of the authorities that may sign the brokers'; None is the system's.
        cert_file, key_file, key_password: what this client shows for itself, where brokers ask for
            it.
        password: never shown.
    """

    bootstrap: str
    prefix: str = ""
    protocol: SecurityProtocol = "PLAINTEXT"
    mechanism: Mechanism = "PLAIN"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    key_password: str | None = field(default=None, repr=False)

    @property
    def servers(self) -> list[str]:
        """The brokers to ask first."""
        return self.bootstrap.split(",")

    def prefixed(self, name: str) -> str:
        """Return the name of one of our topics, groups or transactions on the cluster."""
        # A prefix, and not a suffix: Kafka's access lists can match prefixes.
        return self.prefix + name

    def ours(self, name: str) -> str:
        """Return our name for a topic of the cluster; inverse of `prefixed`."""
        return name.removeprefix(self.prefix)

    @property
    def login_hint(self) -> str:
        """A hint for connection errors. A broker that refuses a login hangs up without a reason."""
        if self.protocol == "PLAINTEXT":
            return ""
        return (
            f" (or it refuses this login: look at protocol {self.protocol},"
            " user and password, certificates)"
        )

    @cached_property
    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context of connections; None without TLS.

        Raises:
            OSError: a file is missing or is no certificate.
        """
        if not self.protocol.endswith("SSL"):
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file, self.key_password)
        return context

    @property
    def client_options(self) -> dict[str, Any]:
        """Options of the clients of kafka-python and aiokafka, which have the same names there."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.servers,
            "security_protocol": self.protocol,
        }
        if self.ssl_context is not None:
            options["ssl_context"] = self.ssl_context
        if self.protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
            }
        return options
