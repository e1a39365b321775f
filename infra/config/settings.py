"""Configuration: every setting in one place, from defaults, `everloop.toml` and the environment,
with its source.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from infra.gateway.records.redaction import RedactionConfig
from infra.pipeline.settings import PipelineSettings
from infra.runtime.errors import ConfigError
from infra.training.settings import TrainingSettings
from learners.bandit import BanditConfig
from learners.gate import GateConfig
from schemas.endpoints import Endpoint
from schemas.routes import Choice
from schemas.serialization import readable
from streams.processors.adapter import AdapterConfig
from streams.processors.batcher import BatchConfig
from streams.processors.implicit import ImplicitConfig
from streams.processors.trajectories import JoinConfig
from streams.storage.kafka.cluster import Cluster, Mechanism, SecurityProtocol

CONFIG_VARIABLE = "EVERLOOP_CONFIG"
SECRETS_VARIABLE = "EVERLOOP_SECRETS_DIR"
"""Names a folder of files, each a setting: `kafka__password` holds the setting `password` of
section `kafka`.
"""

DEFAULT_FILE = Path("everloop.toml")
PREFIX = "EVERLOOP_"

ROLES: dict[str, str] = {
    "geneticist": "junior_researcher_llm",
    "pharmacologist": "junior_researcher_llm",
    "neurologist": "junior_researcher_llm",
    "supervisor": "supervisor_llm",
    "hypothesis_refiner": "senior_researcher_llm",
    "protocol_designer": "senior_researcher_llm",
    "peer_reviewer": "review_board_llm",
    "safety_officer": "review_board_llm",
    "principal_investigator": "review_board_llm",
}
"""Role of the research society to the logical model it calls."""


class Section(BaseModel):
    """A group of settings; unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class UpstreamSettings(Section):
    """How model servers are asked.

    Attributes:
        connect_timeout_s: longest wait for a connection.
        retries: tries after the first one, on each server.
        backoff_s, most_backoff_s: the wait before try n is random, up to `backoff_s` * 2^n and
            `most_backoff_s` (full jitter,
            https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). A server's
            `retry-after` of up to 10 s counts where it is longer.
        breaker_failures: so many failures in a row, and a server is left alone
        breaker_open_s: for so long; then one call, or a health check, tries it.
        health_interval_s: how often servers that were left alone are looked at.
    """

    connect_timeout_s: float = Field(default=5.0, gt=0)
    retries: int = Field(default=2, ge=0, le=10)
    backoff_s: float = Field(default=0.25, gt=0)
    most_backoff_s: float = Field(default=4.0, gt=0)
    breaker_failures: int = Field(default=5, ge=1)
    breaker_open_s: float = Field(default=10.0, gt=0)
    health_interval_s: float = Field(default=5.0, gt=0)


class GatewaySettings(Section):
    """The gateway.

    Attributes:
        port: 0 takes a free one.
        keys: whether calls need an API key; `auto` asks for one unless `host` is loopback.
        upstream_timeout_s: longest silence of a model server.
        upstream: retries, backoff and circuit breakers.
        max_body_bytes: larger requests are refused.
        body_timeout_s: longest silence while a request is received.
        conversation_idle_s: when calls that name no rollout have ended one.
        tool_calls: what becomes of answers whose tool calls the caller's JSON Schemas do not allow:
            they `pass`, the model is told and asked once more (`repair`; chat completions), or the
            caller gets a 502 (`reject`). Streams pass, since they cannot be taken back. All are
            counted.
        redaction: what is taken out of events before they are written.
        cors_origins: web pages that may call from browsers; none by default.
        export_traces_to: OTLP/HTTP endpoint that gets all spans too, such as
            `http://collector:4318/v1/traces`.
        access_log: whether each request is a line of the log.
        lightning_model: logical model behind Agent Lightning's proxy, where its trainer registered
            none itself.
        train_temperature, val_temperature: what that proxy sets in its two modes.
        lightning_rewards: what its agents give as the worst and the best reward; mapped to 0 and 1.
        spool: where events wait while the log cannot be written.
        spool_max_bytes: when it holds more, events are refused rather than older ones dropped.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65_535)
    keys: Literal["required", "optional", "auto"] = "auto"
    upstream_timeout_s: float = Field(default=120.0, gt=0)
    upstream: UpstreamSettings = UpstreamSettings()
    max_body_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    body_timeout_s: float = Field(default=30.0, gt=0)
    conversation_idle_s: float = Field(default=300.0, gt=0)
    tool_calls: Literal["pass", "repair", "reject"] = "pass"
    redaction: RedactionConfig = RedactionConfig()
    cors_origins: tuple[str, ...] = ()
    export_traces_to: str | None = None
    access_log: bool = False
    lightning_model: str | None = None
    train_temperature: float = Field(default=1.0, ge=0)
    val_temperature: float = Field(default=0.7, ge=0)
    lightning_rewards: tuple[float, float] = (0.0, 1.0)
    spool: Path = Path("spool.db")
    spool_max_bytes: int = Field(default=2**30, gt=0)


class SimulatorSettings(Section):
    """The simulator that plays the research society's models where none is configured."""

    host: str = "127.0.0.1"
    port: int = Field(default=8701, ge=0, le=65_535)


class JudgeSettings(Section):
    """The judge.

    Attributes:
        model: logical model that scores the six criteria; None measures instead (see
            `research_society.rewards`).
        api_key: of the gateway, where it asks for one; needs the scope `agent`.
    """

    model: str | None = None
    api_key: SecretStr | None = None


class BanditSettings(BanditConfig):
    """The bandit.

    Attributes:
        targets: logical names of the policies it learns.
    """

    targets: tuple[str, ...] = ("supervisor-policy",)

    def learner_config(self) -> BanditConfig:
        """Return what the learner itself is configured by."""
        return BanditConfig(**{name: getattr(self, name) for name in BanditConfig.model_fields})


class AnalyticsSettings(Section):
    """ClickHouse, embedded (`chdb:///path`) or a server
    (`clickhouse://user:password@host:8123/database`).

    Attributes:
        dsn: None is the embedded engine in the data folder.
        port: where the process that owns the embedded store answers reports; 0 takes a free one.
    """

    dsn: SecretStr | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8702, ge=0, le=65_535)


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
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self


class ModelSettings(Endpoint):
    """The server behind a logical model.

    Attributes:
        fallbacks: asked in this order where it does not answer.
    """

    model_config = ConfigDict(extra="forbid")

    fallbacks: tuple[Endpoint, ...] = ()

    def endpoint(self) -> Endpoint:
        """Return the server alone."""
        return Endpoint.model_validate(self.model_dump(exclude={"fallbacks"}))


class WorkerSettings(Section):
    """Stream workers.

    Attributes:
        lease_s: how long a dead worker's partitions stay taken; on Kafka at least 6, its own least
            session timeout.
    """

    lease_s: float = Field(default=10.0, gt=0.1)


def _with_other_roles(given: Any) -> Any:
    return ROLES | given if isinstance(given, dict) else given


class Settings(BaseSettings):
    """All settings. In the environment a section's setting is `EVERLOOP_SECTION__SETTING`.

    Attributes:
        data_dir: folder for everything Everloop writes; relative paths below are relative to it.
        log: `sqlite:///path` (embedded) or `kafka://host:port[,host:port]`. None is `log.db` in the
            data folder.
        choices: logical model name to the policy that chooses who answers, and among what; such a
            policy is learned like those of `bandit.targets`.
        models: logical model name to the OpenAI-compatible endpoint behind it. Names that a role
            calls and that are missing here are played by the simulator.
        roles: role of the research society to logical model name; those not named keep their own.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    data_dir: Path = Path(".everloop")
    log: str | None = None
    models: dict[str, ModelSettings] = {}
    choices: dict[str, Choice] = {}
    roles: Annotated[dict[str, str], BeforeValidator(_with_other_roles)] = ROLES
    gateway: GatewaySettings = GatewaySettings()
    simulator: SimulatorSettings = SimulatorSettings()
    judge: JudgeSettings = JudgeSettings()
    implicit: ImplicitConfig = ImplicitConfig()
    kafka: KafkaSettings = KafkaSettings()
    worker: WorkerSettings = WorkerSettings()
    analytics: AnalyticsSettings = AnalyticsSettings()
    bandit: BanditSettings = BanditSettings()
    batches: BatchConfig = BatchConfig()
    gate: GateConfig = GateConfig()
    join: JoinConfig = JoinConfig()
    training: TrainingSettings = TrainingSettings()
    pipeline: PipelineSettings = PipelineSettings()
    adapter: AdapterConfig = AdapterConfig(
        sft={"junior_researcher_llm": frozenset({"geneticist", "pharmacologist", "neurologist"})},
        rl={"senior_researcher_llm": frozenset({"hypothesis_refiner", "protocol_designer"})},
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment over files of secrets over the configuration file over the
        defaults.
        """
        sources = [init_settings, env_settings]
        if (folder := os.environ.get(SECRETS_VARIABLE)) is not None:
            sources.append(
                NestedSecretsSettingsSource(
                    file_secret_settings,
                    secrets_dir=folder,
                    secrets_dir_missing="error",
                    secrets_prefix="",
                    secrets_nested_delimiter="__",
                )
            )
        if (file := config_file()) is not None:
            sources.append(TomlConfigSettingsSource(settings_cls, file))
        return tuple(sources)

    @model_validator(mode="after")
    def _known_roles(self) -> Self:
        if unknown := set(self.roles) - set(ROLES):
            raise ValueError(f"unknown roles {sorted(unknown)}; there are {', '.join(ROLES)}")
        return self

    @model_validator(mode="after")
    def _known_reader(self) -> Self:
        reader = self.implicit.model
        if self.implicit.enabled and reader is not None and reader not in self.models:
            raise ValueError(f"implicit.model is {reader!r}, and there is no models.{reader}")
        return self

    @model_validator(mode="after")
    def _known_options(self) -> Self:
        known = {*self.models, *self.simulated_models}
        for name, choice in self.choices.items():
            if name in self.models:
                raise ValueError(f"{name} is a model and a choice; give one of them another name")
            if missing := [option.model for option in choice.options if option.model not in known]:
                raise ValueError(
                    f"choices.{name} leads to {', '.join(missing)}, and there is no such model"
                )
        return self

    @property
    def policies(self) -> tuple[str, ...]:
        """Logical names of the policies that are learned."""
        chosen = [choice.policy for choice in self.choices.values()]
        return tuple(dict.fromkeys([*self.bandit.targets, *chosen]))

    @model_validator(mode="after")
    def _known_log(self) -> Self:
        if self.log is not None and self.log_kind not in ("sqlite", "kafka"):
            raise ValueError(f"log is {self.log!r}; it must begin with sqlite:/// or kafka://")
        return self

    @property
    def keys_required(self) -> bool:
        """Whether the gateway asks for API keys."""
        if self.gateway.keys == "auto":
            return self.gateway.host not in ("127.0.0.1", "::1", "localhost")
        return self.gateway.keys == "required"

    @property
    def log_kind(self) -> str:
        """`sqlite` or `kafka`."""
        return "sqlite" if self.log is None else self.log.partition("://")[0]

    @property
    def cluster(self) -> Cluster:
        """The cluster of the Kafka log."""
        kafka = self.kafka
        return Cluster(
            bootstrap=str(self.log).removeprefix("kafka://"),
            prefix=kafka.topic_prefix,
            protocol=kafka.protocol,
            mechanism=kafka.mechanism,
            username=kafka.username,
            password=_revealed(kafka.password),
            ca_file=_path(kafka.ca_file),
            cert_file=_path(kafka.cert_file),
            key_file=_path(kafka.key_file),
            key_password=_revealed(kafka.key_password),
        )

    @property
    def log_path(self) -> Path:
        """The file of the embedded log."""
        if self.log is None:
            return self.data_dir / "log.db"
        return Path(self.log.removeprefix("sqlite:///"))

    @property
    def artifacts_dir(self) -> Path:
        """The folder of the artifact store."""
        return self.data_dir / "artifacts"

    @property
    def spool_path(self) -> Path:
        """The file of the gateway's spool."""
        return self.data_dir / self.gateway.spool

    @property
    def analytics_dsn(self) -> str:
        """Where analytics are kept."""
        if self.analytics.dsn is not None:
            return self.analytics.dsn.get_secret_value()
        return f"chdb://{(self.data_dir / 'analytics').absolute()}"

    @property
    def simulated_models(self) -> list[str]:
        """Logical models that some role or the judge calls and that have no endpoint."""
        called = set(self.roles.values()) | ({self.judge.model} if self.judge.model else set())
        return sorted(called - set(self.models) - set(self.choices))


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def config_file() -> Path | None:
    """Return the configuration file: the one named by EVERLOOP_CONFIG, else `everloop.toml` if it
    is there.

    Raises:
        ConfigError: the named file is not there.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise ConfigError(f"{CONFIG_VARIABLE} names {named}, which is not a file")
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def load_settings() -> Settings:
    """Return the settings.

    Raises:
        ConfigError: a setting is unknown or has a value it cannot have.
    """
    _check_environment()
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError(
            f"configuration ({config_file() or 'environment'}): {readable(error)}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{config_file()} is not TOML: {error}") from error
    except ValueError as error:
        raise ConfigError(f"configuration: {error}") from error


def _check_environment() -> None:
    """Refuse EVERLOOP_ variables that name no setting, which pydantic-settings would pass over."""
    for name in os.environ:
        if name.startswith(PREFIX) and not is_known(name):
            raise ConfigError(
                f"environment variable {name} names no setting; see `everloop config`"
            )


def is_known(variable: str) -> bool:
    """Return whether an environment variable names a setting, or is one that Everloop reads."""
    if variable in (
        CONFIG_VARIABLE,
        SECRETS_VARIABLE,
        "EVERLOOP_TEST_KAFKA",
        "EVERLOOP_REQUIRE_KAFKA",
    ):
        return True
    path = variable.removeprefix(PREFIX).lower().split("__")
    field = Settings.model_fields.get(path[0])
    if field is None:
        return False
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and len(path) > 1:
        return path[1] in annotation.model_fields
    return True
