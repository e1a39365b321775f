"""The Kubernetes manifests are valid, name processes and settings that exist, and run without
privileges.
"""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from infra.config.settings import load_settings
from infra.processes.entry import NAMES

FOLDER = Path(__file__).parents[3] / "infra" / "k8s"
KUBERNETES = "1.33"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    found
    for name in (*KUSTOMIZATION["resources"], "secret.example.yaml")
    for found in yaml.safe_load_all((FOLDER / name).read_text())
]
PODS = {
    found["metadata"]["name"]: found["spec"]["template"]["spec"]
    for found in OBJECTS
    if "template" in found.get("spec", {})
}
CONTAINERS = [
    (pod, container)
    for pod, spec in PODS.items()
    for container in [*spec["containers"], *spec.get("initContainers", [])]
]


def named(kind: str, name: str) -> dict[str, Any]:
    return next(
        found for found in OBJECTS if (found["kind"], found["metadata"]["name"]) == (kind, name)
    )


@pytest.mark.parametrize(
    "manifest", OBJECTS, ids=lambda found: f"{found['kind']}-{found['metadata']['name']}"
)
def test_every_manifest_is_what_kubernetes_takes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_kustomization_names_every_manifest() -> None:
    there = {path.name for path in FOLDER.glob("*.yaml")} - {
        "kustomization.yaml",
        "secret.example.yaml",
    }
    assert set(KUSTOMIZATION["resources"]) == there


def test_every_process_runs() -> None:
    ours = {container["args"][0] for _, container in CONTAINERS if "command" not in container}
    assert ours == set(NAMES)


@pytest.mark.parametrize(
    ("pod", "container"), CONTAINERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_container_has_a_privilege(pod: str, container: dict[str, Any]) -> None:
    context = container["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert PODS[pod]["securityContext"]["runAsNonRoot"]
    assert {"requests", "limits"} <= container["resources"].keys()


def test_the_settings_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "/etc/everloop/secrets": named("Secret", "everloop")["stringData"],
        "/etc/everloop/config": named("ConfigMap", "everloop-toml")["data"],
        "/etc/everloop/ca": named("Secret", "everloop-kafka-ca")["stringData"],
    }
    for folder, contents in files.items():
        here = tmp_path / folder.lstrip("/")
        here.mkdir(parents=True)
        for name, text in contents.items():
            (here / name).write_text(text)
    environment = dict(named("ConfigMap", "everloop")["data"])
    for _, container in CONTAINERS:
        environment |= {
            variable["name"]: variable["value"] for variable in container.get("env", [])
        }
    for name, value in environment.items():
        monkeypatch.setenv(name, re.sub(r"^/etc/", f"{tmp_path}/etc/", value))
    settings = load_settings()
    assert settings.apps == {}
    assert settings.cluster.password == files["/etc/everloop/secrets"]["kafka__password"]
    assert settings.analytics_dsn == files["/etc/everloop/secrets"]["analytics__dsn"]


def test_what_pods_mount_is_there() -> None:
    for spec in PODS.values():
        for volume in spec["volumes"]:
            if "secret" in volume:
                named("Secret", volume["secret"]["secretName"])
            if "configMap" in volume:
                named("ConfigMap", volume["configMap"]["name"])
            if "persistentVolumeClaim" in volume:
                named("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
