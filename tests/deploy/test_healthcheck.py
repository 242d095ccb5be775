"""The image's health check, as the Dockerfile has it, beside servers that have the same environment."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.promql import ROOT
from tests.support import models
from tests.support.authority import Authority
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, tensor

pytestmark = pytest.mark.e2e


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives servers and health checks variables, and first takes from them what this machine has of its own."""
    for name in os.environ:
        if name.startswith("RECURRA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)

    def give(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return give


@contextmanager
def serving(folder: Path, environment: Callable[..., None]) -> Iterator[ServerProcess]:
    models.publish(folder / "models", "counter", models.counter())
    with running_server(folder / "models") as server:
        environment(RECURRA_METRICS_PORT=re.findall(r":(\d+)/metrics", server.metrics_url)[0])
        yield server


def trouble() -> str:
    """Run the command of the Dockerfile: what it finds wrong; empty where it ends with 0."""
    dockerfile = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    (command,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (.*)", dockerfile, re.MULTILINE)
    ended = subprocess.run(json.loads(command), capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == bool(ended.stderr), ended
    assert ended.stderr.count("\n") <= 1
    return ended.stderr


def test_a_server_is_healthy_until_it_drains(tmp_path: Path, environment: Callable[..., None]) -> None:
    with serving(tmp_path, environment) as server:
        assert trouble() == ""
        stream = Stream(Stubs(server.target))
        stream.ask(open={"model": "counter"}, inputs=[tensor([1])])
        server.terminate()
        while not stream.read().HasField("moving"):
            pass
        assert "it shuts down" in trouble()
        stream.end()
        assert server.wait() == 0
        assert "refused" in trouble()


def test_with_tls_it_needs_no_more_than_the_server(tmp_path: Path, environment: Callable[..., None]) -> None:
    own = Authority(tmp_path / "own")
    environment(RECURRA_TLS_CERT=own.cert, RECURRA_TLS_KEY=own.key)
    with serving(tmp_path, environment):
        assert trouble() == ""


def test_where_clients_need_a_certificate_it_shows_the_servers_or_another(
    tmp_path: Path, environment: Callable[..., None]
) -> None:
    own, clients, stranger = (Authority(tmp_path / name) for name in ("own", "clients", "stranger"))
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(clients.ca.read_bytes() + own.ca.read_bytes())
    environment(RECURRA_TLS_CERT=own.cert, RECURRA_TLS_KEY=own.key, RECURRA_TLS_CLIENT_CA=trusted)
    with serving(tmp_path, environment):
        assert trouble() == ""
        environment(RECURRA_TLS_CLIENT_CERT=clients.cert, RECURRA_TLS_CLIENT_KEY=clients.key)
        assert trouble() == ""
        environment(RECURRA_TLS_CLIENT_CERT=stranger.cert, RECURRA_TLS_CLIENT_KEY=stranger.key)
        assert trouble()
