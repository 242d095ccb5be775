"""StreamSteps, over the wire."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from recurra.v1 import inference_pb2, sessions_pb2

from benchmarks.processes import resident_bytes
from tests.support.server import ServerProcess
from tests.support.wire import Stream, Stubs, array_of, error_info, tensor

Request = inference_pb2.StreamStepsRequest
Response = inference_pb2.StreamStepsResponse


def opening(session_id: str = "", model: str = "counter") -> sessions_pb2.OpenSessionRequest:
    return sessions_pb2.OpenSessionRequest(model=model, session_id=session_id)


def values(response: Response) -> list[float]:
    assert response.WhichOneof("outcome") == "result", response
    flat: list[float] = array_of(response.result.outputs[0]).ravel().tolist()
    return flat


def test_open_step_and_close_can_ride_on_one_message(stubs: Stubs) -> None:
    stream = Stream(stubs)
    first = stream.ask(open=opening(), inputs=[tensor([1])])
    assert first.opened.session_id == first.session_id != ""
    assert values(first) == [1.0]
    assert values(stream.ask(inputs=[tensor([2])])) == [3.0]
    last = stream.ask(inputs=[tensor([[3], [4]])], close=True)
    assert values(last) == [6.0, 10.0]
    assert last.closed.steps == 4
    gone = stream.ask(inputs=[tensor([1])])
    assert gone.error.reason == "SESSION_NOT_FOUND"
    only = stream.ask(open=opening(), inputs=[tensor([7])], close=True)
    assert values(only) == [7.0]
    assert only.opened.session_id == only.closed.session_id
    assert stream.ask(open=opening("bare")).opened.session_id == "bare"
    assert stream.ask(close=True).closed.session_id == "bare"
    assert stream.end() == []


def test_one_stream_carries_many_sessions_of_several_models(stubs: Stubs) -> None:
    stream = Stream(stubs)
    for name, model in (("one", "counter"), ("two", "counter"), ("net", "lstm")):
        assert stream.ask(open=opening(name, model)).opened.model == model
    for _ in range(3):
        stream.send(session_id="one", inputs=[tensor([1])])
        stream.send(session_id="two", inputs=[tensor([10])])
        stream.send(session_id="net", inputs=[tensor(np.ones(4))])
    responses = stream.end()
    by_session = {
        name: [response for response in responses if response.session_id == name] for name in ("one", "two", "net")
    }
    assert [values(r)[0] for r in by_session["one"]] == [1.0, 2.0, 3.0]
    assert [values(r)[0] for r in by_session["two"]] == [10.0, 20.0, 30.0]
    assert [r.result.step for r in by_session["net"]] == [1, 2, 3]


def test_a_step_that_fails_leaves_the_stream_and_its_neighbours_alone(stubs: Stubs) -> None:
    stream = Stream(stubs)
    session_id = stream.ask(open=opening(), inputs=[tensor([1])]).session_id
    reasons = [
        stream.ask(inputs=[tensor([np.nan])]).error.reason,
        stream.ask(inputs=[tensor([1, 2])]).error.reason,
        stream.ask(inputs=[tensor([1])], step=9).error.reason,
        stream.ask(session_id="unknown", inputs=[tensor([1])]).error.reason,
        stream.ask(open=opening(model="nothing")).error.reason,
        stream.ask().error.reason,
        stream.ask(session_id="x", open=opening()).error.reason,
    ]
    assert reasons == [
        "INPUT_NOT_FINITE",
        "INPUT_SHAPE",
        "STEP_GAP",
        "SESSION_NOT_FOUND",
        "MODEL_NOT_FOUND",
        "INVALID_REQUEST",
        "INVALID_REQUEST",
    ]
    assert values(stream.ask(session_id=session_id, inputs=[tensor([1])])) == [2.0]


def test_a_close_that_rides_on_a_failing_step_is_not_done(stubs: Stubs) -> None:
    stream = Stream(stubs)
    stream.ask(open=opening(), inputs=[tensor([1])])
    failed = stream.ask(inputs=[tensor([np.nan])], close=True)
    assert failed.error.reason == "INPUT_NOT_FINITE"
    assert not failed.HasField("closed")
    assert values(stream.ask(inputs=[tensor([1])])) == [2.0]


def test_after_a_failed_opening_nothing_goes_to_the_session_before(stubs: Stubs) -> None:
    """A caller who pipelines must not step another of its sequences by mistake."""
    stream = Stream(stubs)
    stream.ask(open=opening("victim-1"), inputs=[tensor([1])])
    assert stream.ask(open=opening(model="nothing")).error.reason == "MODEL_NOT_FOUND"
    assert stream.ask(inputs=[tensor([100])]).error.reason == "INVALID_REQUEST"
    assert stream.ask(session_id="unknown", inputs=[tensor([1])]).error.reason == "SESSION_NOT_FOUND"
    assert stream.ask(inputs=[tensor([100])]).error.reason == "INVALID_REQUEST"
    assert values(stream.ask(session_id="victim-1", inputs=[tensor([1])], close=True)) == [2.0]


def test_a_session_is_closed_once(stubs: Stubs) -> None:
    stream = Stream(stubs)
    stream.ask(open=opening("twice"))
    for _ in range(10):
        stream.send(inputs=[tensor(np.ones((500, 1)))])
    stream.send(close=True)
    stream.send(close=True)
    answers = [stream.read() for _ in range(12)]
    assert answers[10].closed.steps == 5000
    assert answers[11].error.reason == "SESSION_NOT_FOUND"


def test_a_message_that_is_none_ends_the_stream_with_a_reason(stubs: Stubs) -> None:
    raw: Any = stubs.channel.stream_stream("/recurra.v1.InferenceService/StreamSteps")
    with pytest.raises(grpc.RpcError) as caught:
        next(raw(iter([b"\xff\xff\xff"])))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error_info(caught.value).reason == "INVALID_REQUEST"


def test_a_first_message_must_name_a_session(stubs: Stubs) -> None:
    assert Stream(stubs).ask(inputs=[tensor([1])]).error.reason == "INVALID_REQUEST"


def test_a_session_outlives_its_stream(stubs: Stubs) -> None:
    stream = Stream(stubs)
    session_id = stream.ask(open=opening(), inputs=[tensor([1])]).session_id
    stream.call.cancel()
    assert values(Stream(stubs).ask(session_id=session_id, inputs=[tensor([1])], step=2)) == [2.0]


def test_replies_come_in_order_however_fast_the_caller_sends(stubs: Stubs) -> None:
    """Far more messages than the stream's window: the reader waits, nothing is refused or lost."""

    def requests() -> Iterator[Request]:
        yield Request(open=opening())
        for number in range(1, 2001):
            yield Request(inputs=[tensor([1])], step=number)

    responses = list(stubs.inference.StreamSteps(requests()))[1:]
    assert [response.result.step for response in responses] == list(range(1, 2001))
    assert values(responses[-1]) == [2000.0]


def test_a_caller_who_does_not_read_is_made_to_wait(server: ServerProcess, stubs: Stubs) -> None:
    """What is sent but not read must not pile up in the server, and waits instead of being refused."""
    refused, applied = refusals(server), [timesteps(server)]
    stream = Stream(stubs)
    stream.ask(open=opening())
    for _ in range(20_000):
        stream.send(inputs=[tensor(np.ones((500, 1)))])
    other = Stubs(server.target)
    session_id = other.sessions.OpenSession(opening()).session.session_id
    while len(applied) < 3 or applied[-1] > applied[-2]:  # until it goes no further
        for _ in range(200):  # gives the server time, by its own clock
            other.inference.Step(inference_pb2.StepRequest(session_id=session_id, inputs=[tensor([1])]))
        applied.append(timesteps(server) - 200 * len(applied))
    assert applied[-1] - applied[0] < 10_000 * 500
    assert refusals(server) == refused
    stream.call.cancel()


def test_a_caller_who_goes_away_cancels_what_was_not_run(stubs: Stubs) -> None:
    stream = Stream(stubs)
    session_id = stream.ask(open=opening(), inputs=[tensor([1])]).session_id
    for _ in range(20):
        stream.send(inputs=[tensor(np.zeros((500, 1)))])
    stream.call.cancel()
    again = Stream(stubs)
    response = again.ask(session_id=session_id, inputs=[tensor([1])])
    assert values(response) == [2.0]


def test_a_stream_that_ends_in_time_ends_well(stubs: Stubs) -> None:
    call = stubs.inference.StreamSteps(iter([Request(open=opening(), inputs=[tensor([1])])]), timeout=5.0)
    assert [values(response) for response in call] == [[1.0]]
    assert call.code() == grpc.StatusCode.OK


def timesteps(server: ServerProcess) -> float:
    value = server.metrics().get("recurra_timesteps_total", model="counter", version="1")
    assert value is not None
    return value


def refusals(server: ServerProcess) -> float:
    counts = [
        server.metrics().get("recurra_errors_total", reason="capacity", fault=fault) for fault in ("server", "other")
    ]
    return sum(count for count in counts if count is not None)


def test_refused_messages_leave_nothing_behind(server: ServerProcess, stubs: Stubs) -> None:
    """An error must not keep the message alive that it came from: large ones would fill the memory."""
    large = tensor(np.ones((2_000_000, 1)))
    stream, sizes = Stream(stubs), []
    session_id = stream.ask(open=opening()).session_id
    for _ in range(20):
        assert stream.ask(session_id=session_id, inputs=[large]).error.reason == "CHUNK_LENGTH"
        with pytest.raises(grpc.RpcError):
            stubs.inference.Step(inference_pb2.StepRequest(session_id=session_id, inputs=[large]))
        sizes.append(resident_bytes([server.pid]))
    assert max(sizes[4:]) < sizes[3] + (64 << 20), sizes
