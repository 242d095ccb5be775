"""What runs in the pods of deploy/kubernetes: it starts with what it is told there, and is closed to strangers."""

import base64
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2
from recurra.v1.sessions_pb2 import DrainSessionsRequest, ListSessionsRequest
from recurra_server.engine.ports import StoreError
from recurra_server.stores.valkey import ValkeyStore

from tests.cluster.cluster import make_certificate
from tests.deploy.image import would_start
from tests.deploy.manifests import KUBECTL, Resources, Secrets, environment, expanded
from tests.deploy.promql import ROOT
from tests.support import models
from tests.support.attacks import Attack
from tests.support.server import running_server
from tests.support.valkey import running_valkey
from tests.support.wire import Stubs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of docs/deployment.md have been run that make the secrets, without a cluster."""
    folder = tmp_path_factory.mktemp("secrets")
    make_certificate(folder)
    (script,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL)
    kubectl = f'kubectl() {{ "{KUBECTL}" "$@" --dry-run=client -o yaml; echo ---; }} >> secrets.yaml'
    subprocess.run(["bash", "-ec", f"{kubectl}\n{script}"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def secrets(folder: Path) -> Secrets:
    """What is in them, by their names."""
    made = [one for one in yaml.safe_load_all((folder / "secrets.yaml").read_text()) if one]
    return {
        one["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in one["data"].items()}
        for one in made
    }


def test_all_secrets_are_made_before(resources: Resources, secrets: Secrets) -> None:
    found = [reference for one in resources.values() for reference in references(one)]
    assert {reference.get("secretName") or reference["name"] for reference in found} == secrets.keys()
    assert not [reference for reference in found if "optional" in reference], "a pod without it does not start"
    assert secrets["recurra-tls"].keys() == {"tls.crt", "tls.key"}


def references(part: Any) -> Iterator[dict[str, Any]]:
    """Where a resource, or a part of one, names a secret."""
    if isinstance(part, list):
        for entry in part:
            yield from references(entry)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in ("secret", "secretKeyRef", "credentials"):
                yield value
            else:
                yield from references(value)


def server_of(resources: Resources) -> dict[str, Any]:
    (container,) = resources["Deployment", "recurra-servers"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def access_file(resources: Resources, secrets: Secrets, folder: Path) -> Path:
    """What a server finds where it looks for its access file."""
    server, pod = server_of(resources), resources["Deployment", "recurra-servers"]["spec"]["template"]["spec"]
    path = PurePosixPath(environment(server, secrets)["RECURRA_ACCESS"])
    (mount,) = [one["name"] for one in server["volumeMounts"] if one["mountPath"] == str(path.parent)]
    (volume,) = [one["secret"] for one in pod["volumes"] if one["name"] == mount]
    (folder / path.name).write_text(secrets[volume["secretName"]][path.name])
    return folder / path.name


def test_a_server_starts_with_what_it_is_told(
    resources: Resources, secrets: Secrets, tmp_path: Path, attack: Attack
) -> None:
    told = environment(server_of(resources), secrets)
    told["RECURRA_ACCESS"] = str(access_file(resources, secrets, tmp_path))
    assert would_start(told, tmp_path)
    assert not would_start({**told, "RECURRA_ACCESS": str(tmp_path / "none")}, tmp_path), "closed, if anything"
    attack("access file and keys", "a server on Kubernetes without its access file", "it does not start")


@pytest.mark.e2e
def test_a_server_is_closed_and_lives_on_when_it_was_drained(
    resources: Resources, secrets: Secrets, folder: Path, tmp_path: Path, attack: Attack
) -> None:
    models.publish(tmp_path / "models", "counter", models.counter())
    with running_server(tmp_path / "models", "--access", str(access_file(resources, secrets, tmp_path))) as server:

        def status(path: str, token: str = "") -> int:
            url = server.metrics_url.replace("/metrics", path)
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        (scrape,) = resources["ServiceMonitor", "recurra-servers"]["spec"]["endpoints"]
        credentials = scrape["authorization"]["credentials"]
        assert status("/metrics") == 401
        assert status("/metrics", secrets[credentials["name"]][credentials["key"]]) == 200

        caller, operator = ((folder / f"{name}.token").read_text() for name in ("caller", "operator"))
        for token, outcome in (("", grpc.StatusCode.UNAUTHENTICATED), (caller, grpc.StatusCode.PERMISSION_DENIED)):
            with pytest.raises(grpc.RpcError) as refused:
                Stubs(server.target, token=token).sessions.DrainSessions(DrainSessionsRequest())
            assert refused.value.code() == outcome
        stubs = Stubs(server.target, token=operator)
        assert stubs.sessions.ListSessions(ListSessionsRequest()).total == 0
        stubs.sessions.DrainSessions(DrainSessionsRequest())

        container = server_of(resources)
        health = stubs.health.Check(health_pb2.HealthCheckRequest())
        assert (health.status, "grpc" in container["readinessProbe"]) == (
            health_pb2.HealthCheckResponse.NOT_SERVING,
            True,
        )
        alive = container["livenessProbe"]["httpGet"]
        assert (status(alive["path"]), alive["port"]) == (200, "metrics")
    attack(
        "gRPC port",
        "DrainSessions on Kubernetes without a token, with a caller's token",
        "UNAUTHENTICATED, PERMISSION_DENIED",
    )
    attack("metrics port", "no token, on Kubernetes", "401")


async def test_the_store_is_there_for_those_who_have_its_password(
    resources: Resources, secrets: Secrets, tmp_path: Path, attack: Attack
) -> None:
    (valkey,) = resources["StatefulSet", "recurra-valkey"]["spec"]["template"]["spec"]["containers"]
    variables = environment(valkey, secrets)
    server, *options = [expanded(argument, variables) for argument in valkey["args"]]
    assert server == "valkey-server"
    told = {name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    url = environment(server_of(resources), secrets)["RECURRA_STORE"]
    assert ("Service", "recurra-valkey") in resources
    with running_valkey(tmp_path, told) as process:
        known, stranger = ValkeyStore(url.replace("recurra-valkey:6379", process.target)), ValkeyStore(process.url)
        try:
            assert await known.identity()
            with pytest.raises(StoreError, match="Authentication"):
                await stranger.identity()
        finally:
            await known.close()
            await stranger.close()
    for probe in ("startupProbe", "readinessProbe"):
        assert valkey[probe]["exec"]["command"] == ["valkey-cli", "-e", "ping"]  # which knows VALKEYCLI_AUTH
    attack("store", "connecting on Kubernetes without the password", "refused by the store")
