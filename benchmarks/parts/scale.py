"""A million open sessions: memory, the speed of stepping some of them, and what it costs to open, close and expire."""

import asyncio
import random
import time
from collections.abc import Iterable
from typing import Final

import numpy as np
from google.protobuf.duration_pb2 import Duration
from recurra.v1 import inference_pb2, sessions_pb2, tensor_pb2
from recurra_client.client import Client
from recurra_client.load import judges, lanes
from recurra_client.load.frames import StreamEndedError
from recurra_client.load.loops import Timing, open_all, run_closed
from recurra_client.load.outcome import Outcome
from recurra_client.load.wire import WireConnection

from benchmarks import contenders
from benchmarks.client import Values, in_loop
from benchmarks.parts.bench import Bench
from benchmarks.processes import cpu_seconds, family, free_port, resident_bytes
from benchmarks.runs import Effort

PART: Final = "scale"
_STEPPED: Final = 1000
_STREAMS: Final = 64
_WINDOW: Final = 128  # messages of a stream that are not answered yet
_CONNECTIONS: Final = 4
_X: Final = np.random.default_rng(0).standard_normal(16).astype(np.float32)
_Request = inference_pb2.StreamStepsRequest


def scale(bench: Bench) -> None:
    """Compare 1,000 open sessions with as many as there are to be."""
    many = 20_000 if bench.effort.quick else 1_000_000
    for count in (_STEPPED, many):
        port = free_port()
        room = str(2 * many)
        options = ("--max-sessions", room, "--max-sessions-per-stream", room)
        server = contenders.ours(bench.models, "lstm-128", *options)
        with server.running(port) as pid:
            for turn, values in enumerate(bench.client.run(_visit, f"127.0.0.1:{port}", pid, count, bench.effort)):
                bench.findings.add(PART, "recurra", count, turn, values)


def _visit(target: str, pid: int, count: int, effort: Effort) -> list[Values]:
    return in_loop(_measure(target, pid, count, effort))


async def _measure(target: str, pid: int, count: int, effort: Effort) -> list[Values]:
    """Open, step all once so that every state is really there, step some at random, close; expire others."""
    members = family(pid)
    before = resident_bytes(members)
    values: Values = {}
    values |= await _each(target, pid, "open", (_open(i, 86_000) for i in range(count)), count)
    values |= await _each(target, pid, "first", (_step(i) for i in range(count)), count)
    values["resident_bytes"] = float(resident_bytes(members))
    if count > _STEPPED:  # fewer are lost in the noise
        values["bytes_per_session"] = (values["resident_bytes"] - before) / count
    rates = [await _step_some(target, count, effort.seconds) for _ in range(effort.rounds)]
    values |= await _each(
        target, pid, "close", (_Request(session_id=_name(i), close=True) for i in range(count)), count
    )
    values |= await _expire(target, pid, min(count, 100_000))
    return [{"steps_per_second": rates[0], **values}, *({"steps_per_second": rate} for rate in rates[1:])]


def _name(session: int) -> str:
    return f"s{session:09d}"  # all of one length


def _open(session: int, timeout: int) -> _Request:
    request = sessions_pb2.OpenSessionRequest(
        model="lstm-128", session_id=_name(session), idle_timeout=Duration(seconds=timeout)
    )
    return _Request(open=request)


def _step(session: int) -> _Request:
    return _Request(session_id=_name(session), inputs=[tensor_pb2.Tensor(shape=[16], data=_X.tobytes())])


async def _each(target: str, pid: int, what: str, requests: Iterable[_Request], count: int) -> Values:
    """Send one message for each session over few connections: seconds and processor time of the server for each."""
    cpu, began = cpu_seconds(family(pid)), time.perf_counter()
    source = iter(requests)
    await asyncio.gather(*(_pipeline(target, source) for _ in range(_CONNECTIONS)))
    return {
        f"{what}_seconds_each": (time.perf_counter() - began) / count,
        f"{what}_cpu_each": (cpu_seconds(family(pid)) - cpu) / count,
    }


async def _pipeline(target: str, source: Iterable[_Request]) -> None:
    """Send what the source still has on one stream, a number of messages ahead of their answers."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = 0

    def send() -> None:
        nonlocal waiting
        request = next(iter(source), None)
        if request is not None:
            waiting += 1
            stream.send(stream.prepare(request.SerializeToString()))

    def received(reply: bytes) -> None:
        nonlocal waiting
        waiting -= 1
        if b"\x1a" in reply[:16] and (error := inference_pb2.StreamStepsResponse.FromString(reply).error).reason:
            done.set_exception(ConnectionError(error.message))
            return
        send()
        if not waiting and not done.done():
            done.set_result(None)

    def ended(error: StreamEndedError | None) -> None:
        if not done.done():
            done.set_exception(error or ConnectionError("the server ended the stream"))

    connection = await WireConnection.connect(target)
    stream = connection.open(lanes.STREAM, received, ended)
    for _ in range(_WINDOW):
        send()
    if waiting:
        await done
    connection.close()


class _AnyOf(lanes.StreamLane):
    """Steps one of several sessions at random."""

    def __init__(self, connection: WireConnection, messages: list[bytes]) -> None:
        super().__init__(connection, lanes.STREAM, messages[0], messages[0], judges.stream_judge(_name(0)))
        self._choices = [self._stream.prepare(message) for message in messages]

    def send(self) -> None:
        """Send the next message."""
        self._following = random.choice(self._choices)
        super().send()


async def _step_some(target: str, count: int, seconds: float) -> float:
    """Steps a second of 1,000 sessions at random, of all that are open."""
    chosen = random.Random(0).sample(range(count), _STEPPED)
    messages = [_step(i).SerializeToString() for i in chosen]
    connections = [await WireConnection.connect(target) for _ in range(_STREAMS)]
    senders = [_AnyOf(connection, messages[i::_STREAMS]) for i, connection in enumerate(connections)]
    outcome = Outcome()
    await run_closed(await open_all(senders, outcome), Timing(0.3, seconds), outcome)
    for connection in connections:
        connection.close()
    return (len(outcome.latencies) - sum(outcome.errors.values())) / outcome.seconds


async def _expire(target: str, pid: int, count: int) -> Values:
    """Processor time of the server for each session that expires."""
    timeout = 5 + count // 5000  # longer than opening them takes
    await _each(target, pid, "open", (_open(10**8 + i, timeout) for i in range(count)), count)
    cpu, began = cpu_seconds(family(pid)), time.perf_counter()
    async with Client(target) as client:
        while (time.perf_counter() - began) < timeout + 60 and await client.sessions.count("lstm-128"):  # noqa: ASYNC110
            await asyncio.sleep(1)  # the server tells nobody that a session expires
        if await client.sessions.count("lstm-128"):
            raise ConnectionError("sessions do not expire")
    return {"expire_cpu_each": (cpu_seconds(family(pid)) - cpu) / count}
