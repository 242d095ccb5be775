"""Servers that are protected, and how calls to them fail."""

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from recurra.v1.models_pb2 import ListModelsRequest

from benchmarks.processes import resident_bytes
from tests.support import models
from tests.support.authority import TOKENS, Authority, Issuer, write_access_file
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs, error_info


def refused(call: Callable[[], Any]) -> str:
    """The status and reason of a call that must fail, such as "UNAUTHENTICATED"."""
    return reason_of(failure(call))


def failure(call: Callable[[], Any]) -> Any:
    """The error of a call that must fail."""
    try:
        answer = call()
        if hasattr(answer, "__next__"):
            next(answer)
    except grpc.RpcError as error:
        return error
    pytest.fail("the call succeeded")


def reason_of(error: Any) -> str:
    """The status and reason of a failure."""
    status: str = error.code().name
    try:
        reason = error_info(error).reason
    except KeyError:
        return status
    return status if reason == status else f"{status} {reason}"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository."""
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "counter", models.counter())
    models.publish(root, "echo", models.feed_forward(1, 1, feedback={"output": "y", "input": "x"}))
    return root


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs certificates."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    """Who issues JWTs."""
    return Issuer(tmp_path_factory.mktemp("issuer"))


@pytest.fixture(scope="session")
def access_file(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Path:
    """Who may do what."""
    path = tmp_path_factory.mktemp("access") / "access.yaml"
    write_access_file(path, issuer)
    return path


@pytest.fixture(scope="session")
def guarded(repository: Path, authority: Authority, access_file: Path) -> Iterator[ServerProcess]:
    """A server with TLS that tells callers apart by their tokens."""
    flags = (*authority.flags(), "--access", str(access_file), "--channelz", "--log-level", "debug")
    with running_server(repository, *flags, "--max-message-mb", "1", "--max-chunk-steps", "64") as server:
        yield server


Caller = Callable[[str], Stubs]


@pytest.fixture
def caller(guarded: ServerProcess, authority: Authority) -> Iterator[Caller]:
    """Connections with a token: that of somebody in the access file, or any other; "" for none."""
    opened: list[Stubs] = []

    def connect(token: str) -> Stubs:
        opened.append(Stubs(guarded.target, authority.credentials(), token=TOKENS.get(token, token)))
        return opened[-1]

    yield connect
    for stubs in opened:
        stubs.channel.close()


def ask(stubs: Stubs) -> int:
    """How many models a caller is told of."""
    return len(stubs.models.ListModels(ListModelsRequest(), timeout=20).models)


def ask_with(server: ServerProcess, token: str) -> int:
    """The same, of a caller with a token."""
    stubs = Stubs(server.target, token=token)
    with stubs.channel:
        return ask(stubs)


def outcome(server: ServerProcess, token: str) -> str:
    """How that ends: "ok", or with which status."""
    try:
        ask_with(server, token)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "ok"


def scraped(server: ServerProcess, authority: Authority, header: str) -> int:
    """How a server answers who wants to read its metrics, with this `Authorization` header."""
    request = urllib.request.Request(server.metrics_url, headers={"Authorization": header} if header else {})  # noqa: S310
    context = ssl.create_default_context(cafile=str(authority.ca))
    try:
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:  # noqa: S310
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


# --- a server with small bounds ------------------------------------------------------------

MIB = 1 << 20
BOUNDS = (
    "--max-message-mb", "1", "--max-chunk-steps", "64", "--max-header-kb", "16", "--max-streams-per-connection", "20",
    "--max-sessions-per-stream", "3", "--handshake-timeout", "1", "--keepalive", "1", "--slow-reader-timeout", "1",
    "--max-connections", "60", "--max-tombstones", "1000", "--max-batch-rows", "8",
    "--max-answer-mb", "4",
)  # fmt: skip


@pytest.fixture(scope="session")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with small bounds, and a model with large answers."""
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "counter", models.counter())
    models.publish(root, "echo", models.feed_forward(1, 1, feedback={"output": "y", "input": "x"}))
    models.publish(root, "wide", models.feed_forward(1, 20_000))
    with running_server(root, *BOUNDS) as server:
        yield server


@pytest.fixture
def stubs(bounded: ServerProcess) -> Iterator[Stubs]:
    """A connection to it."""
    stubs = Stubs(bounded.target)
    yield stubs
    stubs.channel.close()


@pytest.fixture
def _serves_on(bounded: ServerProcess) -> Iterator[None]:
    """After each attack it still serves others."""
    yield
    stubs = Stubs(bounded.target)
    with stubs.channel:
        assert stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1


def budget_spent(server: ServerProcess) -> float:
    """Errors that the server has to answer for: those that the error budget counts."""
    samples = server.metrics()
    reasons = ("capacity", "deadline", "internal", "store_unavailable")
    counts = [samples.get("recurra_errors_total", reason=reason, fault="server") for reason in reasons]
    return sum(count for count in counts if count is not None)


def memory(server: ServerProcess) -> int:
    """Resident memory, in bytes."""
    return resident_bytes([server.pid])


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Look again and again, each look being a request."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
    return True
