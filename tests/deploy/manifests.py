"""deploy/kubernetes as Kubernetes reads it, built by its own tool; and what a container finds in its environment."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.promql import ROOT

KUBECTL = Path(sys.executable).with_name("kubectl")
Resources = dict[tuple[str, str], dict[str, Any]]
Secrets = dict[str, dict[str, str]]


def build() -> Resources:
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


def environment(container: Mapping[str, Any], secrets: Secrets) -> dict[str, str]:
    """What a container finds in its environment, where the secrets hold this."""
    found: dict[str, str] = {}
    for variable in container["env"]:
        if "valueFrom" in variable:
            secret = variable["valueFrom"]["secretKeyRef"]
            found[variable["name"]] = secrets[secret["name"]][secret["key"]]
        else:
            found[variable["name"]] = expanded(variable["value"], found)
    return found


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """A value or an argument with the variables that it names."""
    return re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], text)
