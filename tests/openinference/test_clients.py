"""Other people's clients, unmodified, against a real server: their answers are the model's."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recurra_server.runtimes.onnx import OnnxRuntime

from benchmarks.peers import perf_analyzer
from benchmarks.venvs import environment
from tests.support.harness import whole
from tests.support.server import ServerProcess, running_server

TRITONCLIENT = "tritonclient[grpc]==2.51.0"
_PROGRAMS = Path(__file__).parent / "clients"


def through(client: str, requirement: str, job: dict[str, Any]) -> dict[str, Any]:
    """Do a job with a client, in an environment that holds nothing but that client."""
    python = environment(requirement.partition("=")[0].partition("[")[0], (requirement,)) / "python"
    command = [str(python), "-I", str(_PROGRAMS / f"{client}_client.py")]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def sequences(*ids: int | str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"id": name, "x": rng.standard_normal((12, 4)).astype(np.float32).tolist()} for name in ids]


def check(answer: dict[str, Any], job: dict[str, Any], runtime: OnnxRuntime) -> None:
    for sequence in job["sequences"]:
        expected = whole(runtime, np.array(sequence["x"], np.float32))
        np.testing.assert_allclose(answer["outputs"][str(sequence["id"])], expected, atol=1e-5)
    assert "sequence_start" in answer["refused"]


@pytest.fixture
def lstm(repository: Path) -> OnnxRuntime:
    return OnnxRuntime(repository / "lstm" / "1" / "model.onnx")


@pytest.mark.e2e
@pytest.mark.parametrize("way", ["unary", "stream", "aio"])
def test_tritonclient(server: ServerProcess, lstm: OnnxRuntime, way: str) -> None:
    job = {"target": server.target, "way": way, "model": "lstm", "sequences": sequences(1, 2**40, "call 7/ä", "uuid-8")}
    check(through("triton", TRITONCLIENT, job), job, lstm)


@pytest.mark.e2e
@pytest.mark.heavy
def test_kserve(server: ServerProcess, lstm: OnnxRuntime) -> None:
    job = {"target": server.target, "model": "lstm", "sequences": sequences("text", 901)}
    check(through("kserve", "kserve==0.21.0", job), job, lstm)


@pytest.mark.e2e
@pytest.mark.heavy
def test_perf_analyzer(repository: Path) -> None:
    with running_server(repository) as server:
        values = perf_analyzer.measure(server.target, server.pid, "lstm", 4, 1.0)
        samples, labels = server.metrics(), {"model": "lstm", "version": "1"}
    assert values["steps_per_second"] > 0
    assert 0 < values["p50"] <= values["p99"]
    assert (samples.get("recurra_sessions_opened_total", **labels) or 0) >= 4
    assert (samples.get("recurra_steps_total", outcome="ok", **labels) or 0) >= 4 * perf_analyzer.SEQUENCE_STEPS
    assert "recurra_errors_total" not in samples.names
