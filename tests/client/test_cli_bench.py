"""`recurra bench`: load, and what it counts, against a real server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from recurra.v1 import sessions_pb2
from recurra_client import connect

from tests.client.conftest import Run
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs


@pytest.fixture(scope="module")
def workers(models_folder: Path) -> Iterator[ServerProcess]:
    with running_server(models_folder, "--workers", "2") as process:
        yield process


@pytest.fixture(scope="module")
def full(models_folder: Path) -> Iterator[ServerProcess]:
    with running_server(models_folder, "--max-sessions", "5") as process:
        yield process


@pytest.mark.parametrize(
    "options", [[], ["--api", "unary"], ["--api", "batch"], ["--pace", "20ms"], ["--chunk", "4"], ["--chunk", "3000"]]
)
def test_bench_counts_every_step_that_the_server_answered(
    recurra: Run, server: ServerProcess, options: list[str]
) -> None:
    before = server.metrics().get("recurra_timesteps_total", model="lstm", version="1") or 0
    arguments = ["--sessions", "1,3", "--seconds", "0.4", "--json", *options, "--server", server.target]
    code, out, err = recurra("bench", "lstm", *arguments)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [result["sessions"] for result in report["results"]] == [1, 3]
    measured = sum(result["steps_per_second"] for result in report["results"]) * 0.4
    answered = (server.metrics().get("recurra_timesteps_total", model="lstm", version="1") or 0) - before
    assert 0 < measured <= answered  # that of the warm-up is not measured
    for result in report["results"]:
        assert result["errors"] == {}
        assert 0 < result["p50_seconds"] <= result["p99_seconds"] <= result["longest_seconds"]
        assert (result["late_p99_seconds"] is not None) == (options == ["--pace", "20ms"])
        if options == ["--pace", "20ms"]:
            assert result["steps_per_second"] <= 1.2 * result["sessions"] / 0.02
    with connect(server.target) as client:
        assert client.sessions.count("lstm") == 0


@pytest.mark.parametrize("api", ["stream", "unary", "batch"])
def test_bench_asks_for_outputs_by_name(recurra: Run, server: ServerProcess, api: str) -> None:
    arguments = ["--api", api, "--sessions", "1", "--seconds", "0.2", "--json", "--server", server.target, "--outputs"]
    code, out, _ = recurra("bench", "lstm", *arguments, "y")
    assert (code, json.loads(out)["results"][0]["errors"]) == (0, {})
    code, _, err = recurra("bench", "watched", *arguments, "y,z")
    assert (code, err) == (1, "recurra: model watched has no output 'z'; it has double, y, entry\n")


def test_bench_shares_the_sessions_out_among_processes(recurra: Run, server: ServerProcess) -> None:
    arguments = ["--sessions", "3", "--seconds", "0.3", "--processes", "2", "--server", server.target]
    code, out, err = recurra("bench", "counter", *arguments)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("counter version 1: stream, closed loop")
    assert out.splitlines()[4].split()[0] == "3"


@pytest.mark.parametrize("api", ["stream", "unary", "batch"])
def test_bench_keeps_each_session_where_it_was_opened(recurra: Run, workers: ServerProcess, api: str) -> None:
    """With several workers, a session lives in the one that its connection was given to."""
    counter = {"model": "counter", "version": "1"}
    before = workers.metrics().get("recurra_sessions_opened_total", **counter) or 0
    arguments = ["--api", api, "--sessions", "12", "--seconds", "0.3", "--json", "--server", workers.target]
    code, out, err = recurra("bench", "counter", *arguments)
    assert (code, err) == (0, "")
    (result,) = json.loads(out)["results"]
    assert (result["refused"], result["errors"]) == ({}, {})
    assert result["steps_per_second"] > 0
    samples = workers.metrics()
    assert samples.get("recurra_sessions_opened_total", **counter) == before + 12
    assert samples.get("recurra_sessions", **counter) == 0


@pytest.mark.parametrize("options", [[], ["--pace", "20ms"]])
def test_bench_goes_on_with_the_sessions_that_a_full_server_takes(
    recurra: Run, full: ServerProcess, options: list[str]
) -> None:
    arguments = ["counter", "--sessions", "7", "--seconds", "0.3", *options, "--server", full.target]
    code, out, err = recurra("bench", *arguments, "--json")
    assert (code, err) == (0, "")
    (result,) = json.loads(out)["results"]
    assert (result["refused"], result["errors"]) == ({"CAPACITY": 2}, {})
    code, out, err = recurra("bench", *arguments)
    assert out.splitlines()[4].split()[:3] == ["7", "2", "CAPACITY"]
    stubs = Stubs(full.target)
    held = [stubs.sessions.OpenSession(sessions_pb2.OpenSessionRequest(model="counter")) for _ in range(5)]
    code, out, err = recurra("bench", *arguments)
    assert (code, out) == (1, "")
    assert err == "recurra: 7 sessions: the server refuses a session (CAPACITY)\n"
    for opened in held:
        stubs.sessions.CloseSession(sessions_pb2.CloseSessionRequest(session_id=opened.session.session_id))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name the model to load: counter, letters, lstm, watch"),
        (["counter", "--sessions", "0"], "--sessions is '0'"),
        (["counter", "--pace", "fast"], "--pace is 'fast', expected a time such as 32ms"),
        (["nope"], "there is no model 'nope'"),
    ],
)
def test_what_bench_cannot_do_is_told_in_a_line(
    recurra: Run, server: ServerProcess, arguments: list[str], says: str
) -> None:
    code, out, err = recurra("bench", *arguments, "--server", server.target)
    assert (code, out) == (1, "")
    assert err.startswith(f"recurra: {says}")
    assert err.count("\n") == 1
