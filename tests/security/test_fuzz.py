"""A few seconds of what `make storm` does for as long as it is told."""

import socket
from collections.abc import Iterator

import pytest

from tests.support.attacks import Attack
from tests.support.fuzz import Fuzzed, Fuzzer, fuzzed_servers


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    with fuzzed_servers(tmp_path_factory.mktemp("fuzzed")) as servers:
        yield servers
        for server in (servers.free, servers.guarded):
            server.terminate()
            assert server.wait() == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_comes_the_servers_serve_on(fuzzed: Fuzzed, seed: int, attack: Attack) -> None:
    fuzzer = Fuzzer(fuzzed, seed)
    fuzzer.run(3.0)
    assert not fuzzer.failures, fuzzer.failures[0]
    assert set(fuzzer.cases) == {
        "call", "damaged call", "call with a token", "frames", "noise", "HTTP", "damaged HTTP", "noise for HTTP",
    }  # fmt: skip
    assert {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED", "HTTP 200"} <= set(fuzzer.came_back)
    came_back = "statuses; no crash, no hang, no trace but gRPC's own"
    attack("gRPC port", "made-up messages and tokens, damaged bytes, frames and noise", came_back)
    attack("metrics port", "made-up and damaged requests, and noise", came_back)


def test_servers_beside_get_the_same_noise(fuzzed: Fuzzed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        fuzzer = Fuzzer(fuzzed, 3, *(f"127.0.0.1:{beside.getsockname()[1]}" for beside in (one, other)))
        for _ in range(20):
            fuzzer._noise()
            heard = [_heard(beside) for beside in (one, other)]
            assert heard[0] == heard[1]


def _heard(listener: socket.socket) -> bytes:
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        return stream.read()
