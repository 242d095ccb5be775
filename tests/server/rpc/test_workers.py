"""Several server processes on one port."""

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from recurra.v1 import models_pb2, sessions_pb2
from recurra_client import BlockingClient, ModelNotFoundError, ModelRefusedError, connect

from tests.support import models
from tests.support.raw_stubs import SteppedOnce
from tests.support.server import ServerProcess, alive, children, running_server
from tests.support.wire import Stream, Stubs, array_of, tensor

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
    """Though the one that keeps them can open no file at first, and so start no process."""
    begin(Stubs(workers.target)).end()
    before = workers.metrics()
    victim = children(workers.pid)[0]
    allowed = resource.prlimit(workers.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(workers.pid, resource.RLIMIT_NOFILE, (3, allowed[1]))
    os.kill(victim, signal.SIGKILL)
    until_told("worker_not_started", workers)
    assert all(begin(Stubs(workers.target)).end() == [] for _ in range(8)), "the others serve"
    resource.prlimit(workers.pid, resource.RLIMIT_NOFILE, allowed)
    until(lambda: workers.metrics().get("recurra_workers") == WORKERS, workers)
    assert victim not in children(workers.pid)
    after = workers.metrics()
    for name in ("recurra_steps_total", "recurra_step_seconds_count"):
        labels = {**COUNTER, "outcome": "ok"} if name.endswith("total") else COUNTER
        assert (after.get(name, **labels) or 0) >= (before.get(name, **labels) or 1)
    assert "worker_died" in workers.output
    assert all(begin(Stubs(workers.target)).end() == [] for _ in range(8)), "all of them serve"


def test_a_worker_that_is_stuck_beside_one_that_is_well_is_started_anew(repository: Path) -> None:
    with running_server(repository, "--workers", "2", "--drain-seconds", "0", recurra=impatient(seconds=2)) as server:
        streams = [begin(Stubs(server.target)) for _ in range(16)]
        stuck, well = children(server.pid)
        os.kill(stuck, signal.SIGSTOP)
        until_told("worker_stuck", server)
        until_told("worker_died", server)
        until(lambda: server.metrics().get("recurra_workers") == 2, server)
        members = children(server.pid)
        assert well in members
        assert stuck not in members
        went_on = 0
        for stream in streams:
            with contextlib.suppress(grpc.RpcError):  # its worker was killed
                went_on += stream.ask(inputs=[tensor([1])]).result.step == 2
        assert 0 < went_on < len(streams), "the others have lost nothing"


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


def impatient(*, seconds: float) -> list[str]:
    """The command line, whose workers are stuck when they have not answered for so long."""
    changed = f"cli.Workers = functools.partial(cli.Workers, stuck={seconds})"
    program = ["import functools", "from recurra_client.cli import main", "from recurra_server import cli", changed]
    return [sys.executable, "-c", "\n".join([*program, "main()"])]


@contextlib.contextmanager
def asking(server: ServerProcess, count: int = 16) -> Iterator[list[BlockingClient]]:
    """So many connections that every worker has some; gRPC would share one among clients of equal options."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(server.target, keepalive=30 + number)) for number in range(count)]


def test_what_a_call_changes_is_changed_in_all_workers(tmp_path: Path) -> None:
    models.publish(tmp_path, "sum", models.counter(), "1")
    with running_server(tmp_path, "--workers", "2") as server, asking(server) as clients:
        models.publish(tmp_path, "sum", models.counter(description="New."), "2")
        assert clients[0].load_model("sum").version == "2"
        assert {client.model("sum").version for client in clients} == {"2"}
        assert {health(target, "sum/2") for target in [server.target] * 8} == {SERVING}
        sessions = [client.session("sum").open() for client in clients]
        steps = [session.step([3.0]).tolist() for session in sessions]
        assert steps == [[3.0]] * len(clients)
        assert all(0 < client.sessions.count("sum") < len(clients) for client in clients), "both workers have some"

        broken = models.publish(tmp_path, "sum", models.counter(description="Broken."), "2")
        broken.write_bytes(broken.read_bytes()[:99])
        with pytest.raises(ModelRefusedError):
            clients[1].load_model("sum", "2")
        assert {client.model("sum").description for client in clients} == {"New."}, "in none of them"

        stubs = Stubs(server.target)
        done = stubs.models.UnloadModel(models_pb2.UnloadModelRequest(name="sum", version="2"))
        assert (list(done.versions), done.sessions) == (["2"], len(clients)), "the sessions of all workers"
        assert {client.model("sum").version for client in clients} == {"1"}
        assert {health(target, "sum/2") for target in [server.target] * 8} == {NOT_SERVING}
        for session in sessions:
            assert session.step([1.0]) == [4.0]
        with pytest.raises(ModelNotFoundError):
            clients[2].unload_model("sum", "2")
        with pytest.raises(ModelNotFoundError, match="the model repository has no 'nothing'"):
            clients[3].load_model("nothing")


def test_a_worker_that_begins_later_serves_what_the_others_do(tmp_path: Path) -> None:
    """Though the models' folder cannot be read at first."""
    repository, away = tmp_path / "models", tmp_path / "away"
    for version in ("1", "2"):
        models.publish(repository, "sum", models.counter(description=version), version)
    with running_server(repository, "--workers", "2") as server:
        with connect(server.target) as client:
            client.unload_model("sum", "2")
        victims = children(server.pid)
        repository.rename(away)
        repository.symlink_to(repository)
        os.kill(victims[0], signal.SIGKILL)
        until_told("worker_not_started", server)
        with connect(server.target) as client:
            assert client.model("sum").version == "1", "the other serves"
        repository.unlink()
        away.rename(repository)
        Path(f"/proc/{victims[1]}/fd/1").write_text("What a library prints, for example.\n")  # where it is to answer
        until(lambda: not set(victims) & set(children(server.pid)), server)
        until(lambda: server.metrics().get("recurra_workers") == 2, server)
        assert not set(victims) & set(children(server.pid))
        assert "peer_not_understood" in server.output
        with asking(server) as clients:
            assert {client.model("sum").version for client in clients} == {"1"}
            assert clients[0].load_model("sum").version == "2"
            assert {client.model("sum").version for client in clients} == {"2"}


@pytest.mark.parametrize("durability", [sessions_pb2.DURABILITY_ASYNC, sessions_pb2.DURABILITY_SYNC])
def test_with_a_store_any_worker_goes_on_with_a_session(
    repository: Path, tmp_path: Path, durability: sessions_pb2.Durability.ValueType
) -> None:
    with running_server(repository, "--workers", "2", "--store", f"embedded:{tmp_path}") as server:
        assert "2 workers, each of which goes on with any durable session" in server.output
        connections = [Stubs(server.target) for _ in range(12)]
        session = SteppedOnce(connections[0].channel, "counter", durability)
        for number in range(1, 37):
            session.inference = connections[number % len(connections)].inference
            result = session.step([tensor([1.0])])
            assert (result.step, array_of(result.outputs[0]).item()) == (number, number)
        assert (server.metrics().get("recurra_sessions_taken_over_total") or 0) > 3, "not all go to one"
        os.kill(children(server.pid)[0], signal.SIGKILL)
        os.kill(children(server.pid)[-1], signal.SIGKILL)
        assert session.step([tensor([1.0])]).step == 37


def test_without_a_store_whoever_meets_the_wrong_worker_is_told_why(workers: ServerProcess) -> None:
    assert f"{WORKERS} workers, each with sessions of its own" in workers.output
    session = Stubs(workers.target).sessions.OpenSession(sessions_pb2.OpenSessionRequest(model="counter")).session
    told = []
    for _ in range(24):
        try:
            Stubs(workers.target).sessions.GetSession(sessions_pb2.GetSessionRequest(session_id=session.session_id))
        except grpc.RpcError as error:
            told.append(error.details() or "")
    assert told, "some were given to another worker"
    assert all("another of this server's workers has it (without --store they share nothing)" in text for text in told)


def test_a_call_cannot_drain_one_of_many(workers: ServerProcess) -> None:
    with pytest.raises(grpc.RpcError, match="SIGTERM drains all"):
        Stubs(workers.target).sessions.DrainSessions(sessions_pb2.DrainSessionsRequest())


INSTEAD = {"said": 'print("hello", flush=True)', "silent": "time.sleep(1000)"}
"""What a worker does rather than begin."""


@pytest.mark.parametrize("what", ["port", "models", "said", "silent"])
def test_why_the_workers_cannot_start_is_said_in_one_line(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1]) if what == "port" else "0"
        folder = repository if what in ("port", "said") else tmp_path
        if what in INSTEAD:
            begin_so = f'import sys, time\nif "recurra_server.worker" in sys.orig_argv:\n    {INSTEAD[what]}\n'
            (tmp_path / "sitecustomize.py").write_text(begin_so)
            monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        recurra = impatient(seconds=1) if what == "silent" else [str(Path(sys.executable).with_name("recurra"))]
        command = [*recurra, "serve", "--models", str(folder), "--port", port, "--metrics-port", "0"]
        command += ["--load-seconds", "0.01"] * (what == "silent")
        run = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    why = {
        "port": "choose --port",
        "models": "choose --models",
        "said": "said 'hello', and not whether it serves",
        "silent": "a worker that was to begin has said nothing for 1.08 s",
    }
    assert re.fullmatch(rf"recurra: .*{why[what]}\n", run.stderr), run.stderr


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


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(target: str, service: str) -> int:
    """What the worker says that a new connection is given to."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(target, options=options) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request).status)


def until(happened: Callable[[], bool], server: ServerProcess) -> None:
    """Ask again and again; each question takes a call to the server, or reads what the system tells."""
    for _ in range(100_000):
        if happened():
            return
    raise AssertionError(f"it did not happen:\n{server.output}")


def until_told(what: str, server: ServerProcess, *, times: int = 1) -> None:
    """Wait until a server has logged something."""
    while server.output.count(what) < times:
        assert server.new_output.wait(30), server.output
        server.new_output.clear()


def listening(pid: int) -> list[int]:
    """The TCP ports on which a process listens."""
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    tables = [Path(f"/proc/{pid}/net/{table}").read_text() for table in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
