"""deploy/kubernetes: what Kubernetes would be given, by its own tool and schemas."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from recurra_server.settings import Settings

from tests.deploy.image import would_start
from tests.deploy.promql import ROOT

KUBECTL = Path(sys.executable).with_name("kubectl")
OLDEST = "1.34"  # from which on preStop may sleep, whatever is switched on


@pytest.fixture(scope="module")
def resources() -> dict[tuple[str, str], dict[str, Any]]:
    """All resources, by kind and name; the hash that ends a ConfigMap's name is left out."""
    command = [str(KUBECTL), "kustomize", str(ROOT / "deploy" / "kubernetes")]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        (
            one["kind"],
            one["metadata"]["name"].split("-")[0] if one["kind"] == "ConfigMap" else one["metadata"]["name"],
        ): one
        for one in yaml.safe_load_all(built)
    }


Resources = dict[tuple[str, str], dict[str, Any]]


def test_they_are_what_kubernetes_knows(resources: Resources) -> None:
    unknown = set()
    for (kind, _), resource in resources.items():
        try:
            kubernetes_validate.validate(resource, OLDEST, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(kind)
    assert unknown == {"ServiceMonitor", "PodMonitor"}  # the Prometheus operator's own


def test_pods_have_no_rights(resources: Resources) -> None:
    for pod in pods(resources):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "of the service recurra a server would get a RECURRA_PORT"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert container["resources"]["limits"].keys() == {"memory"}
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


def test_a_server_has_time_to_drain(resources: Resources) -> None:
    pod = resources["Deployment", "recurra-servers"]["spec"]["template"]["spec"]
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before + Settings().drain_seconds + 10


def test_what_is_named_is_there(resources: Resources) -> None:
    """Selectors find pods, ports have names, volumes and targets exist."""
    templates = [
        one["spec"]["template"] for (kind, _), one in resources.items() if kind in ("Deployment", "StatefulSet")
    ]

    def found(labels: dict[str, str]) -> dict[str, Any]:
        (template,) = [one for one in templates if labels.items() <= one["metadata"]["labels"].items()]
        spec: dict[str, Any] = template["spec"]
        return spec

    def ports(pod: dict[str, Any]) -> set[object]:
        return {port[key] for container in pod["containers"] for port in container["ports"] for key in port}

    for (kind, _), one in resources.items():
        spec = one.get("spec", {})
        if kind == "Service":
            assert {port.get("targetPort", port["port"]) for port in spec["ports"]} <= ports(found(spec["selector"]))
        elif kind == "PodDisruptionBudget":
            found(spec["selector"]["matchLabels"])
        elif kind == "PodMonitor":
            assert {end["port"] for end in spec["podMetricsEndpoints"]} <= ports(found(spec["selector"]["matchLabels"]))
        elif kind == "ServiceMonitor":
            (service,) = [
                other
                for (its, _), other in resources.items()
                if its == "Service"
                and spec["selector"]["matchLabels"].items() <= other["metadata"].get("labels", {}).items()
            ]
            assert {end["port"] for end in spec["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
        elif kind == "HorizontalPodAutoscaler":
            assert (spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]) in resources
            assert spec["metrics"][0]["pods"]["metric"]["name"] in (ROOT / "docs" / "metrics.md").read_text()
    for template in templates:
        for volume in template["spec"].get("volumes", ()):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in resources
            if configuration := volume.get("configMap"):
                assert configuration["name"] == resources["ConfigMap", "envoy"]["metadata"]["name"]


def test_envoy_is_given_the_configuration_that_is_tested_and_finds_the_servers(resources: Resources) -> None:
    text = (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text()
    assert resources["ConfigMap", "envoy"]["data"] == {"envoy.yaml": text}
    headless = resources["Service", "recurra-servers"]["spec"]
    assert headless["clusterIP"] == "None"
    assert "address: recurra-servers, port_value: 50051 " in text
    environment = resources["Deployment", "recurra-servers"]["spec"]["template"]["spec"]["containers"][0]["env"]
    (store,) = [variable["value"] for variable in environment if variable["name"] == "RECURRA_STORE"]
    assert store == "valkey://recurra-valkey:6379"
    assert ("Service", "recurra-valkey") in resources


def pods(resources: Resources) -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in resources.values() if "template" in one.get("spec", {})]


def test_a_server_starts_with_what_it_is_told(resources: Resources, tmp_path: Path) -> None:
    (server,) = resources["Deployment", "recurra-servers"]["spec"]["template"]["spec"]["containers"]
    assert would_start({entry["name"]: entry["value"] for entry in server["env"]}, tmp_path)
