"""A few seconds of what `make storm` does for as long as it is told."""

import socket
from pathlib import Path

import pytest

from tests.support.attacks import Attack
from tests.support.fuzz import Fuzzer, fuzzed_server


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_comes_the_server_serves_on(tmp_path: Path, seed: int, attack: Attack) -> None:
    with fuzzed_server(tmp_path) as server:
        fuzzer = Fuzzer(server, seed)
        fuzzer.run(3.0)
        assert not fuzzer.failures, fuzzer.failures[0]
        assert set(fuzzer.cases) == {"call", "damaged call", "frames", "noise"}
        assert fuzzer.came_back["OK"]
        assert fuzzer.came_back["INVALID_ARGUMENT"]
        server.terminate()
        assert server.wait() == 0
    attack("gRPC port", "made-up messages, damaged bytes, frames and noise", "statuses; no crash, no hang, no trace")


def test_servers_beside_get_the_same_noise(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
        fuzzed_server(tmp_path) as server,
    ):
        fuzzer = Fuzzer(server, 3, *(f"127.0.0.1:{beside.getsockname()[1]}" for beside in (one, other)))
        for _ in range(20):
            fuzzer._noise()
            heard = [_heard(beside) for beside in (one, other)]
            assert heard[0] == heard[1]


def _heard(listener: socket.socket) -> bytes:
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        return stream.read()
