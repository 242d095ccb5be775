"""What docs/raw-stubs.md says is what happens."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from recurra.v1.inference_pb2 import StepRequest
from recurra.v1.sessions_pb2 import CloseSessionRequest, OpenSessionRequest

from tests.client.conftest import SENSORS
from tests.support import models
from tests.support.raw_stubs import CODE, DOCUMENT, EXAMPLE, Refused, SteppedOnce
from tests.support.server import ServerProcess
from tests.support.wire import Stubs, array_of, tensor


def test_the_example_runs(server: ServerProcess) -> None:
    code = re.sub(r"\b6\b", str(len(SENSORS)), EXAMPLE.replace("localhost:50051", server.target))
    run = subprocess.run([sys.executable, "-c", CODE + code], capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert [line.split()[0] for line in run.stdout.splitlines()] == ["1", "2", "3"]


class BreaksOnce(SteppedOnce):  # type: ignore[misc]
    """Its first answer is lost, and a proxy says so as proxies do."""

    broken = False

    def send(self, request: StepRequest) -> Any:
        result = super().send(request)
        if not self.broken:
            self.broken = True
            raise Refused(grpc.StatusCode.UNKNOWN, message="Stream removed")
        return result


class RefusedAtLast(SteppedOnce):  # type: ignore[misc]
    """Of its first message, the first attempt has no answer, and the second is refused."""

    attempts = 0
    applied_at_first = True

    def send(self, request: StepRequest) -> Any:
        self.attempts += 1
        if self.attempts == 1:
            if self.applied_at_first:
                super().send(request)
            raise Refused(grpc.StatusCode.UNAVAILABLE, message="Socket closed")
        if self.attempts == 2:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "CAPACITY", message="no room")
        return super().send(request)


@contextmanager
def session_of(server: ServerProcess, way: Any) -> Iterator[Any]:
    """A session of the counter, closed at the end."""
    with grpc.insecure_channel(server.target) as channel:
        session = way(channel, "counter")
        yield session
        session.sessions.CloseSession(CloseSessionRequest(session_id=session.id))


def test_a_status_without_a_reason_is_no_answer(server: ServerProcess) -> None:
    with session_of(server, BreaksOnce) as session:
        assert session.step([tensor([1])]).replayed
        assert array_of(session.step([tensor([10])]).outputs[0]).item() == 11


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "not applied"])
def test_what_refuses_a_second_attempt_says_nothing_of_the_first(server: ServerProcess, applied: bool) -> None:
    with session_of(server, RefusedAtLast) as session:
        session.applied_at_first = applied
        with pytest.raises(Refused, match="CAPACITY"):
            session.step([tensor([1])])
        assert session.applied == applied
        result = session.step([tensor([10])])
        assert (array_of(result.outputs[0]).item(), result.replayed) == (11 if applied else 10, False)


def test_a_session_goes_on_after_a_reply_that_is_not_held(server: ServerProcess) -> None:
    with session_of(server, SteppedOnce) as session:
        for number in (1, 2):
            told(Stubs(server.target), number, session.id)
        with pytest.raises(Refused, match="STEP_NOT_HELD"):
            session.step([tensor([1])])
        assert session.step([tensor([10])]).step == 3


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


def told(stubs: Stubs, number: int, session_id: str = "s") -> str:
    """What becomes of a step, as the page says it."""
    request = StepRequest(session_id=session_id, step=number, inputs=[tensor([number])])
    try:
        result = stubs.inference.Step(request, timeout=30).result
    except grpc.RpcError as error:
        refused = Refused.of(error)
        return f"`{refused.reason}`, expected step {refused.facts['expected_step']}"
    assert array_of(result.outputs[0]).item() == np.arange(1, number + 1).sum()
    if result.replayed:
        return f"step {result.step} again, replayed"
    return f"step {result.step}, durable step {result.durable_step}"
