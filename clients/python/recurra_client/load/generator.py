"""The load generator behind `recurra bench`: as many steps as a server takes, at as little cost here as can be.

What is the same in every message is made once: the requests are bytes, sent as they are, and so are the replies
received. Steps go unnumbered (just the next one). A session costs no coroutine: its next message is sent
from where its reply arrives.
"""

import asyncio
from collections.abc import Callable, MutableSequence
from typing import Final
from uuid import uuid4

import numpy as np
from google.protobuf import duration_pb2
from recurra.v1 import inference_pb2, sessions_pb2, tensor_pb2

from recurra_client.load import judges, lanes
from recurra_client.load.lanes import Lane, StreamLane, UnaryLane
from recurra_client.load.loops import Timing, close_all, nothing, open_all, run_closed
from recurra_client.load.outcome import Outcome, Plan
from recurra_client.load.paced import run_paced
from recurra_client.load.wire import WireConnection
from recurra_client.tensors import numpy_dtype

_REPORT_SECONDS: Final = 0.2
_AT_ONCE: Final = 64  # connections: what a server's listening queue takes


async def run_load(
    plan: Plan,
    ready: Callable[[], None],
    progress: MutableSequence[int],
    index: int,
    began: Callable[[], None] = nothing,
) -> Outcome:
    """Run a load to its end.

    Args:
        plan: The load.
        ready: Called in a thread before loading begins, which it does when it returns.
        progress: Gets the number of messages answered so far, now and then.
        index: At this place.
        began: Called when measuring begins.

    Raises:
        RefusedError: The server opens no session.
        StreamEndedError: The server ended a stream or closed a connection.
        OSError: The server cannot be reached, or does not answer.
    """
    outcome = Outcome()
    connections: list[WireConnection] = []
    senders: list[Lane] = []
    reporter = asyncio.create_task(_report(outcome, progress, index))
    try:
        count = plan.in_flight if plan.api == "batch" else plan.connections or plan.sessions
        encryption = None if plan.tls is None else plan.tls.context()
        for begin in range(0, count, _AT_ONCE):
            some = range(begin, min(begin + _AT_ONCE, count))
            connections += await asyncio.gather(
                *(WireConnection.connect(plan.target, encryption, plan.token) for _ in some)
            )
        senders = _lanes(plan, connections)
        timing = Timing(plan.warmup, plan.seconds, plan.patience, began)
        if plan.pace:
            await asyncio.to_thread(ready)
            await run_paced(senders, timing, outcome, pace=plan.pace, arrivals=plan.arrivals)
        else:
            taken = await open_all(senders, outcome)
            await asyncio.to_thread(ready)
            await run_closed(taken, timing, outcome, in_flight=1 if plan.api == "batch" else plan.in_flight)
    finally:
        reporter.cancel()
        await close_all(senders, plan.patience)
        for connection in connections:
            connection.close()
    outcome.steps = len(outcome.latencies) * plan.chunk * (plan.sessions // count if plan.api == "batch" else 1)
    outcome.steps -= sum(outcome.errors.values()) * plan.chunk
    return outcome


def _lanes(plan: Plan, connections: list[WireConnection]) -> list[Lane]:
    run = uuid4().hex
    ids = [f"bench-{run}-{i}" for i in range(plan.sessions)]
    if plan.api == "batch":
        rows = plan.sessions // plan.in_flight
        return [_batch_lane(plan, connections[i], ids[i * rows : (i + 1) * rows]) for i in range(plan.in_flight)]
    inputs = _inputs(plan)
    make = _unary_lane if plan.api == "unary" else _stream_lane
    return [make(plan, connections[i % len(connections)], ids[i], inputs) for i in range(plan.sessions)]


def _batch_lane(plan: Plan, connection: WireConnection, ids: list[str]) -> Lane:
    message = inference_pb2.StepBatchRequest(session_ids=ids, inputs=_inputs(plan, len(ids)), outputs=plan.outputs)
    return UnaryLane(
        connection,
        lanes.BATCH,
        message.SerializeToString(),
        judges.batch_judge,
        len(ids),
        opening=[_open_call(plan, session_id) for session_id in ids],
        closing=[_close_call(session_id) for session_id in ids],
    )


def _stream_lane(plan: Plan, connection: WireConnection, session_id: str, inputs: list[tensor_pb2.Tensor]) -> Lane:
    request = inference_pb2.StreamStepsRequest
    return StreamLane(
        connection,
        lanes.STREAM,
        request(open=_opening(plan, session_id), inputs=inputs, outputs=plan.outputs).SerializeToString(),
        request(inputs=inputs, outputs=plan.outputs).SerializeToString(),  # the session is known
        judges.stream_judge(session_id),
        request(session_id=session_id, close=True).SerializeToString(),
    )


def _unary_lane(plan: Plan, connection: WireConnection, session_id: str, inputs: list[tensor_pb2.Tensor]) -> Lane:
    message = inference_pb2.StepRequest(session_id=session_id, inputs=inputs, outputs=plan.outputs).SerializeToString()
    return UnaryLane(
        connection,
        lanes.UNARY,
        message,
        judges.always_well,
        opening=[_open_call(plan, session_id)],
        closing=[_close_call(session_id)],
    )


def _open_call(plan: Plan, session_id: str) -> lanes.Call:
    return lanes.OPEN, _opening(plan, session_id).SerializeToString()


def _close_call(session_id: str) -> lanes.Call:
    return lanes.CLOSE, sessions_pb2.CloseSessionRequest(session_id=session_id).SerializeToString()


def _opening(plan: Plan, session_id: str) -> sessions_pb2.OpenSessionRequest:
    coming = plan.sessions / plan.arrivals if plan.pace else 0
    # Should this process be killed, they do not stay for long.
    timeout = duration_pb2.Duration(seconds=30 + int(coming + plan.warmup + plan.seconds + 10 * plan.pace))
    return sessions_pb2.OpenSessionRequest(
        model=plan.model.name,
        version=plan.model.version,
        session_id=session_id,
        idle_timeout=timeout,
        durability=plan.durability,
    )


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


async def _report(outcome: Outcome, progress: MutableSequence[int], index: int) -> None:
    while True:
        progress[index] = len(outcome.latencies)
        await asyncio.sleep(_REPORT_SECONDS)
