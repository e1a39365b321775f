"""The compose file starts processes that exist, with settings that exist."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.config.settings import load_settings
from infra.pipeline.phases import check_pipeline
from infra.processes.entry import NAMES
from infra.runtime.errors import ConfigError
from learners.training.config import PpoConfig

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {
    name: service
    for name, service in COMPOSE["services"].items()
    if service["image"].startswith("everloop")
}


def filled_in(value: str) -> str:
    """Return a value as compose would fill it in from an empty environment."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def test_every_process_has_a_service_and_no_other_has() -> None:
    assert {
        service["command"][0] for service in OURS.values() if "entrypoint" not in service
    } == set(NAMES)
    assert {"kafka", "clickhouse", "vllm"} <= COMPOSE["services"].keys()
    assert COMPOSE["services"]["vllm"]["profiles"] == ["gpu"]


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_a_service_are_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in OURS[name]["environment"].items():
        monkeypatch.setenv(variable, filled_in(value).replace("/everloop/", f"{ROOT}/"))
    settings = load_settings()
    assert settings.apps == {}
    assert settings.analytics_dsn.startswith("clickhouse://")
    assert settings.cluster.bootstrap == "kafka:9092"


def test_the_gpu_configuration_has_a_judge_and_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_CONFIG", str(ROOT / "infra/docker/everloop.gpu.toml"))
    settings = load_settings()
    assert settings.judge.model == "judge_llm"
    assert settings.apps == {}


def test_the_articles_configuration_trains_what_its_phases_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    article = ROOT / "agents/research_society/article.toml"
    monkeypatch.setenv("EVERLOOP_CONFIG", f"{article}{os.pathsep}research_society")
    settings = load_settings()
    check_pipeline(settings.pipeline, settings.policies, settings.training.models)
    assert settings.app_models == []
    (ppo,) = settings.training.models["senior_researcher_llm"]
    assert isinstance(ppo, PpoConfig)
    assert (ppo.learning_rate, ppo.batch, ppo.epochs, ppo.save_every) == (1e-6, 4, 2, 5)
    assert (ppo.prompt_tokens, ppo.response_tokens) == (4096, 2048)
    assert [phase.method for phase in settings.pipeline.phases] == [None, "sft", "ppo", "bandit"]


def test_a_phase_that_nothing_can_learn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_CONFIG", "research_society")
    settings = load_settings()
    with pytest.raises(
        ConfigError, match=r"say how in \[\[training.models.junior_researcher_llm\]\]"
    ):
        check_pipeline(settings.pipeline, settings.policies, settings.training.models)


def test_ports_are_published_on_loopback_alone() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_the_environment_example_names_is_used() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    names = re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.M)
    assert set(names) == set(re.findall(r"\$\{(\w+):-", text))


def test_the_image_copies_every_folder_of_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]["wheel"]
    copied = re.findall(r"^COPY (\w+) \1$", (ROOT / "infra/docker/Dockerfile").read_text(), re.M)
    assert sorted(copied) == sorted({package.split("/")[0] for package in wheel["packages"]})
