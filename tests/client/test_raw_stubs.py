"""What docs/raw-stubs.md says is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from recurra.v1.inference_pb2 import StepRequest
from recurra.v1.sessions_pb2 import OpenSessionRequest

from tests.client.conftest import SENSORS
from tests.support import models
from tests.support.raw_stubs import CODE, DOCUMENT, EXAMPLE, Refused
from tests.support.server import ServerProcess
from tests.support.wire import Stubs, array_of, tensor


def test_the_example_runs(server: ServerProcess) -> None:
    code = re.sub(r"\b6\b", str(len(SENSORS)), EXAMPLE.replace("localhost:50051", server.target))
    run = subprocess.run([sys.executable, "-c", CODE + code], capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert [line.split()[0] for line in run.stdout.splitlines()] == ["1", "2", "3"]


@pytest.mark.e2e
def test_the_sequence_of_calls_is_what_two_servers_answer(tmp_path: Path) -> None:
    """Row by row of the page's table."""
    table = DOCUMENT.split("## The sequence of calls")[1].split("##")[0]
    rows = re.findall(r"^\| (.*?) \| (.*?) ?\| (.*?) ?\|$", table, re.MULTILINE)[1:]
    models.publish(tmp_path / "models", "counter", models.counter())
    options = ("--store", f"embedded:{tmp_path / 'v'}", "--checkpoint-interval", "60")
    servers = {name: ServerProcess(tmp_path / "models", *options) for name in "AB"}
    try:
        stubs = {name: Stubs(server.target) for name, server in servers.items()}
        for call, server, answer in rows:
            if call == "A dies":
                servers["A"].kill()
            elif call == "`OpenSession`":
                stubs[server].sessions.OpenSession(OpenSessionRequest(model="counter", session_id="s"))
            else:
                assert told(stubs[server], int(call.removeprefix("`Step` "))) == answer
        assert len(rows) == 9
    finally:
        for process in servers.values():
            process.stop()


def told(stubs: Stubs, number: int) -> str:
    """What becomes of a step, as the page says it."""
    request = StepRequest(session_id="s", step=number, inputs=[tensor([number])])
    try:
        result = stubs.inference.Step(request, timeout=30).result
    except grpc.RpcError as error:
        refused = Refused.of(error)
        return f"`{refused.reason}`, expected step {refused.facts['expected_step']}"
    assert array_of(result.outputs[0]).item() == np.arange(1, number + 1).sum()
    if result.replayed:
        return f"step {result.step} again, replayed"
    return f"step {result.step}, durable step {result.durable_step}"
