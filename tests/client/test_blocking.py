"""The blocking client and a real server."""

import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from recurra_client import BlockingClient, BlockingSession, Client, InputError, Session, SessionNotFoundError, connect
from recurra_client.blocking_session import BlockingSessions
from recurra_client.sessions import Sessions

from tests.support.server import ServerProcess


@pytest.fixture
def client(server: ServerProcess) -> Iterator[BlockingClient]:
    with connect(server.target) as client:
        yield client


def public(cls: type) -> dict[str, Any]:
    return {name: member for name, member in vars(cls).items() if not name.startswith("_")}


@pytest.mark.parametrize(
    ("blocking", "asynchronous"),
    [(BlockingClient, Client), (BlockingSession, Session), (BlockingSessions, Sessions)],
)
def test_it_has_the_names_and_arguments_of_the_asyncio_client(blocking: type, asynchronous: type) -> None:
    ours, theirs = public(blocking), public(asynchronous)
    assert ours.keys() == theirs.keys() - {"exclusively"}
    for name, member in ours.items():
        if not isinstance(member, property):
            expected = list(inspect.signature(theirs[name]).parameters)
            actual = list(inspect.signature(member).parameters)
            # Where the signature is written out in overloads, the rest is passed on.
            assert actual == expected or (actual[-1] == "options" and actual[:-1] == expected[: len(actual) - 1])


def test_a_session_from_beginning_to_end(client: BlockingClient) -> None:
    with client.session("counter") as session:
        assert session.step([1]).tolist() == [1]
        assert session.step({"x": [2]})["y"].tolist() == [3]
        assert session.steps([[1], [1]]).tolist() == [[4], [5]]
        assert [float(y[0]) for y in session.stream(np.ones((70, 1)))] == list(range(6, 76))
        assert [float(y[0]) for y in session.stream([float(n)] for n in range(3))] == [75, 76, 78]
        assert session.last.step == session.info().steps == 77
        with pytest.raises(InputError):
            list(session.stream([[1], [np.nan]]))
        fork = session.fork()
        session.reset()
        assert session.step([1]).tolist() == [1]
        with fork:
            assert fork.step([0]).tolist() == [79]
            assert fork.model.name == "counter"
    with pytest.raises(SessionNotFoundError):
        client.sessions.get(session.id)


def test_calls_without_a_session(client: BlockingClient) -> None:
    assert "counter" in [model.name for model in client.models()]
    assert client.model("counter").state_bytes == 4
    assert client.predict("counter", [[1], [2]], last_only=True).tolist() == [3]
    assert len(list(client.generate("letters", [1], max_steps=5))) == 5
    with client.session("letters") as letters:
        generation = client.generate(letters, [1], max_steps=50)
        assert next(generation).step == 1
        generation.close()  # type: ignore[attr-defined]
        letters.step(0)


def test_sessions_by_id(client: BlockingClient) -> None:
    with client.session("lstm", session_id="blocking", keep=True):
        pass
    assert [info.session_id for info in client.sessions.list("lstm")] == ["blocking"]
    assert client.sessions.count("lstm") == 1
    assert client.step_batch("lstm", ["blocking"], np.zeros((1, 4))).steps == [1]
    assert client.sessions.get("blocking").steps == 1
    assert client.sessions.fork("blocking", "blocking-2").steps == 1
    snapshot = client.sessions.export("blocking")
    assert client.sessions.reset("blocking").steps == 0
    assert client.sessions.rewind("blocking", snapshot).steps == 1
    assert client.sessions.import_(snapshot, "blocking-3").steps == 1
    assert client.sessions.close("blocking-3").steps == 1
    assert client.sessions.close("blocking-2").steps == 1
    with client.resume("blocking", keep=False) as session:
        session.step(np.zeros(4))
    assert client.sessions.count("lstm") == 0


def test_threads_may_share_it(client: BlockingClient) -> None:
    results: dict[int, list[float]] = {}

    def run(k: int) -> None:
        with client.session("counter") as session:
            results[k] = [float(session.step([k])[0]) for _ in range(20)]

    threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {k: [k * n for n in range(1, 21)] for k in range(8)}


async def test_it_works_beside_an_event_loop(server: ServerProcess, client: BlockingClient) -> None:
    async with Client(server.target) as other, other.session("counter") as theirs:
        with client.session("counter") as ours:
            for n in range(1, 30):
                assert ours.step([1]).tolist() == [n]
                assert (await theirs.step([2])).tolist() == [2 * n]


LEFT_EARLY = """
import gc
from recurra_client.loop_thread import iterate, run

async def items():
    yield 1
    yield 2

left = iterate(items())
next(left)
"""
COLLECTED = """
gc.disable()
circle = [left]
circle.append(circle)
del left, circle

async def collect():
    gc.collect()

run(collect())
"""


@pytest.mark.parametrize("closed", ["", COLLECTED], ids=["at the program's end", "on the loop's own thread"])
def test_an_iterator_that_is_left_early_holds_nothing_up(closed: str) -> None:
    run_python(LEFT_EARLY + closed)


def run_python(code: str, *arguments: str) -> str:
    """What a program in a process of its own prints."""
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


CONNECTED_AT_ONCE = """
import sys, threading
from recurra_client import connect

sys.setswitchinterval(1e-6)
together = threading.Barrier(16)

def first():
    together.wait()
    connect("localhost:1")

threads = [threading.Thread(target=first) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print([thread.name for thread in threading.enumerate()].count("recurra-client"))
"""


def test_threads_that_connect_at_once_share_one_event_loop() -> None:
    assert run_python(CONNECTED_AT_ONCE) == "1\n"


FORKED = """
import os, sys

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # its handlers of a fork may crash where calls are under way
from recurra_client import connect

def told(call):
    try:
        call()
    except RuntimeError as error:
        assert "connect only in the child" in str(error)
        return True

client = connect(sys.argv[1])
with client, client.session("watched") as session:
    generation = client.generate(session, [[0]], max_steps=10)
    next(generation)
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        print(status, len(list(generation)), session.step([0]).tolist())
    else:
        calls = [lambda: session.step([0]), client.models, lambda: next(generation), lambda: connect(sys.argv[1])]
        os._exit(0 if all(map(told, calls)) else 1)
"""
FORKED_BEFORE = """
import os, sys
from recurra_client import connect

child = os.fork()
with connect(sys.argv[1]) as client:
    served = client.is_serving()
if child:
    _, status = os.waitpid(child, 0)
    print(status, served)
else:
    os._exit(0 if served else 1)
"""


def test_a_fork_leaves_the_client_to_the_process_that_made_it(server: ServerProcess) -> None:
    assert run_python(FORKED, server.target) == "0 9 [0.0]\n"
    assert run_python(FORKED_BEFORE, server.target) == "0 True\n"
