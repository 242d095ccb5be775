"""Steps on their way to a server that breaks off and is taken over: none is lost without a word or counted twice."""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio
from recurra.v1 import error_pb2, inference_pb2, sessions_pb2
from recurra_client import (
    CapacityError,
    DeadlineExceededError,
    ForbiddenError,
    ModelNotFoundError,
    RecurraError,
    StepGapError,
    StepNotHeldError,
    UnauthenticatedError,
    UnavailableError,
)
from recurra_client.connection import Connection
from recurra_client.delivery import Delivered, Delivery
from recurra_client.tensors import to_tensor

_Response = inference_pb2.StreamStepsResponse


def status(code: grpc.StatusCode) -> aio.AioRpcError:
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details="by a proxy")


class Server:
    """Numbers the steps of one session as a server does.

    Attributes:
        steps: What it has applied.
        durable: How many of them are in the store.
        keeps: Whether it keeps replies.
        breaks: What the stream ends with instead of the next answers.
        refusals: What the next messages are answered with, unread.
        resets_unanswered: How many resets will be done and not answered.
        reset_trouble, asking_trouble: What the next reset, or question how far it is, ends with instead.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.durable = 0
        self.keeps = True
        self.breaks: list[Any] = []
        self.refusals: list[Any] = []
        self.resets_unanswered = 0
        self.reset_trouble: Any = None
        self.asking_trouble: Any = None
        self._kept = 0

    def is_taken_over(self) -> None:
        """Another goes on from the store."""
        del self.steps[self.durable :]
        self._kept = 0

    def answer(self, request: inference_pb2.StreamStepsRequest) -> Any:
        """What is read from the stream next."""
        if self.refusals and not self.breaks:
            return self.refusals.pop()
        answer = self._answer(request)
        return self.breaks.pop() if self.breaks else answer

    def _answer(self, request: inference_pb2.StreamStepsRequest) -> _Response:
        expected = len(self.steps) + 1
        if request.step > expected:
            return _refused("STEP_GAP", expected)
        if request.step < expected:
            if request.step != self._kept:
                return _refused("STEP_NOT_HELD", expected)
            return self._result(request.step, replayed=True)
        self.steps.append(float(np.frombuffer(request.inputs[0].data, np.float32)[0]))
        self._kept = expected if self.keeps else 0
        return self._result(expected, replayed=False)

    async def reset_session(self, _: sessions_pb2.ResetSessionRequest, **__: Any) -> sessions_pb2.ResetSessionResponse:
        """Begin anew, which is durable then."""
        trouble, self.reset_trouble = self.reset_trouble, None
        if trouble is not None:
            raise trouble
        self.steps.clear()
        self.durable = self._kept = 0
        if self.resets_unanswered:
            self.resets_unanswered -= 1
            raise unavailable()
        return sessions_pb2.ResetSessionResponse()

    async def get_session(self, request: sessions_pb2.GetSessionRequest, **_: Any) -> sessions_pb2.GetSessionResponse:
        """How far it is."""
        trouble, self.asking_trouble = self.asking_trouble, None
        if trouble is not None:
            raise trouble
        if request.after_step > len(self.steps):
            raise StepGapError(
                "",
                reason="STEP_GAP",
                code=grpc.StatusCode.FAILED_PRECONDITION,
                metadata={"expected_step": str(len(self.steps) + 1)},
            )
        return sessions_pb2.GetSessionResponse(session=sessions_pb2.Session(steps=len(self.steps)))

    def _result(self, step: int, *, replayed: bool) -> _Response:
        result = inference_pb2.StepResult(step=step, replayed=replayed, durable_step=self.durable)
        return _Response(result=result)


class Stream:
    """A StreamSteps call to it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._answer: Any = aio.EOF

    async def write(self, request: inference_pb2.StreamStepsRequest) -> None:
        self._answer = self._server.answer(request)

    async def read(self) -> Any:
        answer, self._answer = self._answer, aio.EOF
        if isinstance(answer, Exception):
            raise answer
        return answer

    def cancel(self) -> None:
        pass


def _refused(reason: str, expected: int) -> _Response:
    code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
    return _Response(error=error_pb2.Error(code=code, reason=reason, metadata={"expected_step": str(expected)}))


def delivery_to(server: Server, *, durable: bool = False, reconnect: float = 1.0) -> Delivery:
    connection: Any = Connection("nowhere:1", timeout=5.0, reconnect=reconnect, keepalive=None, credentials=None)
    connection.inference = SimpleNamespace(StreamSteps=lambda **_: Stream(server))
    connection.sessions = SimpleNamespace(GetSession=server.get_session, ResetSession=server.reset_session)
    return Delivery(connection, "a", 0, route="a", durable=durable)


async def send(delivery: Delivery, value: float) -> Delivered:
    return await delivery.deliver([to_tensor(np.array([value], np.float32))])


def unavailable() -> UnavailableError:
    return UnavailableError("away", reason="UNAVAILABLE", code=grpc.StatusCode.UNAVAILABLE)


async def test_a_generation_that_meets_a_dead_server_loses_no_steps_that_were_answered() -> None:
    """How far the session is must be asked then, and who has it now may not be as far as it was."""
    server = Server()
    delivery = delivery_to(server, durable=True)
    for value in (1, 2, 3):
        await send(delivery, value)
    server.durable = 1
    with suppress(UnavailableError):
        async with delivery.standstill(changes=True):  # as `Client.generate` does; nothing was generated
            raise unavailable()
    server.is_taken_over()
    async with delivery.standstill() as applied:
        assert applied == 3, "what a fork or an export must have in it"
    assert (await send(delivery, 4)).result.step == 4
    assert server.steps == [1, 2, 3, 4]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_the_status_of_a_stream_is_no_answer_to_a_step(code: grpc.StatusCode) -> None:
    server = Server()
    delivery = delivery_to(server)
    server.breaks = [status(code)]
    assert (await send(delivery, 1)).result.replayed
    server.breaks = [status(code), status(code)]
    with pytest.raises(StepNotHeldError, match=r"step 2 is applied and its output is lost: .* by a proxy"):
        await send(delivery, 2)
    assert not (await send(delivery, 3)).result.replayed, "that was the reply to another"
    assert server.steps == [1, 2, 3]


CAPACITY = _Response(error=error_pb2.Error(code=8, reason="CAPACITY", retry_after=Duration(nanos=1)))
MOVED = _Response(error=error_pb2.Error(code=14, reason="SESSION_MOVED"))
FOREVER = _Response(error=error_pb2.Error(code=8, reason="CAPACITY"))
REFUSALS = [
    pytest.param(CAPACITY, CapacityError, id="no room"),
    pytest.param(FOREVER, CapacityError, id="no room ever"),
    pytest.param(_Response(error=error_pb2.Error(code=5, reason="MODEL_NOT_FOUND")), ModelNotFoundError, id="no model"),
    pytest.param(status(grpc.StatusCode.RESOURCE_EXHAUSTED), RecurraError, id="too large"),
    pytest.param(status(grpc.StatusCode.UNAUTHENTICATED), UnauthenticatedError, id="no token"),
    pytest.param(status(grpc.StatusCode.PERMISSION_DENIED), ForbiddenError, id="not allowed"),
]
STAYS = (UnavailableError, DeadlineExceededError, UnauthenticatedError, ForbiddenError)


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "not applied"])
@pytest.mark.parametrize(("refusal", "error"), REFUSALS)
async def test_what_refuses_a_second_attempt_says_nothing_of_the_first(
    refusal: Any, error: type[RecurraError], applied: bool
) -> None:
    """Whoever does as the documents say after each error has every reading counted once."""
    server = Server()
    delivery = delivery_to(server)
    await send(delivery, 1)
    server.refusals = [refusal] * 2
    server.breaks = [aio.EOF] if applied else []
    if not applied:
        server.refusals.append(aio.EOF)
    to_send, told = [2.0, 3.0, 4.0], set[type[Exception]]()
    while to_send:
        try:
            await send(delivery, to_send[0])
        except (*STAYS, StepNotHeldError) as trouble:  # go on with the next
            told.add(type(trouble))
            to_send.pop(0)
        except error as trouble:  # it is not applied, so send it again
            told.add(type(trouble))
        else:
            to_send.pop(0)
    assert server.steps == [1, 2, 3, 4]
    assert (StepNotHeldError in told) == (applied and error not in STAYS)


@pytest.mark.parametrize(("refusal", "error"), [each for each in REFUSALS if each.id in ("no room", "no token")])
async def test_what_passes_takes_no_steps_away_that_stay_in_the_sequence(
    refusal: Any, error: type[RecurraError]
) -> None:
    server = Server()
    delivery = delivery_to(server, reconnect=0)
    server.refusals = [aio.EOF] * 3
    for value in (1, 2, 3):
        with pytest.raises(UnavailableError):
            await send(delivery, value)
    server.refusals = [refusal] * 2
    with pytest.raises(error):
        await send(delivery, 4)
    server.refusals.clear()
    if error is CapacityError:
        await send(delivery, 4)  # as it was not applied
    await send(delivery, 5)
    assert server.steps == [1, 2, 3, 4, 5]


async def test_a_step_that_will_never_have_room_holds_up_none_behind_it() -> None:
    server = Server()
    delivery = delivery_to(server, reconnect=0)
    server.refusals = [aio.EOF]
    with pytest.raises(UnavailableError):
        await send(delivery, 1)
    server.refusals = [FOREVER] * 2
    await send(delivery, 2)
    assert server.steps == [2]


async def test_a_step_whose_time_ran_out_on_its_way_stays_in_the_sequence() -> None:
    server = Server()
    delivery = delivery_to(server)
    server.breaks = [status(grpc.StatusCode.DEADLINE_EXCEEDED)]
    with pytest.raises(DeadlineExceededError):
        await send(delivery, 1)
    assert not (await send(delivery, 2)).result.replayed
    assert server.steps == [1, 2]


async def test_a_session_goes_on_after_a_step_whose_reply_is_not_held() -> None:
    """Its output is lost, which is told once; those after it are not refused for that."""
    server = Server()
    server.keeps = False  # its caller has no room for it
    delivery = delivery_to(server)
    server.breaks = [aio.EOF]
    with pytest.raises(StepNotHeldError):
        await send(delivery, 1)
    assert (await send(delivery, 2)).result.step == 2
    assert server.steps == [1, 2]


async def test_a_step_whose_number_was_asked_for_is_not_taken_for_anothers_once_it_was_sent() -> None:
    server = Server()
    server.keeps = False
    delivery = delivery_to(server)
    async with delivery.standstill(changes=True):
        pass
    server.breaks = [aio.EOF]
    with pytest.raises(StepNotHeldError):
        await send(delivery, 1)
    await send(delivery, 2)
    assert server.steps == [1, 2]


async def test_what_was_sent_before_a_reset_is_not_sent_again_after_it() -> None:
    """Though nobody knows whether it was done: so it is done again before the next step."""
    server = Server()
    delivery = delivery_to(server, durable=True, reconnect=0)
    for value in (1, 2, 3):
        await send(delivery, value)
    server.durable = 3
    for value in (4, 5):
        await send(delivery, value)
    server.resets_unanswered = 1
    with pytest.raises(UnavailableError):
        await delivery.reset()
    assert delivery.applied == 0
    for value in (11, 12, 13, 14):
        await send(delivery, value)
    server.durable = 3
    server.is_taken_over()
    await send(delivery, 15)
    assert server.steps == [11, 12, 13, 14, 15]


async def test_what_is_told_of_a_reset_takes_the_step_behind_it_out_of_the_line() -> None:
    """As the documents say of such an error that the step was not applied, and may be sent again."""
    server = Server()
    delivery = delivery_to(server, reconnect=0)
    server.resets_unanswered = 1
    with pytest.raises(UnavailableError):
        await delivery.reset()
    server.reset_trouble = status(grpc.StatusCode.UNKNOWN)
    with pytest.raises(RecurraError, match="by a proxy"):
        await send(delivery, 1)
    await send(delivery, 1)
    assert server.steps == [1]


async def test_a_message_that_says_unavailable_is_no_answer() -> None:
    """A SYNC step is applied and waits for the store when another server takes the session over."""
    server = Server()
    delivery = delivery_to(server)
    server.breaks = [MOVED]
    server.refusals = [CAPACITY, CAPACITY]
    with pytest.raises(StepNotHeldError):
        await send(delivery, 1)
    assert not (await send(delivery, 2)).result.replayed, "that was the reply to another"
    assert server.steps == [1, 2]


async def test_a_step_stays_in_the_sequence_where_its_number_cannot_be_asked() -> None:
    server = Server()
    delivery = delivery_to(server, reconnect=0)
    async with delivery.standstill(changes=True):
        pass
    for value in (1, 2):
        server.asking_trouble = status(grpc.StatusCode.UNKNOWN)
        with pytest.raises(UnavailableError, match="cannot be asked: by a proxy"):
            await send(delivery, value)
    await send(delivery, 3)
    assert server.steps == [1, 2, 3]
