"""Two servers with one store: what one has begun, the other goes on with."""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from recurra.v1 import sessions_pb2
from recurra.v1.inference_pb2 import GenerateRequest, StepBatchRequest, StepRequest, StepResult
from recurra.v1.sessions_pb2 import (
    DURABILITY_ASYNC,
    DURABILITY_EPHEMERAL,
    DURABILITY_SYNC,
    CloseSessionRequest,
    DrainSessionsRequest,
    ExportSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ImportSessionRequest,
    OpenSessionRequest,
    ResetSessionRequest,
    RewindSessionRequest,
)

from tests.support.openinference import request as infer_request
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, array_of, error_info, tensor

_ids = count()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"embedded:{tmp_path_factory.mktemp('s')}"


@pytest.fixture(scope="module")
def one(repository: Path, store: str) -> Iterator[ServerProcess]:
    with running_server(repository, "--store", store, "--checkpoint-interval", "0.02") as process:
        yield process


@pytest.fixture(scope="module")
def two(repository: Path, store: str) -> Iterator[ServerProcess]:
    with running_server(repository, "--store", store, "--checkpoint-interval", "0.02") as process:
        yield process


@pytest.fixture
def here(one: ServerProcess) -> Iterator[Stubs]:
    stubs = Stubs(one.target)
    yield stubs
    stubs.channel.close()


@pytest.fixture
def there(two: ServerProcess) -> Iterator[Stubs]:
    stubs = Stubs(two.target)
    yield stubs
    stubs.channel.close()


def opened(stubs: Stubs, **fields: Any) -> str:
    """Open a counter."""
    request = OpenSessionRequest(**{"model": "counter", "session_id": f"s{next(_ids)}", **fields})
    session = stubs.sessions.OpenSession(request).session
    return str(session.session_id)


def step(stubs: Stubs, session_id: str, value: float = 1.0, number: int = 0) -> StepResult:
    request = StepRequest(session_id=session_id, step=number, inputs=[tensor([value])])
    return stubs.inference.Step(request, timeout=10).result


def value_of(result: StepResult) -> float:
    return float(array_of(result.outputs[0]).item())


def until_durable(stubs: Stubs, session_id: str) -> sessions_pb2.Session:
    """Wait until all steps are in the store."""
    while True:
        session = stubs.sessions.GetSession(GetSessionRequest(session_id=session_id)).session
        if session.durable_step == session.steps:
            return session


def reason_of(call: Any, *args: Any) -> tuple[str, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args)
    info = error_info(caught.value)
    return info.reason, dict(info.metadata)


def test_async_is_the_default_and_every_reply_says_what_is_durable(here: Stubs) -> None:
    session_id = opened(here)
    assert step(here, session_id, number=1).durable_step == 0
    assert until_durable(here, session_id).durability == DURABILITY_ASYNC
    assert step(here, session_id, number=2).durable_step >= 1
    until_durable(here, session_id)
    stream = Stream(here)
    assert stream.ask(session_id=session_id, inputs=[tensor([1.0])]).result.durable_step >= 2
    stream.end()
    batch = StepBatchRequest(session_ids=[session_id], inputs=[tensor([[1.0]])])
    assert list(here.inference.StepBatch(batch).durable_steps) >= [2]


def test_an_ephemeral_session_stays_where_it_is(here: Stubs, there: Stubs) -> None:
    session_id = opened(here, durability=DURABILITY_EPHEMERAL)
    assert step(here, session_id, number=1).durable_step == 0
    assert reason_of(step, there, session_id, 1.0, 2)[0] == "SESSION_NOT_FOUND"


def test_a_sequence_of_the_open_inference_protocol_is_ephemeral(here: Stubs, there: Stubs) -> None:
    here.open_inference.ModelInfer(infer_request([[1.0]], sequence=7, start=True))
    session = here.sessions.GetSession(GetSessionRequest(session_id="counter:7")).session
    assert session.durability == DURABILITY_EPHEMERAL
    assert reason_of(there.open_inference.ModelInfer, infer_request([[1.0]], sequence=7))[0] == "SESSION_NOT_FOUND"


def test_without_a_store_there_is_nothing_durable(stubs: Stubs) -> None:
    request = OpenSessionRequest(model="counter", durability=DURABILITY_ASYNC)
    reason, metadata = reason_of(stubs.sessions.OpenSession, request)
    assert (reason, metadata["field"]) == ("INVALID_REQUEST", "durability")
    unnamed = OpenSessionRequest(model="counter", durability=9)  # type: ignore[arg-type]
    assert reason_of(stubs.sessions.OpenSession, unnamed)[0] == "INVALID_REQUEST"
    session = stubs.sessions.OpenSession(OpenSessionRequest(model="counter")).session
    assert session.durability == DURABILITY_EPHEMERAL


def test_sync_steps_are_durable_when_they_are_answered(here: Stubs, there: Stubs) -> None:
    session_id = opened(here, durability=DURABILITY_SYNC)
    for number in (1, 2, 3):
        assert step(here, session_id, number=number).durable_step == number
    assert value_of(step(there, session_id, number=4)) == 4.0
    assert step(there, session_id, number=4).replayed, "the last reply goes along"


def test_sync_steps_that_were_sent_ahead_are_answered_one_after_the_other(here: Stubs) -> None:
    session_id = opened(here, durability=DURABILITY_SYNC)
    stream = Stream(here)
    for number in range(1, 61):
        stream.send(session_id=session_id, step=number, inputs=[tensor([1.0])])
    results = [stream.read().result for _ in range(60)]
    assert [result.step for result in results] == list(range(1, 61))
    assert all(result.durable_step >= result.step for result in results)
    stream.end()


def _by_unary(stubs: Stubs, session_id: str) -> float:
    return value_of(step(stubs, session_id, number=2))


def _by_stream(stubs: Stubs, session_id: str) -> float:
    stream = Stream(stubs)
    stream.send(session_id=session_id, step=2, inputs=[tensor([1.0])])
    (reply,) = stream.end()
    return value_of(reply.result)


def _by_batch(stubs: Stubs, session_id: str) -> float:
    request = StepBatchRequest(session_ids=[session_id, "nowhere"], steps=[2, 2], inputs=[tensor([[1.0], [1.0]])])
    response = stubs.inference.StepBatch(request)
    assert [(row.row, row.error.reason) for row in response.errors] == [(1, "SESSION_NOT_FOUND")]
    return float(array_of(response.outputs[0])[0].item())


@pytest.mark.parametrize("way", [_by_unary, _by_stream, _by_batch])
def test_any_server_goes_on(here: Stubs, there: Stubs, way: Any) -> None:
    session_id = opened(here)
    step(here, session_id, number=1)
    until_durable(here, session_id)
    assert way(there, session_id) == 2.0
    assert way(there, session_id) == 2.0, "replayed"
    until_durable(there, session_id)
    assert value_of(step(there, session_id, number=3)) == 3.0


def test_any_call_finds_it(here: Stubs, there: Stubs) -> None:
    def begun(steps: int = 1) -> str:
        session_id = opened(here)
        for number in range(1, steps + 1):
            step(here, session_id, number=number)
        until_durable(here, session_id)
        return session_id

    sessions = there.sessions
    assert sessions.GetSession(GetSessionRequest(session_id=begun())).session.steps == 1
    assert sessions.ResetSession(ResetSessionRequest(session_id=begun())).session.steps == 0
    assert sessions.CloseSession(CloseSessionRequest(session_id=begun())).session.steps == 1
    fork = sessions.ForkSession(ForkSessionRequest(session_id=begun())).session
    assert (fork.steps, fork.durability) == (1, DURABILITY_ASYNC)
    snapshot = sessions.ExportSession(ExportSessionRequest(session_id=begun())).snapshot
    rewound = sessions.RewindSession(RewindSessionRequest(session_id=begun(2), snapshot=snapshot)).session
    assert (rewound.steps, rewound.durable_step) == (1, 1)
    moved = sessions.ImportSession(ImportSessionRequest(snapshot=snapshot, durability=DURABILITY_SYNC)).session
    assert value_of(step(here, moved.session_id, number=2)) == 2.0
    for again in (fork, rewound):
        assert value_of(step(here, again.session_id, number=2)) == 2.0


def test_a_generation_is_durable_when_it_ends(here: Stubs, there: Stubs) -> None:
    session_id = opened(here, model="letters")
    request = GenerateRequest(session_id=session_id, inputs=[tensor(1, "int64")], max_steps=5)
    assert [reply.result.step for reply in here.inference.Generate(request)] == [1, 2, 3, 4, 5]
    assert there.sessions.GetSession(GetSessionRequest(session_id=session_id)).session.steps == 5


def test_the_one_that_lost_it_lets_go(here: Stubs, there: Stubs) -> None:
    session_id = opened(here)
    step(here, session_id, number=1)
    until_durable(here, session_id)
    assert value_of(step(there, session_id, 10.0, 2)) == 11.0
    until_durable(there, session_id)
    # A gap for the one that did not hear of step 2: it finds out before it answers.
    assert reason_of(step, here, session_id, 1.0, 3)[0] == "SESSION_MOVED"
    assert value_of(step(here, session_id, 1.0, 3)) == 12.0
    until_durable(here, session_id)
    assert reason_of(step, there, session_id, 1.0, 4)[0] == "SESSION_MOVED"


def test_a_step_past_the_checkpoint_is_told_where_to_go_on(here: Stubs, there: Stubs) -> None:
    session_id = opened(here)
    step(here, session_id, number=1)
    until_durable(here, session_id)
    reason, metadata = reason_of(step, there, session_id, 1.0, 7)
    assert (reason, metadata["expected_step"]) == ("STEP_GAP", "2")


def test_an_id_that_lives_in_the_store_is_taken(here: Stubs, there: Stubs) -> None:
    session_id = opened(here)
    assert reason_of(lambda: opened(there, session_id=session_id))[0] == "SESSION_EXISTS"
    stream = Stream(there)
    reply = stream.ask(open=OpenSessionRequest(model="counter", session_id=session_id))
    assert reply.error.reason == "SESSION_EXISTS"
    stream.end()
    step(here, session_id, number=1)
    here.sessions.CloseSession(CloseSessionRequest(session_id=session_id))
    assert reason_of(step, there, session_id)[0] == "SESSION_NOT_FOUND"
    assert opened(there, session_id=session_id) == session_id
    assert value_of(step(here, session_id, 5.0, 1)) == 5.0


def test_many_calls_take_a_session_over_once(here: Stubs, there: Stubs, two: ServerProcess) -> None:
    session_id = opened(here)
    step(here, session_id, number=1)
    until_durable(here, session_id)
    before = two.metrics().get("recurra_sessions_taken_over_total")
    assert before is not None
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda _: step(there, session_id), range(16)))
    assert sorted(value_of(result) for result in results) == [float(n) for n in range(2, 18)]
    assert two.metrics().get("recurra_sessions_taken_over_total") == before + 1


def test_a_session_outlives_servers_that_are_killed_and_one_that_drains(repository: Path, tmp_path: Path) -> None:
    store = ("--store", f"embedded:{tmp_path}")
    session_id = "long"
    for number in (1, 2, 3):
        with running_server(repository, *store) as server:
            stubs = Stubs(server.target)
            if number == 1:
                opened(stubs, session_id=session_id)
            assert value_of(step(stubs, session_id, number=number)) == number
            stubs.channel.close()
            if number == 2:
                until_durable(Stubs(server.target), session_id)
                server.kill()
            else:
                server.terminate()
                assert server.wait() == 0, "all checkpoints are written before it ends"


CALLS: dict[str, Callable[..., Any]] = {
    "get": lambda stubs, **known: stubs.sessions.GetSession(GetSessionRequest(**known)),
    "fork": lambda stubs, **known: stubs.sessions.ForkSession(ForkSessionRequest(**known)),
    "export": lambda stubs, **known: stubs.sessions.ExportSession(ExportSessionRequest(**known)),
    "generate": lambda stubs, **known: list(
        stubs.inference.Generate(GenerateRequest(**known, inputs=[tensor([1.0])], max_steps=1))
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("durability", [DURABILITY_EPHEMERAL, DURABILITY_ASYNC])
def test_a_call_that_must_come_after_a_step_is_refused_before_it(
    here: Stubs, call: str, durability: sessions_pb2.Durability
) -> None:
    session_id = opened(here, model="echo", durability=durability)
    step(here, session_id, number=1)
    reason, metadata = reason_of(lambda: CALLS[call](here, session_id=session_id, after_step=2))
    assert (reason, metadata["expected_step"]) == ("STEP_GAP", "2")
    assert here.sessions.GetSession(GetSessionRequest(session_id=session_id)).session.steps == 1
    CALLS[call](here, session_id=session_id, after_step=1)


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_lost_a_session_does_not_tell_what_it_lacks(here: Stubs, there: Stubs, call: str) -> None:
    """It has an old copy still, and would have steps sent that are applied elsewhere already."""
    session_id = opened(here, model="echo")
    step(here, session_id, number=1)
    until_durable(here, session_id)
    for number in (2, 3):
        step(there, session_id, number=number)
    until_durable(there, session_id)
    reason, _ = reason_of(lambda: CALLS[call](here, session_id=session_id, after_step=3))
    assert reason == "SESSION_MOVED"
    CALLS[call](here, session_id=session_id, after_step=3)


def test_a_drained_server_lets_go_of_what_others_can_go_on_with(repository: Path, tmp_path: Path) -> None:
    store = ("--store", f"embedded:{tmp_path}")
    with running_server(repository, *store) as old, running_server(repository, *store) as new:
        here, there = Stubs(old.target), Stubs(new.target)
        opened(here, session_id="moves")
        opened(here, session_id="ends", durability=DURABILITY_EPHEMERAL)
        stream = Stream(here)
        assert stream.ask(session_id="moves", step=1, inputs=[tensor([1.0])]).result.step == 1
        with ThreadPoolExecutor(1) as pool:
            draining = pool.submit(here.sessions.DrainSessions, DrainSessionsRequest())
            assert stream.read().HasField("moving")
            assert value_of(stream.ask(session_id="moves", step=2, inputs=[tensor([1.0])]).result) == 2.0
            assert not draining.done(), "it waits for the stream"
            stream.end()
            assert (draining.result().moved, draining.result().left) == (1, 1)
        health = health_pb2_grpc.HealthStub(here.channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        for number in (2, 3):
            assert reason_of(step, here, "moves", 1.0, number)[0] == "DRAINING"
            assert value_of(step(there, "moves", 1.0, number)) == number
        assert reason_of(lambda: opened(here))[0] == "DRAINING"
        assert value_of(step(here, "ends", 1.0, 1)) == 1.0, "it still answers"
        again = here.sessions.DrainSessions(DrainSessionsRequest())
        assert (again.moved, again.left) == (0, 1)
        for seconds in (-1, 2**63 - 1):
            absurd = DrainSessionsRequest()
            absurd.grace.seconds = seconds
            assert reason_of(here.sessions.DrainSessions, absurd)[0] == "INVALID_REQUEST"


def test_a_server_that_cannot_listen_leaves_no_store_behind(repository: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match="choose --port"):
            ServerProcess(repository, "--store", f"embedded:{tmp_path / 'store'}", port=port)
    assert not (tmp_path / "store").exists()
