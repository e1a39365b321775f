"""Configuration: all settings in one place. Values come from defaults, files, secrets and the
environment.
"""

import os
import tomllib
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from pydantic import (
    BaseModel,
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

from infra.analytics.settings import AnalyticsSettings
from infra.gateway.settings import GatewaySettings, ModelSettings
from infra.judges.settings import JudgeSettings
from infra.kafka.settings import KafkaSettings
from infra.pipeline.settings import PipelineSettings
from infra.runtime.errors import ConfigError
from infra.serving.settings import AppSettings
from infra.training.settings import TrainingSettings
from learners.bandit import BanditConfig
from learners.gate import GateConfig
from learners.settings import LearnerSettings, policy_loader
from schemas.envelope import Name
from schemas.routes import Choice
from schemas.serialization import readable
from streams.processors.adapter import AdapterConfig
from streams.processors.batcher import BatchConfig
from streams.processors.implicit import ImplicitConfig
from streams.processors.trajectories import JoinConfig
from streams.runners.config import WorkerConfig
from streams.storage.kafka.cluster import Cluster

CONFIG_VARIABLE = "EVERLOOP_CONFIG"
SECRETS_VARIABLE = "EVERLOOP_SECRETS_DIR"
"""Names a folder of files, each a setting: `kafka__password` holds the setting `password` of
section `kafka`.
"""

DEFAULT_FILE = Path("everloop.toml")
PREFIX = "EVERLOOP_"
PROCESSES = frozenset({"gateway", "worker", "learner", "trainer", "analytics", "routes"})
"""The processes of an installation; no application of the user's may have one's name."""


class BanditSettings(BanditConfig):
    """The bandit.

    Attributes:
        targets: logical names of the policies it learns.
    """

    targets: tuple[str, ...] = ()

    def learner_config(self) -> BanditConfig:
        """Return the configuration of the learner, without `targets`."""
        return BanditConfig(**{name: getattr(self, name) for name in BanditConfig.model_fields})


class Settings(BaseSettings):
    """All settings. In the environment a section's setting is `EVERLOOP_SECTION__SETTING`.

    Attributes:
        data_dir: folder for everything Everloop writes; relative paths below are relative to it.
        log: `sqlite:///path` (embedded) or `kafka://host:port[,host:port]`. None is `log.db` in the
            data folder.
        learners: tables `[[learners]]`. Each names a class of the user's that learns policies. The
            bandit does not learn these.
        choices: logical model name to a policy and its options. The policy chooses the option that
            answers a call. It is learned like those of `bandit.targets`.
        models: logical model name to its OpenAI-compatible endpoint. While there is none, a
            stand-in answers every name.
        baselines: policies that nothing learns: every candidate always has the same probability.
        apps: servers of the user's own, by name. They run beside Everloop's processes.
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
    baselines: tuple[Name, ...] = ()
    apps: dict[Name, AppSettings] = {}
    gateway: GatewaySettings = GatewaySettings()
    judge: JudgeSettings = JudgeSettings()
    implicit: ImplicitConfig = ImplicitConfig()
    kafka: KafkaSettings = KafkaSettings()
    worker: WorkerConfig = WorkerConfig()
    analytics: AnalyticsSettings = AnalyticsSettings()
    bandit: BanditSettings = BanditSettings()
    learners: tuple[LearnerSettings, ...] = ()
    batches: BatchConfig = BatchConfig()
    gate: GateConfig = GateConfig()
    join: JoinConfig = JoinConfig()
    training: TrainingSettings = TrainingSettings()
    pipeline: PipelineSettings = PipelineSettings()
    adapter: AdapterConfig = AdapterConfig()

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
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
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
        # One source for each file: sources are merged deeply, the files of one source are not.
        sources += [TomlConfigSettingsSource(settings_cls, file) for file in config_files()]
        return tuple(sources)

    @model_validator(mode="after")
    def _check_apps(self) -> Self:
        for name, model in self.models.items():
            app = model.app
            if app is not None and app not in self.apps:
                raise ValueError(f"models.{name}.base_url names apps.{app}, and there is none")
        if taken := sorted(set(self.apps) & PROCESSES):
            raise ValueError(
                f"apps.{taken[0]} has the name of a process of Everloop's; choose another name"
            )
        return self

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        model = self.judge.model
        if model is not None and model not in self.models and model not in self.choices:
            raise ValueError(f"judge.model is {model!r}, and there is no models.{model}")
        return self

    @model_validator(mode="after")
    def _check_reader(self) -> Self:
        reader = self.implicit.model
        if self.implicit.enabled and reader is not None and reader not in self.models:
            raise ValueError(f"implicit.model is {reader!r}, and there is no models.{reader}")
        return self

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        for name, choice in self.choices.items():
            if name in self.models:
                raise ValueError(f"{name} is a model and a choice; give one of them another name")
            used = [option.model for option in choice.options]
            if missing := [model for model in used if model not in self.models]:
                raise ValueError(
                    f"choices.{name} leads to {', '.join(missing)}, and there is no such model"
                )
        return self

    @property
    def policies(self) -> tuple[str, ...]:
        """Logical names of the policies that are learned."""
        return (*self.bandit_policies, *(name for own in self.learners for name in own.learned))

    @property
    def app_models(self) -> list[str]:
        """Logical models that an application of `apps` serves."""
        return sorted(name for name, model in self.models.items() if model.app is not None)

    @property
    def bandit_policies(self) -> tuple[str, ...]:
        """Logical names of the policies that the bandit learns: those of no other learner."""
        chosen = [choice.policy for choice in self.choices.values()]
        # A name has one learner: what `[[learners]]` names, the bandit leaves alone.
        others = {name for own in self.learners for name in own.learned}
        names = dict.fromkeys([*self.bandit.targets, *chosen])
        return tuple(name for name in names if name not in others)

    @model_validator(mode="after")
    def _check_learners(self) -> Self:
        names = [name for own in self.learners for name in own.learned]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} has two [[learners]]; a policy can have one")
        policy_loader(self.learners)
        return self

    @model_validator(mode="after")
    def _check_log(self) -> Self:
        if self.log is not None and self.log_kind not in ("sqlite", "kafka"):
            raise ValueError(f"log is {self.log!r}; it must begin with sqlite:/// or kafka://")
        return self

    @property
    def log_kind(self) -> str:
        """`sqlite` or `kafka`."""
        return "sqlite" if self.log is None else self.log.partition("://")[0]

    @property
    def cluster(self) -> Cluster:
        """The cluster of the Kafka log."""
        return self.kafka.cluster(str(self.log).removeprefix("kafka://"))

    @property
    def log_path(self) -> Path:
        """The file of the embedded log."""
        if self.log is None:
            return self.data_dir / "log.db"
        return Path(self.log.removeprefix("sqlite:///"))

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead another process to this installation, wherever it starts."""
        return {
            f"{PREFIX}DATA_DIR": str(self.data_dir.absolute()),
            f"{PREFIX}LOG": self.log or f"sqlite:///{self.log_path.absolute()}",
        }

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
        return self.analytics.location(self.data_dir)


def config_files() -> list[Path]:
    """Return the configuration files. If two set the same thing, the earlier file counts.

    `EVERLOOP_CONFIG` names them, separated as in `PATH`; each is a file, or a package that has an
    `everloop.toml`. Without it, `everloop.toml` in the working directory is read if it is there.

    Raises:
        ConfigError: a named file is not there.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return [_find_file(name) for name in named.split(os.pathsep) if name]
    return [DEFAULT_FILE] if DEFAULT_FILE.is_file() else []


def _find_file(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    if name.isidentifier() and find_spec(name) is not None:
        packaged = Path(str(resources.files(name).joinpath(DEFAULT_FILE.name)))
        if packaged.is_file():
            return packaged
    raise ConfigError(
        f"{CONFIG_VARIABLE} names {name}, which is not a file, nor a package with an"
        f" {DEFAULT_FILE.name}"
    )


def _file_names() -> str:
    return ", ".join(str(file) for file in config_files())


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
            f"configuration ({_file_names() or 'environment'}): {readable(error, '')}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_file_names()} is not TOML: {error}") from error
    except ValueError as error:
        raise ConfigError(f"configuration: {error}") from error


def _check_environment() -> None:
    """Refuse EVERLOOP_ variables that name no setting. pydantic-settings would ignore them."""
    # A misspelt variable would do nothing, and nobody would notice.
    for name in os.environ:
        if name.startswith(PREFIX) and not is_known(name):
            raise ConfigError(
                f"environment variable {name} names no setting; see `everloop config`"
            )


def is_known(variable: str) -> bool:
    """Return whether an environment variable names a setting, or is read by Everloop otherwise."""
    if variable in (
        CONFIG_VARIABLE,
        SECRETS_VARIABLE,
        "EVERLOOP_GATEWAY_URL",  # of a pipeline's agent
        "EVERLOOP_ROLLOUT_ID",
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
