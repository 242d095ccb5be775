"""Several server processes on one port."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recurra.v1 import sessions_pb2

from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, tensor

WORKERS = 3
COUNTER = {"model": "counter", "version": "1"}


@pytest.fixture(scope="module")
def workers(repository: Path) -> Iterator[ServerProcess]:
    with running_server(repository, "--workers", str(WORKERS), "--log-format", "json") as server:
        yield server


def test_each_connection_has_its_worker_and_metrics_are_of_all(workers: ServerProcess) -> None:
    connections = [Stubs(workers.target) for _ in range(24)]
    before = workers.metrics().get("recurra_steps_total", **COUNTER, outcome="ok") or 0
    streams = [begin(stubs) for stubs in connections]
    for turn in (2, 3):
        for stream in streams:
            assert stream.ask(inputs=[tensor([1])]).result.step == turn
    listed = [stubs.sessions.ListSessions(sessions_pb2.ListSessionsRequest()).total for stubs in connections]
    assert len({count for count in listed if count}) >= 1
    assert all(0 < count < len(streams) for count in listed), "the kernel has not given all to one"
    samples = workers.metrics()
    assert samples.get("recurra_workers") == WORKERS
    assert samples.get("recurra_steps_total", **COUNTER, outcome="ok") == before + 3 * len(streams)
    assert samples.get("recurra_step_seconds_count", **COUNTER) == before + 3 * len(streams)
    assert samples.get("recurra_sessions", **COUNTER) == len(streams)
    assert samples.get("recurra_draining") == 0
    for stream in streams:
        stream.ask(close=True)
        stream.end()


def test_a_worker_that_dies_is_started_anew_and_its_counts_are_kept(workers: ServerProcess) -> None:
    begin(Stubs(workers.target)).end()
    before = workers.metrics()
    victim = children(workers.pid)[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(children(workers.pid)) == WORKERS and victim not in children(workers.pid), workers)
    until(lambda: workers.metrics().get("recurra_workers") == WORKERS, workers)
    after = workers.metrics()
    for name in ("recurra_steps_total", "recurra_step_seconds_count"):
        labels = {**COUNTER, "outcome": "ok"} if name.endswith("total") else COUNTER
        assert (after.get(name, **labels) or 0) >= (before.get(name, **labels) or 1)
    assert "worker_died" in workers.output
    assert all(begin(Stubs(workers.target)).end() == [] for _ in range(8)), "all of them serve"


def test_all_workers_drain_and_end(repository: Path) -> None:
    with running_server(repository, "--workers", "2") as server:
        streams = [begin(Stubs(server.target)) for _ in range(8)]
        members = children(server.pid)
        server.terminate()
        for stream in streams:
            assert stream.read().HasField("moving")
            assert stream.ask(inputs=[tensor([1])]).result.step == 2
            stream.end()
        assert server.wait() == 0
    assert not [pid for pid in members if Path(f"/proc/{pid}").exists()]


def test_workers_do_not_outlive_the_one_that_keeps_them(repository: Path) -> None:
    with running_server(repository, "--workers", "2", "--drain-seconds", "0") as server:
        members = children(server.pid)
        server.kill()
        until(lambda: not [pid for pid in members if alive(pid)], server)


@pytest.mark.parametrize("what", ["port", "models"])
def test_why_the_workers_cannot_start_is_said_in_one_line(repository: Path, tmp_path: Path, what: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1]) if what == "port" else "0"
        folder = repository if what == "port" else tmp_path
        recurra = Path(sys.executable).with_name("recurra")
        command = [str(recurra), "serve", "--models", str(folder), "--port", port, "--metrics-port", "0"]
        run = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert re.fullmatch(r"recurra: .*(choose --port|choose --models)\n", run.stderr), run.stderr


def test_metrics_can_be_left_out(repository: Path) -> None:
    with running_server(repository, "--no-metrics", ready="gRPC on ") as server:
        assert begin(Stubs(server.target)).end() == []
        assert "metrics on" not in server.output
        assert listening(server.pid) == [int(server.target.rpartition(":")[2])]


def begin(stubs: Stubs) -> Stream:
    """A stream with a session that has had one step."""
    stream = Stream(stubs)
    first = stream.ask(open=sessions_pb2.OpenSessionRequest(model="counter"), inputs=[tensor([1])])
    assert first.result.step == 1
    return stream


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(happened: Callable[[], bool], server: ServerProcess) -> None:
    """Ask again and again; each question takes a call to the server, or reads what the system tells."""
    for _ in range(100_000):
        if happened():
            return
    raise AssertionError(f"it did not happen:\n{server.output}")


def listening(pid: int) -> list[int]:
    """The TCP ports on which a process listens."""
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    tables = [Path(f"/proc/{pid}/net/{table}").read_text() for table in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
