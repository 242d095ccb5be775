"""Two servers under load, with all that can happen to them; whoever makes it happen counts it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import duration_pb2
from recurra.v1 import inference_pb2, inference_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from recurra_client import Client, Session, StepInfo
from recurra_server.stores.embedded import EmbeddedValkey

from tests.deploy.seen import Seen, reason_of
from tests.support import models
from tests.support.server import ServerProcess
from tests.support.wire import tensor

MAX_SESSIONS = 60
MAX_SESSIONS_PER_STREAM = 10
FEATURES = 16
LSTM_SECONDS = 60.0  # a pace that any machine can keep
HASTY_SECONDS = 4e-6  # a pace that nobody can keep, so that new sessions are refused at once
HASTY_WORK = 896  # its steps take so long that what the network and the caller add hardly shows
WORKERS = 2


class Scene:
    """The servers, and what their callers have seen.

    Attributes:
        one: A server by itself, of which everything is asked.
        many: A server of several workers, with the same store.
        valkey: That store.
        seen: What was counted since it was set.
        open: Sessions that are open, by server and model.
    """

    def __init__(self, folder: Path) -> None:
        self.seen = Seen()
        self.open: Counter[tuple[str, str]] = Counter()
        self.models = folder / "models"
        models.publish(self.models, "lstm", models.lstm(FEATURES, 128, 1, step_seconds=LSTM_SECONDS))
        models.publish(self.models, "counter", models.counter(), version="7")
        models.publish(self.models, "hasty", models.slow_counter(HASTY_WORK, step_seconds=HASTY_SECONDS))
        self.valkey = EmbeddedValkey(folder / "valkey")
        self.valkey.start()
        store = ("--store", self.valkey.url)
        bounds = ("--max-sessions", str(MAX_SESSIONS), "--max-sessions-per-stream", str(MAX_SESSIONS_PER_STREAM))
        self.one = ServerProcess(self.models, *store, *bounds, "--watch", "0.2", "--log-format", "json")
        self.many = ServerProcess(self.models, *store, "--workers", str(WORKERS), "--log-format", "json")

    def close(self) -> None:
        """End all."""
        self.one.stop()
        self.many.stop()
        self.valkey.stop()

    @property
    def targets(self) -> list[str]:
        """Where Prometheus finds the servers."""
        return [server.metrics_url.removeprefix("http://").removesuffix("/metrics") for server in (self.one, self.many)]

    def kill_store(self) -> None:
        """As when its machine fails."""
        assert self.valkey._process is not None
        self.valkey._process.kill()
        self.valkey._process.wait()

    def spoil_a_model(self) -> None:
        """Put a version into the repository that cannot be loaded."""
        path = self.models / "counter" / "8" / "model.onnx"
        path.parent.mkdir()
        path.write_bytes(b"not a model")

    # --- load ----------------------------------------------------------------------------

    @asynccontextmanager
    async def sessions(self, one: int, many: int) -> AsyncIterator[list[Session]]:
        """Open LSTM sessions on both servers, each with a stream; they stay open until the end of the block."""
        clients = [Client(self.one.target, reconnect=0) for _ in range(2)]
        clients += [Client(self.many.target, reconnect=0) for _ in range(6)]
        opened: list[Session] = []
        try:
            for number in range(one + many):
                client = clients[number % 2] if number < one else clients[2 + number % 6]
                opened.append(await client.session("lstm", durability="ephemeral").open())
                self.seen.opened += 1
                self.open[(self.one if number < one else self.many).target, "lstm"] += 1
            yield opened
        finally:
            for client in clients:
                await client.close()

    async def step(self, sessions: list[Session], seconds: float, pace: float) -> None:
        """Have each session send a step every `pace` seconds, a chunk of 4 now and then."""
        begin, rng = time.monotonic(), np.random.default_rng(0)

        async def run(session: Session, offset: float) -> None:
            count = 0
            while (due := begin + offset + count * pace) < begin + seconds:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                count += 1
                length = 4 if count % 8 == 0 else 1
                inputs = rng.standard_normal((length, FEATURES))
                await (session.steps(inputs) if length > 1 else session.step(inputs[0]))
                self.seen.applied("lstm", session.last, length)

        await asyncio.gather(*(run(session, pace * k / len(sessions)) for k, session in enumerate(sessions)))

    # --- what else can happen ------------------------------------------------------------

    def caller(self, server: ServerProcess) -> "Caller":
        """Somebody who makes single calls."""
        return Caller(self, server.target)

    async def trouble(self, times: int) -> None:
        """Failures of every kind that callers can make happen, and sessions that expire, are refused and move."""
        one, many = self.caller(self.one), self.caller(self.many)
        await one.expire(2 * times)
        session = await one.open("counter")
        await one.step(session, 1.0, number=1)
        for _ in range(times):
            await one.step(session, 1.0, number=1)  # again
            await one.step(session, 1.0, number=99)  # a gap
            await one.step(session, float("nan"))
        await one.step(session, 3e38)
        for _ in range(times):
            await one.step(session, 3e38)  # the sum is more than a float holds
        await one.close(session, "counter")
        for _ in range(times):
            await one.step("nobody", 1.0)
            self.seen.asked_store += 1
            await one.open("nothing")
        await one.haste(times)
        await one.crowd(times)
        for durability in (sessions_pb2.DURABILITY_SYNC, sessions_pb2.DURABILITY_ASYNC):
            kept = await one.open("counter", durability=durability)
            for _ in range(2 * times):
                await one.step(kept, 1.0)
                self.seen.sync_steps += durability == sessions_pb2.DURABILITY_SYNC
        for _ in range(times):
            await self._move(one, many)

    async def _move(self, one: "Caller", many: "Caller") -> None:
        """A session's calls go to another server, and then to the first again."""
        session = await one.open("counter", durability=sessions_pb2.DURABILITY_SYNC)
        await one.step(session, 1.0)
        await many.step(session, 1.0)
        self.seen.taken_over += 1
        self.seen.asked_store += 1
        self.open[self.many.target, "counter"] += 1
        await one.step(session, 1.0)  # SYNC: it is saved before it is answered, and so comes to light
        self.seen.ended["moved"] += 1
        self.open[self.one.target, "counter"] -= 1
        self.seen.sync_steps += 2

    async def fill(self, refused: int) -> None:
        """Open sessions until there is no room, and try some more."""
        one = self.caller(self.one)
        held = sum(count for (target, _), count in self.open.items() if target == self.one.target)
        for _ in range(MAX_SESSIONS - held + refused):
            await one.open("lstm", durability=sessions_pb2.DURABILITY_UNSPECIFIED)


class Caller:
    """Makes single calls, and counts what comes of them."""

    def __init__(self, scene: Scene, target: str) -> None:
        channel = grpc.aio.insecure_channel(target)
        self._sessions = sessions_pb2_grpc.SessionsServiceStub(channel)
        self._inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self._models: dict[str, str] = {}
        self._scene = scene
        self._target = target

    @property
    def _seen(self) -> Seen:
        return self._scene.seen

    async def open(
        self,
        model: str,
        *,
        durability: int = sessions_pb2.DURABILITY_EPHEMERAL,
        idle_timeout: float = 600.0,
    ) -> str:
        """Open a session; returns its id, or nothing where it is refused."""
        timeout = duration_pb2.Duration()
        timeout.FromNanoseconds(int(idle_timeout * 1e9))
        request = sessions_pb2.OpenSessionRequest(
            model=model,
            durability=durability,  # type: ignore[arg-type]
            idle_timeout=timeout,
        )
        try:
            session = (await self._sessions.OpenSession(request)).session
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            self._seen.failed(reason, step=False)
            if reason == "capacity":
                self._seen.refused[
                    "max_sessions" if "sessions are in use" in (error.details() or "") else "latency"
                ] += 1
            return ""
        self._seen.opened += 1
        self._seen.durable_opened += durability != sessions_pb2.DURABILITY_EPHEMERAL
        self._models[session.session_id] = model
        self._scene.open[self._target, model] += 1
        return session.session_id

    async def step(self, session_id: str, value: float, *, number: int = 0) -> None:
        """Apply a step to a counter."""
        request = inference_pb2.StepRequest(session_id=session_id, inputs=[tensor([value])], step=number)
        began = time.perf_counter()
        try:
            result = (await self._inference.Step(request)).result
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            self._seen.failed(reason, step=reason != "session_not_found")
            return
        if result.replayed:
            self._seen.outcomes["replayed"] += 1
            return
        timing = result.timing
        info = StepInfo(
            step=result.step,
            replayed=False,
            latency=time.perf_counter() - began,
            queue=timing.queue_us * 1e-6,
            compute=timing.compute_us * 1e-6,
            batch_size=timing.batch_size,
            durable_step=result.durable_step,
        )
        self._seen.applied(self._models.get(session_id, "counter"), info)

    async def close(self, session_id: str, model: str) -> None:
        """Close a session."""
        await self._sessions.CloseSession(sessions_pb2.CloseSessionRequest(session_id=session_id))
        self._seen.ended["closed"] += 1
        self._scene.open[self._target, model] -= 1

    async def expire(self, count: int) -> None:
        """Open sessions, and wait until they are found to have expired."""
        ids = [await self.open("counter", idle_timeout=0.3) for _ in range(count)]
        for session_id in ids:
            while await self._is_open(session_id):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
            self._seen.ended["expired"] += 1
            self._scene.open[self._target, "counter"] -= 1

    async def haste(self, times: int) -> None:
        """Have steps take longer than their model allows, so that no more sessions are opened on it."""
        session = await self.open("hasty")
        for _ in range(12 * times):
            await self.step(session, 1.0)
        for _ in range(times):
            await self.open("hasty")
        await self.close(session, "hasty")

    async def crowd(self, times: int) -> None:
        """Ask for more sessions on one stream than a stream may have."""
        stream: Any = self._inference.StreamSteps()
        opening = sessions_pb2.OpenSessionRequest(model="counter", durability=sessions_pb2.DURABILITY_EPHEMERAL)
        opened = []
        for _ in range(MAX_SESSIONS_PER_STREAM + times):
            await stream.write(inference_pb2.StreamStepsRequest(open=opening))
            answer = await stream.read()
            if answer.HasField("error"):
                self._seen.failed(answer.error.reason.lower(), step=False, own_bound=True)
            else:
                self._seen.opened += 1
                self._scene.open[self._target, "counter"] += 1
                opened.append(answer.session_id)
        for session_id in opened:
            await self.close(session_id, "counter")
        await stream.done_writing()
        assert await stream.read() == grpc.aio.EOF

    async def _is_open(self, session_id: str) -> bool:
        listed = await self._sessions.ListSessions(sessions_pb2.ListSessionsRequest(page_size=1000))
        return any(session.session_id == session_id for session in listed.sessions)


@contextmanager
def running_scene(folder: Path) -> Iterator[Scene]:
    """The servers for the length of a `with` block."""
    scene = Scene(folder)
    try:
        yield scene
    finally:
        scene.close()
