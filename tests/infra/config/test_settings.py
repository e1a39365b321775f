"""Every setting is known, sourced_settings, and refused in one line when it cannot be."""

import os
from pathlib import Path

import pytest

from infra.config.settings import Settings, load_settings
from infra.config.sources import sourced_settings
from infra.installation.judges import configured_grader
from infra.runtime.errors import ConfigError


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = tmp_path / "everloop.toml"
    path.write_text(text)
    monkeypatch.setenv("EVERLOOP_CONFIG", str(path))


def test_the_file_is_read_over_defaults_and_the_environment_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
    [gateway]
    port = 9000
    upstream_timeout_s = 5
    [models.supervisor_llm]
    base_url = "http://127.0.0.1:11434/v1"
    model = "qwen3"
    """
    written(tmp_path, monkeypatch, text)
    monkeypatch.setenv("EVERLOOP_GATEWAY__PORT", "9001")
    settings = load_settings()
    assert settings.gateway.port == 9001
    assert settings.gateway.upstream_timeout_s == 5
    assert settings.gateway.host == "127.0.0.1"
    assert settings.models["supervisor_llm"].model == "qwen3"
    rows = sourced_settings(settings)
    assert rows["gateway.port"] == (9001, "environment")
    assert rows["gateway.upstream_timeout_s"] == (5.0, "file")
    assert rows["gateway.host"] == ("127.0.0.1", "default")
    assert rows["models.supervisor_llm.model"] == ("qwen3", "file")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", "prot"),
        ("[gateway]\nprot = 1", "gateway.prot"),
        ("[gateway]\nport = 99999", "gateway.port"),
        ("[gateway]\nport = 'high'", "gateway.port"),
        ("log = 'postgres://x'", "must begin with sqlite:/// or kafka://"),
        ("[models.x]\nmodel = 'm'", "models.x.base_url"),
        ("[models.x]\nbase_url = 'app://y/v1'\nmodel = 'm'", "names apps.y, and there is none"),
        ("[apps.gateway]\napp = 'a:b'", "apps.gateway has the name of a process"),
        ("[judge]\nmodel = 'x'", "there is no models.x"),
        ("[pipeline]\nagent = 'a:b'\ncommand = ['c']", "an agent and a command"),
        ("[gate]\nconfidence = 2", "gate.confidence"),
        ("[bandit]\nfeature_bits = 'many'", "bandit"),
        ("gateway = [", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    written(tmp_path, monkeypatch, text)
    with pytest.raises(ConfigError) as refusal:
        load_settings()
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "Value error" not in str(refusal.value)  # words of pydantic's, not of ours
    assert "body" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("EVERLOOP_PROT", "1", "EVERLOOP_PROT names no setting"),
        ("EVERLOOP_GATEWAY__PROT", "1", "EVERLOOP_GATEWAY__PROT names no setting"),
        ("EVERLOOP_GATEWAY__PORT", "high", "gateway.port"),
        ("EVERLOOP_MODELS", "{", "models"),
        ("EVERLOOP_CONFIG", "/nowhere.toml", "/nowhere.toml, which is not a file"),
    ],
)
def test_an_environment_that_cannot_be_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refusal:
        load_settings()
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_log_elsewhere_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().log_path.name == "log.db"
    monkeypatch.setenv("EVERLOOP_LOG", "sqlite:////var/lib/everloop/events.db")
    assert load_settings().log_path == Path("/var/lib/everloop/events.db")
    monkeypatch.setenv("EVERLOOP_LOG", "kafka://127.0.0.1:9092")
    assert load_settings().log_kind == "kafka"


def test_what_an_earlier_file_says_counts_and_the_rest_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("""
    [models.supervisor_llm]
    base_url = "http://127.0.0.1:11434/v1"
    model = "qwen3"
    """)
    monkeypatch.setenv("EVERLOOP_CONFIG", f"{mine}{os.pathsep}research_society")
    settings = load_settings()
    assert settings.models["supervisor_llm"].model == "qwen3"
    assert "supervisor_llm" not in settings.app_models
    assert "junior_researcher_llm" in settings.app_models
    assert settings.policies == ("supervisor-policy",)
    assert sourced_settings(settings)["models.review_board_llm.model"] == (
        "society-simulator",
        "file",
    )


def test_a_plain_installation_has_nothing_that_nobody_configured() -> None:
    settings = Settings()
    assert (settings.models, settings.apps, settings.policies, settings.baselines) == (
        {},
        {},
        (),
        (),
    )
    assert (settings.adapter.sft, settings.adapter.rl, settings.pipeline.phases) == ({}, {}, ())
    assert configured_grader(settings) is None
