"""The load generator behind `recurra bench`: as many steps as a server takes, at as little cost here as can be.

What is the same in every message is made once: the requests are bytes, sent as they are, and so are the replies
received. Steps go unnumbered (just the next one). One coroutine runs each session.
"""

import asyncio
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from google.protobuf import duration_pb2
from grpc import StatusCode, aio
from recurra.v1 import inference_pb2, models_pb2, sessions_pb2, sessions_pb2_grpc, tensor_pb2

from recurra_client.errors import UnavailableError, from_rpc
from recurra_client.tensors import numpy_dtype

Api = Literal["stream", "unary", "batch"]

_SERVICE: Final = "/recurra.v1.InferenceService/"
_SESSION_ID_TAG: Final = 0x0A  # field 1 of StreamStepsResponse, length-delimited
_RESULT_TAG: Final = 0x12  # field 2 of it, and where a step has succeeded, the next
_REPORT_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """A load. Times are in seconds."""

    target: str
    model: models_pb2.Model
    api: Api = "stream"
    """Stream: a StreamSteps stream for each session. Unary: a call a step. Batch: all sessions in one StepBatch."""
    sessions: int = 1
    seconds: float = 5.0
    """How long it is measured, after the warm-up."""
    warmup: float = 0.5
    pace: float = 0.0
    """From one step of a session to its next (open loop); 0: as soon as the one before is answered (closed loop)."""
    chunk: int = 1
    """Steps in one message of a session."""
    connections: int = 0
    """TCP connections that the sessions share; 0: one each."""


@dataclass(slots=True)
class Outcome:
    """What came of a load."""

    steps: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds of processor time that the load generator itself took."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed messages by reason."""
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    """Of each message, in seconds. In an open loop, from when it was due."""


class Clock:
    """When measuring begins and ends; set once all sessions are open."""

    begin: float = float("inf")
    end: float = float("inf")

    def start(self, warmup: float, seconds: float) -> None:
        """Begin after the warm-up."""
        self.begin = time.perf_counter() + warmup
        self.end = self.begin + seconds


Exchange = Callable[[], Coroutine[Any, Any, Sequence[str]]]
"""Sends one message and awaits its reply; returns the reasons of what failed in it."""


async def run_load(plan: Plan, ready: Callable[[], None], progress: MutableSequence[int], index: int) -> Outcome:
    """Run a load to its end.

    Args:
        plan: The load.
        ready: Called in a thread once all sessions are open; loading begins when it returns.
        progress: Gets the number of messages answered so far, now and then.
        index: At this place.

    Raises:
        RecurraError: The sessions cannot be opened.
    """
    channels = [
        aio.insecure_channel(
            plan.target, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        )
        for _ in range(1 if plan.api == "batch" else plan.connections or plan.sessions)
    ]
    outcome, clock = Outcome(), Clock()
    opened: list[str] = []
    try:
        await _open_sessions(plan, channels[0], opened)
        if plan.api == "batch":
            exchanges = [_batch(plan, channels[0], opened)]
        else:
            make = _stream if plan.api == "stream" else _unary
            exchanges = [make(plan, channels[i % len(channels)], opened[i]) for i in range(plan.sessions)]
        for begin in range(0, len(exchanges), 64):  # the connections are made by the first message
            await _all(exchange() for exchange in exchanges[begin : begin + 64])
        await asyncio.to_thread(ready)
        clock.start(plan.warmup, plan.seconds)
        reporter = asyncio.create_task(_report(outcome, progress, index))
        cpu = time.process_time()
        await _all(_drive(exchange, plan.pace, clock, outcome) for exchange in exchanges)
        outcome.cpu = time.process_time() - cpu
        outcome.seconds = time.perf_counter() - clock.begin
        reporter.cancel()
        outcome.steps = len(outcome.latencies) * plan.chunk * (plan.sessions if plan.api == "batch" else 1)
        outcome.steps -= sum(outcome.errors.values()) * plan.chunk
    except aio.AioRpcError as error:
        raise from_rpc(error) from None
    finally:
        await _close_sessions(channels[0], opened)
        for channel in channels:
            await channel.close()
    return outcome


async def _all(work: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Await all; where one fails, cancel the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in work:
                group.create_task(coroutine)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _drive(exchange: Exchange, pace: float, clock: Clock, outcome: Outcome) -> None:
    """Send one message after another until the time is up."""
    perf_counter, latencies, errors = time.perf_counter, outcome.latencies, outcome.errors
    due = perf_counter() + random.uniform(0, pace)
    while True:
        began = perf_counter()
        if pace:
            if began < due:
                await asyncio.sleep(due - began)
                began = perf_counter()  # that a timer is late is not the server's doing
            else:
                began = due  # but that the reply before was late is: the step has been waiting since
            due += pace
        if began >= clock.end:
            return
        reasons = await exchange()
        if began >= clock.begin:
            latencies.append(perf_counter() - began)
            if reasons:
                errors.update(reasons)


def _stream(plan: Plan, channel: aio.Channel, session_id: str) -> Exchange:
    call: Any = channel.stream_stream(_SERVICE + "StreamSteps")()
    first = inference_pb2.StreamStepsRequest(session_id=session_id, inputs=_inputs(plan)).SerializeToString()
    following = inference_pb2.StreamStepsRequest(inputs=_inputs(plan)).SerializeToString()  # the session is known
    message = first
    result_at = len(session_id) + 2

    async def exchange() -> Sequence[str]:
        nonlocal message
        await call.write(message)
        message = following
        reply = await call.read()
        while reply is not aio.EOF:
            if reply[0] == _SESSION_ID_TAG and reply[result_at] == _RESULT_TAG:
                return ()
            decoded = inference_pb2.StreamStepsResponse.FromString(reply)
            if not decoded.HasField("moving"):
                return [decoded.error.reason] if decoded.HasField("error") else ()
            reply = await call.read()
        raise UnavailableError("the server ended the stream", reason="UNAVAILABLE", code=StatusCode.UNAVAILABLE)

    return exchange


def _unary(plan: Plan, channel: aio.Channel, session_id: str) -> Exchange:
    step: Any = channel.unary_unary(_SERVICE + "Step")
    message = inference_pb2.StepRequest(session_id=session_id, inputs=_inputs(plan)).SerializeToString()

    async def exchange() -> Sequence[str]:
        try:
            await step(message)
        except aio.AioRpcError as error:
            return [from_rpc(error).reason]
        return ()

    return exchange


def _batch(plan: Plan, channel: aio.Channel, session_ids: list[str]) -> Exchange:
    step_batch: Any = channel.unary_unary(
        _SERVICE + "StepBatch", response_deserializer=inference_pb2.StepBatchResponse.FromString
    )
    inputs = _inputs(plan, len(session_ids))
    message = inference_pb2.StepBatchRequest(session_ids=session_ids, inputs=inputs).SerializeToString()

    async def exchange() -> Sequence[str]:
        try:
            reply = await step_batch(message)
        except aio.AioRpcError as error:
            return [from_rpc(error).reason] * len(session_ids)
        return [row.error.reason for row in reply.errors]

    return exchange


def _inputs(plan: Plan, rows: int | None = None) -> list[tensor_pb2.Tensor]:
    """Inputs such as the model takes: normally distributed, or zero where they are whole numbers."""
    generator = np.random.default_rng(0)
    tensors = []
    for spec in plan.model.inputs:
        leading = [*([rows] if rows is not None else []), *([plan.chunk] if plan.chunk > 1 else [])]
        shape = [*leading, *spec.dims]
        dtype = numpy_dtype(spec.dtype)
        values = generator.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        name = spec.name if len(plan.model.inputs) > 1 else ""
        tensors.append(tensor_pb2.Tensor(name=name, shape=shape, data=values.astype(dtype).tobytes()))
    return tensors


async def _open_sessions(plan: Plan, channel: aio.Channel, opened: list[str]) -> None:
    """Open the sessions, and add their ids to `opened`."""
    stub = sessions_pb2_grpc.SessionsServiceStub(channel)
    # Should this process be killed, they do not stay for long.
    timeout = duration_pb2.Duration(seconds=30 + int(plan.seconds + plan.warmup + 10 * plan.pace))
    request = sessions_pb2.OpenSessionRequest(model=plan.model.name, version=plan.model.version, idle_timeout=timeout)
    while len(opened) < plan.sessions:
        calls = [stub.OpenSession(request) for _ in range(min(256, plan.sessions - len(opened)))]
        for call in calls:
            opened.append((await call).session.session_id)  # noqa: PERF401 - known even if a later one fails


async def _close_sessions(channel: aio.Channel, session_ids: list[str]) -> None:
    stub = sessions_pb2_grpc.SessionsServiceStub(channel)
    for begin in range(0, len(session_ids), 256):
        calls = [
            stub.CloseSession(sessions_pb2.CloseSessionRequest(session_id=session_id), timeout=5)
            for session_id in session_ids[begin : begin + 256]
        ]
        await asyncio.gather(*calls, return_exceptions=True)


async def _report(outcome: Outcome, progress: MutableSequence[int], index: int) -> None:
    while True:
        progress[index] = len(outcome.latencies)
        await asyncio.sleep(_REPORT_SECONDS)
