"""What was answered costs a server nothing afterwards, in whichever way it was asked for."""

import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from recurra.v1 import inference_pb2, sessions_pb2

from benchmarks.processes import resident_bytes
from tests.support import models
from tests.support.openinference import InferStream, request, service
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, tensor

_WIDTH = 20_000  # numbers in an answer
_ANSWERS = 800
_ALL = _ANSWERS * _WIDTH * 4  # bytes
Ask = Callable[[], object]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "wide", models.feed_forward(1, _WIDTH))
    with running_server(root) as server:
        yield server


def opened(stubs: Stubs) -> str:
    return stubs.sessions.OpenSession(sessions_pb2.OpenSessionRequest(model="wide")).session.session_id


def steps_of_a_stream(stubs: Stubs) -> Ask:
    stream = Stream(stubs)
    stream.ask(open=sessions_pb2.OpenSessionRequest(model="wide"))
    return lambda: stream.ask(inputs=[tensor([1.0])]).result.outputs[0].data


def chunks_of_a_stream(stubs: Stubs) -> Ask:
    stream = Stream(stubs)
    stream.ask(open=sessions_pb2.OpenSessionRequest(model="wide"))
    return lambda: stream.ask(inputs=[tensor([[1.0]])]).result.outputs[0].data


def calls(stubs: Stubs) -> Ask:
    message = inference_pb2.StepRequest(session_id=opened(stubs), inputs=[tensor([1.0])])
    return lambda: stubs.inference.Step(message).result.outputs[0].data


def batches(stubs: Stubs) -> Ask:
    message = inference_pb2.StepBatchRequest(session_ids=[opened(stubs)], inputs=[tensor([[1.0]])])
    return lambda: stubs.inference.StepBatch(message).outputs[0].data


def open_inference_stream(stubs: Stubs) -> Ask:
    stream = InferStream(service(stubs.channel))
    return lambda: stream.ask(request([[1.0]], model="wide", sequence=1, start=True)).infer_response.raw_output_contents


def open_inference_calls(stubs: Stubs) -> Ask:
    infer = service(stubs.channel)
    return lambda: infer.ModelInfer(request([[1.0]], model="wide", sequence=2, start=True)).raw_output_contents


@pytest.mark.parametrize(
    "way",
    [steps_of_a_stream, chunks_of_a_stream, calls, batches, open_inference_stream, open_inference_calls],
    ids=lambda way: way.__name__,
)
def test_answers_that_were_given_take_no_memory(wide: ServerProcess, way: Callable[[Stubs], Ask]) -> None:
    stubs = Stubs(wide.target)
    with stubs.channel:
        ask = way(stubs)
        for _ in range(100):
            assert ask()
        before = resident_bytes([wide.pid])
        for _ in range(_ANSWERS):
            ask()
        assert resident_bytes([wide.pid]) - before < _ALL / 4


@pytest.mark.parametrize(
    ("method", "empty_input"),
    [
        ("recurra.v1.InferenceService/StreamSteps", b"\x1a\x00"),
        ("inference.GRPCInferenceService/ModelStreamInfer", b"\x2a\x00"),
    ],
)
def test_a_stream_that_waits_for_its_next_message_keeps_nothing_of_the_last(
    wide: ServerProcess, method: str, empty_input: bytes
) -> None:
    """Of a MiB, as what it says takes 40 times that."""
    stubs, message = Stubs(wide.target), empty_input * (1 << 19)
    with stubs.channel:
        before = resident_bytes([wide.pid])
        streams: list[tuple[queue.SimpleQueue[bytes | None], Any]] = []
        for _ in range(10):
            requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            stream: Any = stubs.channel.stream_stream(f"/{method}")
            streams.append((requests, stream(iter(requests.get, None))))
            requests.put(message)
            assert next(streams[-1][1]), "it is refused, and the stream goes on"
        assert resident_bytes([wide.pid]) - before < 150 << 20
        for requests, _ in streams:
            requests.put(None)
