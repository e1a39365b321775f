"""Settings of a Kafka cluster: how to log in to it."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import FilePath, SecretStr, StringConstraints, model_validator

from infra.runtime.section import Section
from streams.storage.kafka.cluster import Cluster, Mechanism, SecurityProtocol


class KafkaSettings(Section):
    """How to log in to the Kafka cluster that `log` names.

    Attributes:
        topic_prefix: put before every topic, group and transactional id, for installations that
            share a cluster.
        protocol: `SSL` and `SASL_SSL` are encrypted.
        mechanism: how user and password are shown, with SASL.
        ca_file: certificates of the authorities that may sign the brokers'; None is the system's.
        cert_file, key_file, key_password: this client's own certificate, where brokers ask for one.
    """

    topic_prefix: Annotated[
        str, StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,60}[._-])?$")
    ] = ""
    protocol: SecurityProtocol = "PLAINTEXT"
    mechanism: Mechanism = "PLAIN"
    username: str | None = None
    password: SecretStr | None = None
    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    key_password: SecretStr | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.protocol.startswith("SASL") and (self.username is None or self.password is None):
            raise ValueError(f"{self.protocol} needs username and password")
        # A certificate without its key would fail only at the first connection.
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("set both cert_file and key_file, or neither")
        return self

    def cluster(self, bootstrap: str) -> Cluster:
        """Return the cluster of these servers (`host:port[,host:port]`), with this login."""
        return Cluster(
            bootstrap=bootstrap,
            prefix=self.topic_prefix,
            protocol=self.protocol,
            mechanism=self.mechanism,
            username=self.username,
            password=_plain_text(self.password),
            ca_file=_path(self.ca_file),
            cert_file=_path(self.cert_file),
            key_file=_path(self.key_file),
            key_password=_plain_text(self.key_password),
        )


def _plain_text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)
