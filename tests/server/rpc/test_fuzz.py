"""Whatever is sent over our own API is answered with an answer or a reason, and nobody else notices."""

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from recurra.v1 import inference_pb2, sessions_pb2, tensor_pb2
from recurra_server.rpc.status import CODES

from tests.support.fuzzing import CASES
from tests.support.openinference import error_of
from tests.support.server import ServerProcess
from tests.support.wire import Stream, Stubs, error_info, tensor

pytestmark = pytest.mark.e2e
_REASONS = {error.reason for error in CODES} - {"INTERNAL"}  # that would be a bug, whatever was sent
_CODES = {code for error, code in CODES.items() if error.reason != "INTERNAL"} | {grpc.StatusCode.CANCELLED}
_fuzz = settings(max_examples=CASES, suppress_health_check=[HealthCheck.function_scoped_fixture])

_ids = st.sampled_from(["", "fuzzed", "neighbour-of-nobody", "a b", "x" * 200, "\x00", "ä"])
_tensors = st.lists(
    st.builds(
        tensor_pb2.Tensor,
        name=st.sampled_from(["", "x", "y", "x" * 300, "\x00"]),
        dtype=st.sampled_from([0, 1, 2, 9, 99, -5]),
        shape=st.lists(st.sampled_from([0, 1, 2, 5, -1, 2**31, 2**63 - 1, -(2**63)]), max_size=10),
        data=st.binary(max_size=32),
    ),
    max_size=3,
)
_opening = st.builds(
    sessions_pb2.OpenSessionRequest,
    model=st.sampled_from(["counter", "lstm", "letters", "", "nothing"]),
    version=st.sampled_from(["", "9", "x"]),
    session_id=_ids,
    initial_states=_tensors,
)
_messages = st.builds(
    inference_pb2.StreamStepsRequest,
    session_id=_ids,
    open=st.one_of(st.none(), _opening),
    step=st.sampled_from([0, 1, 2, 2**64 - 1]),
    inputs=_tensors,
    close=st.booleans(),
)


class Neighbour:
    """A session that somebody else steps all the while."""

    def __init__(self, stubs: Stubs) -> None:
        self._stream = Stream(stubs)
        self._sum = 1
        first = self._stream.ask(open=sessions_pb2.OpenSessionRequest(model="counter"), inputs=[tensor([1])])
        assert first.result.step == 1

    def steps(self) -> None:
        """Step it: its sum must be right."""
        self._sum += 1
        (output,) = self._stream.ask(inputs=[tensor([1])]).result.outputs
        assert output.data == tensor([self._sum]).data


@pytest.fixture(scope="module")
def neighbour(server: ServerProcess) -> Iterator[Neighbour]:
    yield Neighbour(Stubs(server.target))
    assert not re.search("Traceback|unexpected|batch_failed|batch_not_made", server.output), server.output


@_fuzz
@given(messages=st.lists(_messages, min_size=1, max_size=4))
def test_any_messages_of_a_stream(
    stubs: Stubs, neighbour: Neighbour, messages: list[inference_pb2.StreamStepsRequest]
) -> None:
    answers = list(stubs.inference.StreamSteps(iter(messages)))
    assert len(answers) == len(messages), "one for each"
    for answer in answers:
        reason = answer.error.reason
        event(reason or "answered")
        assert reason in {"", *_REASONS}
    for session in {answer.session_id for answer in answers if answer.session_id}:
        close = sessions_pb2.CloseSessionRequest(session_id=session)
        error = error_of(lambda close=close: stubs.sessions.CloseSession(close))  # type: ignore[misc]
        assert error is None or error_info(error).reason in _REASONS
    neighbour.steps()


@st.composite
def torn(draw: st.DrawFn) -> bytes:
    """A message whose bytes were changed: lengths lie, fields are cut, types are wrong."""
    opening = sessions_pb2.OpenSessionRequest(model="counter")
    message = inference_pb2.StreamStepsRequest(open=opening, inputs=[tensor([[1], [2]])], close=True)
    data = bytearray(message.SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "flip", "insert"])):
            case "cut":
                del data[place : place + draw(st.integers(1, 8))]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=8))
            case _ if place < len(data):
                data[place] ^= draw(st.integers(1, 255))
    return bytes(data)


@_fuzz
@given(
    data=st.one_of(torn(), st.binary(max_size=200)),
    call=st.sampled_from(["StreamSteps", "Step", "StepBatch", "Predict", "Generate"]),
)
def test_any_bytes(stubs: Stubs, neighbour: Neighbour, data: bytes, call: str) -> None:
    kind = {"StreamSteps": "stream_stream", "Generate": "unary_stream"}.get(call, "unary_unary")
    ask: Any = getattr(stubs.channel, kind)(f"/recurra.v1.InferenceService/{call}")

    def go() -> None:
        answer = ask(iter([data]) if call == "StreamSteps" else data)
        for count, _ in enumerate(answer if kind != "unary_unary" else ()):
            if count == 20:  # enough of what may go on for long
                answer.cancel()

    error = error_of(go)
    event("answered" if error is None else error.code().name)
    assert error is None or error.code() in _CODES, error
    neighbour.steps()
