"""The load generator behind `recurra bench`: as many steps as a server takes, at as little cost here as can be.

What is the same in every message is made once: the requests are bytes, sent as they are, and so are the replies
received. Steps go unnumbered (just the next one). A session costs no coroutine: its next message is sent
from where its reply arrives.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, MutableSequence
from typing import Any, Final

import numpy as np
from google.protobuf import duration_pb2
from grpc import aio
from recurra.v1 import inference_pb2, sessions_pb2, sessions_pb2_grpc, tensor_pb2

from recurra_client.errors import from_rpc
from recurra_client.load import lanes
from recurra_client.load.lanes import Lane, StreamLane, UnaryLane
from recurra_client.load.loops import once, run_lanes
from recurra_client.load.outcome import Outcome, Plan
from recurra_client.load.wire import WireConnection
from recurra_client.tensors import numpy_dtype

_REPORT_SECONDS: Final = 0.2
_AT_ONCE: Final = 64  # connections and first messages: what a server's listening queue takes


async def run_load(plan: Plan, ready: Callable[[], None], progress: MutableSequence[int], index: int) -> Outcome:
    """Run a load to its end.

    Args:
        plan: The load.
        ready: Called in a thread once all sessions are open; loading begins when it returns.
        progress: Gets the number of messages answered so far, now and then.
        index: At this place.

    Raises:
        RecurraError: The sessions cannot be opened.
        StreamEndedError: The server ended a stream or closed a connection.
        OSError: The server cannot be reached.
    """
    channel = aio.insecure_channel(plan.target, options=[("grpc.use_local_subchannel_pool", 1)])
    connections: list[WireConnection] = []
    opened: list[str] = []
    outcome = Outcome()
    try:
        await _open_sessions(plan, channel, opened)
        count = 1 if plan.api == "batch" else plan.connections or plan.sessions
        for begin in range(0, count, _AT_ONCE):
            some = range(begin, min(begin + _AT_ONCE, count))
            connections += await asyncio.gather(*(WireConnection.connect(plan.target) for _ in some))
        senders = _lanes(plan, connections, opened)
        for begin in range(0, len(senders), _AT_ONCE):
            await _all(once(lane) for lane in senders[begin : begin + _AT_ONCE])
        await asyncio.to_thread(ready)
        reporter = asyncio.create_task(_report(outcome, progress, index))
        try:
            await run_lanes(senders, warmup=plan.warmup, seconds=plan.seconds, pace=plan.pace, outcome=outcome)
        finally:
            reporter.cancel()
        outcome.steps = len(outcome.latencies) * plan.chunk * (plan.sessions if plan.api == "batch" else 1)
        outcome.steps -= sum(outcome.errors.values()) * plan.chunk
    except aio.AioRpcError as error:
        raise from_rpc(error) from None
    finally:
        for connection in connections:
            connection.close()
        await _close_sessions(channel, opened)
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


def _lanes(plan: Plan, connections: list[WireConnection], session_ids: list[str]) -> list[Lane]:
    if plan.api == "batch":
        request = inference_pb2.StepBatchRequest(session_ids=session_ids, inputs=_inputs(plan, len(session_ids)))
        return [UnaryLane(connections[0], lanes.BATCH, request.SerializeToString(), lanes.batch_judge, plan.sessions)]
    inputs = _inputs(plan)
    following = inference_pb2.StreamStepsRequest(inputs=inputs).SerializeToString()  # the session is known
    senders: list[Lane] = []
    for i, session_id in enumerate(session_ids):
        connection = connections[i % len(connections)]
        if plan.api == "unary":
            message = inference_pb2.StepRequest(session_id=session_id, inputs=inputs).SerializeToString()
            senders.append(UnaryLane(connection, lanes.UNARY, message, lanes.always_well))
        else:
            first = inference_pb2.StreamStepsRequest(session_id=session_id, inputs=inputs).SerializeToString()
            judge = lanes.stream_judge(session_id)
            senders.append(StreamLane(connection, lanes.STREAM, first, following, judge))
    return senders


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
