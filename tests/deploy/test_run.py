"""`make run` leaves nothing behind, however it ends. Its training is left out: the model is there already."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.promql import ROOT
from tests.support import models

pytestmark = pytest.mark.e2e

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `make run`'s script in an empty folder with one model."""
    folder = tmp_path / "models" / "watch" / "1"
    folder.mkdir(parents=True)
    onnx.save(models.counter(), folder / "model.onnx")
    started: list[subprocess.Popen[str]] = []

    def start(*, port: int = 0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "run.py")],
            cwd=tmp_path,
            env={**os.environ, "RECURRA_PORT": str(port), "RECURRA_METRICS_PORT": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_drains_the_server_and_the_run_succeeds(start: Start, number: signal.Signals) -> None:
    process = start()
    port = _wait_until_serving(process)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING

    process.send_signal(number)
    _, logs = process.communicate(timeout=30)

    assert process.returncode == 0, logs
    assert "stopped" in logs
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_in_use_is_said_in_one_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start(port=taken.getsockname()[1])
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    said = [line for line in errors.splitlines() if line.startswith("recurra: ")]
    assert len(said) == 1
    assert "in use" in said[0]


def _wait_until_serving(process: subprocess.Popen[str]) -> int:
    """Wait until the script has come to its end, where only the server goes on; returns the server's port."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if "Ctrl-C" in line:
            break
    found = re.search(r"gRPC on \S+:(\d+)", output)
    assert found is not None, output
    return int(found[1])
