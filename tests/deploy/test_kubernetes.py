"""deploy/kubernetes: what Kubernetes would be given, by its own tool and schemas."""

from typing import Any

import kubernetes_validate
from recurra_server.checkpoint_writer import LAP_SECONDS
from recurra_server.settings import Settings

from tests.deploy.manifests import Resources
from tests.deploy.promql import ROOT
from tests.support.attacks import Attack

OLDEST = "1.34"  # from which on preStop may sleep, whatever is switched on


def test_they_are_what_kubernetes_knows(resources: Resources) -> None:
    unknown = set()
    for (kind, _), resource in resources.items():
        try:
            kubernetes_validate.validate(resource, OLDEST, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(kind)
    assert unknown == {"ServiceMonitor", "PodMonitor"}  # the Prometheus operator's own


def test_pods_have_no_rights(resources: Resources, attack: Attack) -> None:
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
    attack("image", "on Kubernetes, more rights, root, or writing to the container's disk", "none of them is given")


def test_a_server_has_time_to_drain(resources: Resources) -> None:
    pod = resources["Deployment", "recurra-servers"]["spec"]["template"]["spec"]
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    last_checkpoints = LAP_SECONDS + 1 + LAP_SECONDS  # calls are ended between the two
    assert pod["terminationGracePeriodSeconds"] >= before + Settings().drain_seconds + last_checkpoints + 3


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
        elif kind == "NetworkPolicy":
            opened = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
            assert opened <= ports(found(spec["podSelector"]["matchLabels"]))
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


def test_only_those_connect_to_a_pod_whom_it_serves(resources: Resources, attack: Attack) -> None:
    prometheus = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    }

    def named(name: str) -> dict[str, Any]:
        return {"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}}

    policies = {}
    for (kind, _), one in resources.items():
        if kind == "NetworkPolicy":
            assert one["spec"]["policyTypes"] == ["Ingress"]
            allowed = {port["port"]: rule.get("from") for rule in one["spec"]["ingress"] for port in rule["ports"]}
            policies[one["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"]] = allowed
    assert policies == {
        "recurra-servers": {"grpc": [named("recurra-envoy")], "metrics": [prometheus]},
        "recurra-envoy": {"tls": None, "watchers": [prometheus]},  # whoever speaks TLS
        "recurra-valkey": {"valkey": [named("recurra-servers")]},
    }
    (service,) = [one for (kind, _), one in resources.items() if kind == "Service" and "type" in one["spec"]]
    assert service["spec"]["ports"] == [{"name": "tls", "port": 443, "targetPort": "tls"}]
    attack("store", "connecting on Kubernetes from pods that are no servers", "not allowed by the NetworkPolicies")
    attack("gRPC port", "passing Envoy by on Kubernetes", "not allowed by the NetworkPolicies")


def pods(resources: Resources) -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in resources.values() if "template" in one.get("spec", {})]
