"""What somebody can make the server spend: each bound on messages, and what comes back beyond it."""

import grpc
import numpy as np
import pytest
from recurra.v1.inference_pb2 import (
    PredictRequest,
    StepBatchRequest,
    StepBatchResponse,
    StepRequest,
    StreamStepsRequest,
    StreamStepsResponse,
)
from recurra.v1.sessions_pb2 import OpenSessionRequest
from recurra.v1.tensor_pb2 import DATA_TYPE_FLOAT32, Tensor

from tests.security.conftest import MIB, failure, memory, refused, wait_until
from tests.support.attacks import Attack
from tests.support.openinference import InferStream, request
from tests.support.server import ServerProcess
from tests.support.wire import Stream, Stubs, error_info, tensor

pytestmark = pytest.mark.usefixtures("_serves_on")


def test_a_message_over_the_bound_is_refused(stubs: Stubs, attack: Attack) -> None:
    request = StepRequest(session_id="a", inputs=[Tensor(data=bytes(MIB + 1))])
    assert refused(lambda: stubs.inference.Step(request)) == "RESOURCE_EXHAUSTED"
    attack("gRPC port", "a message over --max-message-mb", "RESOURCE_EXHAUSTED")


LYING: dict[str, Tensor] = {
    "a shape of 2^62 elements": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[1 << 62], data=bytes(4)),
    "a shape whose product overflows": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[1 << 32, 1 << 32], data=bytes(4)),
    "a negative shape": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[-1, 1], data=bytes(4)),
    "more bytes than the shape says": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[1], data=bytes(4096)),
    "fewer bytes than the shape says": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[64, 1], data=bytes(8)),
    "a hundred axes": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[1] * 100, data=bytes(4)),
    "a chunk over the bound": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[65, 1], data=bytes(260)),
    "a dtype that does not exist": Tensor(dtype=99, shape=[1], data=bytes(4)),  # type: ignore[arg-type]
    "a name of 100,000 characters": Tensor(name="x" * 100_000, shape=[1], data=bytes(4)),
}


@pytest.mark.parametrize("tried", LYING)
def test_a_tensor_that_lies_is_refused_before_memory_is_spent(
    bounded: ServerProcess, stubs: Stubs, tried: str, attack: Attack
) -> None:
    session_id = stubs.sessions.OpenSession(OpenSessionRequest(model="counter")).session.session_id
    before = memory(bounded)
    error = failure(lambda: stubs.inference.Step(StepRequest(session_id=session_id, inputs=[LYING[tried]])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(error.details()) < 1000
    assert memory(bounded) - before < 16 * MIB
    attack("gRPC port", f"a tensor with {tried}", "INVALID_ARGUMENT")


def test_an_answer_that_would_be_too_large_is_refused_before_memory_is_spent(
    bounded: ServerProcess, stubs: Stubs, attack: Attack
) -> None:
    session_id = stubs.sessions.OpenSession(OpenSessionRequest(model="wide")).session.session_id
    stream = Stream(stubs)

    def batch(steps: int) -> StepBatchResponse:
        """One row that is there, and seven that are not."""
        ids = [session_id, *(f"absent-{row}" for row in range(7))]
        return stubs.inference.StepBatch(StepBatchRequest(session_ids=ids, inputs=[tensor(np.ones((8, steps, 1)))]))

    def streamed(steps: int) -> StreamStepsResponse:
        return stream.ask(session_id=session_id, inputs=[tensor(np.ones((steps, 1)))])

    chunk = [tensor(np.ones((64, 1)))]  # answered with 80,000 bytes each
    before = memory(bounded)
    for call in (
        lambda: batch(64),
        lambda: stubs.inference.Step(StepRequest(session_id=session_id, inputs=chunk)),
        lambda: stubs.inference.Predict(PredictRequest(model="wide", inputs=chunk, last_only=True)),
        lambda: stubs.open_inference.ModelInfer(request(np.ones((64, 1)), model="wide")),
    ):
        assert refused(call) == "INVALID_ARGUMENT INVALID_REQUEST"
    assert streamed(64).error.reason == "INVALID_REQUEST"
    assert memory(bounded) - before < 4 * MIB
    assert len(streamed(32).result.outputs[0].data) == 32 * 80_000
    assert len(batch(6).outputs[0].data) == 8 * 6 * 80_000
    stream.end()
    attack(
        "gRPC port", "few bytes that ask for an answer over --max-answer-mb, of sessions or of none", "INVALID_ARGUMENT"
    )


def test_a_stream_opens_no_more_sessions_than_it_may(stubs: Stubs, attack: Attack) -> None:
    stream = Stream(stubs)
    opened = [stream.ask(open=OpenSessionRequest(model="counter")).opened.session_id for _ in range(3)]
    refusal = stream.ask(open=OpenSessionRequest(model="counter")).error
    assert (refusal.reason, refusal.metadata["bound"]) == ("CAPACITY", "max_sessions_per_stream")
    assert refusal.retry_after.ToMilliseconds() == 1000
    stream.ask(session_id=opened[0], close=True)
    assert stream.ask(open=OpenSessionRequest(model="counter")).opened.session_id
    stream.end()
    attack("gRPC port", "more sessions on a stream than --max-sessions-per-stream", "RESOURCE_EXHAUSTED CAPACITY")


def test_a_stream_begins_no_more_sequences_than_it_may(stubs: Stubs, attack: Attack) -> None:
    stream, another = InferStream(stubs.open_inference), InferStream(stubs.open_inference)

    def begun(stream: InferStream, sequence: str) -> str:
        """What its beginning is refused with, if it is."""
        answer = stream.ask(request([[1.0]], sequence=sequence, start=True))
        return answer.infer_response.parameters["reason"].string_param

    names = [f"bounded-{n}" for n in range(5)]
    assert [begun(stream, name) for name in names] == ["", "", "", "CAPACITY", "CAPACITY"]
    assert begun(stream, names[0]) == "", "there are no more of them when one begins anew"
    assert begun(another, names[3]) == ""
    stream.step(1, sequence=names[0], end=True)
    assert begun(stream, names[4]) == ""
    for name in names[1:]:
        stream.step(1, sequence=name, end=True)
    attack(
        "gRPC port",
        "more sequences on a ModelStreamInfer than --max-sessions-per-stream",
        "RESOURCE_EXHAUSTED CAPACITY",
    )


def test_bounds_are_told(stubs: Stubs) -> None:
    chunk = [tensor(np.ones((65, 1)))]
    session_id = stubs.sessions.OpenSession(OpenSessionRequest(model="counter")).session.session_id
    error = failure(lambda: stubs.inference.Step(StepRequest(session_id=session_id, inputs=chunk)))
    assert error_info(error).metadata["limit"] == "64"


def test_ten_thousand_abandoned_sessions_leave_nothing_behind(bounded: ServerProcess, attack: Attack) -> None:
    def abandon() -> None:
        opening = OpenSessionRequest(model="counter")
        opening.idle_timeout.FromMilliseconds(200)
        for _ in range(10):
            stubs = Stubs(bounded.target)
            stream = stubs.inference.StreamSteps(iter([StreamStepsRequest(open=opening)] * 3))
            assert [answer.opened.model for answer in stream] == ["counter"] * 3
            for _ in range(997):
                assert stubs.sessions.OpenSession(opening).session.session_id
            stubs.channel.close()

    def left() -> tuple[float, float]:
        samples = bounded.metrics()
        sessions, tasks = samples.get("recurra_sessions", model="counter", version="1"), samples.get("recurra_tasks")
        assert tasks, "the server has some of its own"
        return sessions or 0.0, tasks

    def all_gone() -> bool:
        sessions, tasks = left()
        return sessions <= sessions_before and tasks <= tasks_before

    sessions_before, tasks_before = left()
    abandon()
    assert wait_until(all_gone)
    after_first = memory(bounded)
    abandon()
    assert wait_until(all_gone)
    assert memory(bounded) - after_first < 8 * MIB
    attack(
        "gRPC port",
        "10,000 sessions opened and abandoned, twice",
        "all expired; no task left; resident memory as before",
    )
