"""The loop on a cluster that asks for TLS, a password and permissions, shared by two
installations.
"""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)
from pydantic import SecretStr

from infra.config.settings import Settings
from infra.installation.processors import learning_processors, stream_processors
from infra.kafka.local import HOST, Broker
from infra.kafka.settings import KafkaSettings
from schemas.topics import ROLLOUTS
from streams.runners.lag import wait_until_drained
from streams.runners.replay import live_state
from streams.storage.errors import LogUnavailableError
from streams.storage.kafka.log import KafkaLog
from tests.e2e.installation import Part, everloop
from tests.e2e.test_on_kafka import feed
from tests.kafka import local_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

PASSWORDS = {"acme": "correct-horse-acme", "globex": "battery-staple-globex"}
ROLLOUTS_FED = 20
LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


@dataclass(frozen=True)
class Secured:
    """A cluster that lets `acme` and `globex` in, each to what its prefix names.

    Attributes:
        log: address of the listener with TLS and passwords.
    """

    log: str
    ca_file: Path

    def settings(self, tenant: str, data_dir: Path) -> Settings:
        kafka = KafkaSettings(
            topic_prefix=f"{tenant}.",
            protocol="SASL_SSL",
            username=tenant,
            password=SecretStr(PASSWORDS[tenant]),
            ca_file=self.ca_file,
        )
        return Settings(data_dir=data_dir, log=self.log, kafka=kafka)

    def environment(self, tenant: str, secrets: Path) -> dict[str, str]:
        secrets.mkdir(exist_ok=True)
        (secrets / "kafka__password").write_text(PASSWORDS[tenant])
        return {
            "EVERLOOP_LOG": self.log,
            "EVERLOOP_SECRETS_DIR": str(secrets),
            "EVERLOOP_KAFKA__TOPIC_PREFIX": f"{tenant}.",
            "EVERLOOP_KAFKA__PROTOCOL": "SASL_SSL",
            "EVERLOOP_KAFKA__USERNAME": tenant,
            "EVERLOOP_KAFKA__CA_FILE": str(self.ca_file),
        }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "broker.pem").write_bytes(certificate(authority))
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port = listener.getsockname()[1]

    def properties(broker: Broker) -> Mapping[str, object]:
        users = " ".join(f'user_{name}="{password}"' for name, password in PASSWORDS.items())
        return {
            "listeners": f"PLAINTEXT://{HOST}:{broker.port},CONTROLLER://{HOST}:{broker.controller_port},"
            f"SASL_SSL://{HOST}:{port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{broker.port},SASL_SSL://{HOST}:{port}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,"
            "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": folder / "broker.pem",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{LOGIN} {users};",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }

    with local_cluster(folder / "kafka", more=properties) as cluster:
        with KafkaAdminClient(bootstrap_servers=cluster.bootstrap.split(",")) as admin:
            admin.create_acls([acl for tenant in PASSWORDS for acl in permissions(tenant)])
        yield Secured(f"kafka://{HOST}:{port}", folder / "ca.pem")


def certificate(authority: trustme.CA) -> bytes:
    """Return a broker's key, in the one form that Java reads, and its certificates."""
    issued = authority.issue_cert(HOST)
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + chain


def permissions(tenant: str) -> list[ACL]:
    """Return what an installation needs: everything under its own prefix (docs/kafka.md)."""
    return [
        ACL(
            f"User:{tenant}",
            "*",
            ACLOperation.ALL,
            ACLPermissionType.ALLOW,
            ResourcePattern(kind, f"{tenant}.", ACLResourcePatternType.PREFIXED),
        )
        for kind in (ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID)
    ]


def test_two_installations_learn_apart_and_no_secret_is_written(
    secured: Secured, tmp_path: Path
) -> None:
    folders = {tenant: tmp_path / tenant for tenant in PASSWORDS}
    for tenant, folder in folders.items():
        folder.mkdir()
        environment = secured.environment(tenant, tmp_path / f"secrets-{tenant}")
        settings = secured.settings(tenant, folder)
        applied = everloop(folder, "topics", "apply", more=environment)
        assert applied.returncode == 0, applied.stderr
        (learning,) = learning_processors(settings)
        processors = [*stream_processors(settings), learning]
        with (
            KafkaLog(settings.cluster) as log,
            Part("worker", folder, environment),
            Part("learner", folder, environment),
        ):
            random = Random(3)
            for number in range(ROLLOUTS_FED):
                feed(log, number, random)
            wait_until_drained(log, processors, 120)
            learned = live_state(log, learning)
            assert learned is not None
            assert learned.state.examples == ROLLOUTS_FED
        shown = everloop(folder, "config", more=environment)
        assert "secret" in shown.stdout
        written = shown.stdout + shown.stderr + applied.stdout + applied.stderr
        written += "".join(
            path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()
        )
        assert PASSWORDS[tenant] not in written


def test_one_installation_may_not_read_anothers_topics(secured: Secured, tmp_path: Path) -> None:
    trespasser = replace(secured.settings("globex", tmp_path).cluster, prefix="acme.")
    with KafkaLog(trespasser, timeout_s=5) as log, pytest.raises(LogUnavailableError):
        log.ends(ROLLOUTS.name)


def test_a_wrong_password_is_said_in_one_line_without_it(secured: Secured, tmp_path: Path) -> None:
    environment = secured.environment("acme", tmp_path / "secrets")
    (tmp_path / "secrets" / "kafka__password").write_text("wrong-and-secret")
    done = everloop(tmp_path, "topics", "plan", more=environment)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "wrong-and-secret" not in done.stderr + done.stdout


def test_a_password_that_is_missing_is_a_wrong_configuration(tmp_path: Path) -> None:
    done = everloop(tmp_path, "config", more={"EVERLOOP_KAFKA__PROTOCOL": "SASL_SSL"})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "needs username and password" in done.stderr
