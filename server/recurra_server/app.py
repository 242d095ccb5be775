"""The composition root: the one file that knows everybody."""

import asyncio
import platform
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from recurra.openinference import open_inference_pb2, open_inference_pb2_grpc
from recurra.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
)

from recurra_server.catalog import Catalog
from recurra_server.checkpoints import Checkpoints
from recurra_server.driver import Driver
from recurra_server.engine.engine import Engine
from recurra_server.peer import Peer
from recurra_server.rpc import transport
from recurra_server.rpc.access import AccessInterceptor
from recurra_server.rpc.decoding import Decoding
from recurra_server.rpc.inference import InferenceServicer
from recurra_server.rpc.models import ModelKey, ModelsServicer
from recurra_server.rpc.openinference.servicer import OpenInferenceServicer
from recurra_server.rpc.sessions import SessionsServicer
from recurra_server.rpc.streams import OpenStreams
from recurra_server.rpc.traced import TraceReader
from recurra_server.rpc.turnstile import Turnstile
from recurra_server.security.certificates import Certificates
from recurra_server.settings import Settings
from recurra_server.shared_catalog import SharedCatalog
from recurra_server.starting import StartError, open_store, read_access, read_certificates
from recurra_server.telemetry.exporter import Exporter, Probe, on_loop, process_metrics
from recurra_server.telemetry.metrics import EdgeCounts, ServerMetrics
from recurra_server.telemetry.slow import SlowSteps
from recurra_server.telemetry.store import ObservedStore

if TYPE_CHECKING:
    from recurra_server.telemetry.tracing import Tracing

_log = structlog.get_logger(__name__)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_STORE = "recurra.store"
_SERVICES = [
    file.services_by_name[name].full_name
    for file, name in (
        (models_pb2.DESCRIPTOR, "ModelsService"),
        (sessions_pb2.DESCRIPTOR, "SessionsService"),
        (inference_pb2.DESCRIPTOR, "InferenceService"),
        (open_inference_pb2.DESCRIPTOR, "GRPCInferenceService"),
    )
]


class App:
    """A server, from loading its models to the end of its drain. Made on the event loop it runs on.

    Args:
        settings: How to serve.
        keeper: Of one of several processes, the one that keeps them: then it shares the port, its metrics are for
            whoever adds them up, and models change in all of them.

    Raises:
        StartError: The store is not one.
    """

    def __init__(self, settings: Settings, *, keeper: Peer | None = None) -> None:
        self.settings = settings
        self._worker = keeper is not None
        self._certificates = read_certificates(settings)
        self.engine = Engine(settings.limits)
        edge = EdgeCounts()
        self.metrics = ServerMetrics(self.engine, edge, _build_info())
        self.driver = Driver(self.engine)
        if settings.metrics:
            self.driver.observers.append(self.metrics.timings.observe_batch)
        if settings.slow_seconds:
            self.driver.observers.append(SlowSteps(settings.slow_seconds).observe_batch)
        self._health = health.aio.HealthServicer()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        turnstile = None if settings.protection.access is None else Turnstile(self.driver.clock)
        self._streams = OpenStreams(edge, turnstile)
        self._told = asyncio.Event()
        self._store = open_store(settings.store) if settings.store else None
        if self._store is not None:
            self.metrics.store = ObservedStore(self._store.sessions)
            self.driver.checkpoints = self.metrics.checkpoints = Checkpoints(
                self.engine, self.metrics.store, interval=settings.checkpoint_interval, clock=self.driver.clock
            )
        elif self._worker:
            self.engine.elsewhere = ", or another of this server's workers has it (without --store they share nothing)"
        self._tracing = self._open_tracing() if settings.traces else None
        self._access = read_access(settings, self.engine.accounts)
        self._catalog = Catalog(settings, self.driver, self._executor, self._tell_health, edge.loads)
        self._server = self._build_server(edge, keeper)

    async def start(
        self, *, but: Collection[ModelKey] = (), tried: Mapping[ModelKey, str] | None = None
    ) -> tuple[int, int]:
        """Load all models (see `screen` for `but` and `tried`), listen, and say so through the health service.

        Returns:
            The ports of gRPC and of the metrics, which is 0 where there are none.

        Raises:
            StartError: No model can be loaded, a port is taken or not allowed, or the embedded store does not start.
        """
        settings = self.settings
        for number in (signal.SIGTERM, signal.SIGINT):  # before anybody can know that there is a server to end
            asyncio.get_running_loop().add_signal_handler(number, self.end)
        self._loading = asyncio.ensure_future(self._load_models(but, tried))
        try:
            await self._loading
        except asyncio.CancelledError:
            raise StartError("told to end before it served") from None
        if self._store is not None:
            await self._store.start()
        try:
            port = self._listen(f"{settings.host}:{settings.port}")
        except RuntimeError:
            raise StartError(
                f"cannot listen on {settings.host}:{settings.port}: the port is in use, or not allowed; choose --port"
            ) from None
        self._exporter = self._export() if settings.metrics else None
        self._chores = [
            asyncio.ensure_future(chore) for chore in (self.driver.expire_forever(), self.driver.watch_load())
        ]
        if self.driver.checkpoints is not None:
            self.driver.checkpoints.on_store.append(self._tell_store)
            self._chores += [
                asyncio.ensure_future(self.driver.checkpoints.write_forever()),
                asyncio.ensure_future(self.driver.checkpoints.watch_forever()),
            ]
        if (patience := settings.bounds.slow_reader_timeout) > 0:
            self._chores.append(asyncio.ensure_future(self._streams.watch_readers(self.driver.clock, patience)))
        if self._access is not None:
            self._chores += [
                asyncio.ensure_future(chore) for chore in (self._access.keep_current(), self._watch_callers())
            ]
        if settings.watch:
            self._chores.append(asyncio.ensure_future(self._catalog.watch_forever(settings.watch)))
        await self._server.start()
        for service in ("", *_SERVICES, *([_STORE] if self._store is not None else [])):
            await self._health.set(service, _SERVING)
        await self._catalog.tell_health_of_all()
        return port, self._exporter.port if self._exporter is not None else 0

    def end(self) -> None:
        """Begin to drain, or do not begin to serve; asked again, end the drain at once."""
        self._told.set()
        self._loading.cancel()

    async def run_until_end(self) -> None:
        """Serve until SIGTERM, SIGINT or `end`, then drain."""
        told = self._told
        await told.wait()
        told.clear()
        _log.info("draining", streams=len(self._streams), grace_seconds=self.settings.drain_seconds)
        drain = asyncio.ensure_future(self.drain())
        hurry = asyncio.ensure_future(told.wait())
        await asyncio.wait((drain, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        drain.cancel()
        await asyncio.gather(drain, hurry, return_exceptions=True)
        await self.stop()
        _log.info("stopped")

    async def drain(self, grace: float | None = None) -> tuple[int, int]:
        """Open nothing new, tell the streams, wait until they have ended or their time is up; then let sessions go.

        Args:
            grace: That time in seconds; None for what is set.

        Returns:
            The number of sessions that can go on elsewhere, and of those that cannot.
        """
        self.engine.draining = True
        await self._health.enter_graceful_shutdown()
        await self._streams.drain(self.settings.drain_seconds if grace is None else grace)
        moved = await self.driver.checkpoints.hand_over() if self.driver.checkpoints is not None else 0
        return moved, self.engine.sessions("", 0, 0)[1]

    async def stop(self) -> None:
        """Stop listening, and end what is left."""
        await self._server.stop(grace=1.0)
        await _end(self._chores)
        if self.driver.checkpoints is not None and self._store is not None:
            if not await self.driver.checkpoints.write():
                _log.error("checkpoints_lost", sessions=len(self.engine.ledger.changed))
            await self._store.stop()
        if self._exporter is not None:
            await asyncio.to_thread(self._exporter.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._executor.shutdown()

    def _open_tracing(self) -> "Tracing":
        """Have spans made of batches and requests to the store.

        Raises:
            StartError: What that needs is not installed.
        """
        try:
            from recurra_server.telemetry.tracing import Tracing  # noqa: PLC0415 - it is optional
        except ImportError:
            raise StartError("--traces needs OpenTelemetry: pip install 'recurra[otel]'") from None
        tracing = Tracing(self.settings.traces, version("recurra"), self.metrics.timings, self.driver.clock)
        self.driver.observers.append(tracing.observe_batch)
        if self.metrics.store is not None:
            self.metrics.store.observers.append(tracing.observe_store)
        return tracing

    def _export(self) -> Exporter:
        registry, port = process_metrics(self.metrics), self.settings.metrics_port
        healthy, ready = on_loop(lambda: ""), on_loop(self._unready)
        if self._worker:  # only for the one that adds them up
            return export(registry, healthy, ready, "127.0.0.1", port)
        allow = None if self._access is None else self._access.may_read_metrics
        return export(registry, healthy, ready, self.settings.host, port, allow, self._certificates)

    def _unready(self) -> str:
        """Why callers should not be sent here; nothing where they should."""
        if self.engine.draining:
            return "it shuts down"
        return "" if self.engine.models() else "no model is served"

    def _listen(self, address: str) -> int:
        if self._certificates is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, transport.credentials(self._certificates))

    async def _load_models(self, but: Collection[ModelKey], tried: Mapping[ModelKey, str] | None) -> None:
        found, where = await self._catalog.load_all(but=but, tried=tried), self.settings.models
        if not self.engine.models():
            raise StartError(
                f"none of the {found} models in {where} can be served (the log says why)"
                if found
                else f"there is no {where}/<name>/<version>/model.onnx: train one (recurra train) or choose --models"
            )

    async def _watch_callers(self, interval: float = 1.0) -> None:
        """End the streams of callers whose time is up, every `interval` seconds."""
        assert self._access is not None  # noqa: S101 - else nobody is told apart
        while True:
            await asyncio.sleep(interval)
            self._streams.expel_who(self._access.still_holds)

    def _tell_store(self, up: bool) -> None:
        self._telling = asyncio.ensure_future(self._health.set(_STORE, _SERVING if up else _NOT_SERVING))

    async def _tell_health(self, service: str, serving: bool) -> None:
        await self._health.set(service, _SERVING if serving else _NOT_SERVING)

    def _interceptors(self, edge: EdgeCounts) -> list[grpc.aio.ServerInterceptor]:
        interceptors: list[grpc.aio.ServerInterceptor] = []
        if self._tracing is not None:
            interceptors.append(TraceReader(self._tracing.read))
        if self._access is not None:
            interceptors.append(AccessInterceptor(self._access, edge))
        return interceptors

    def _build_server(self, edge: EdgeCounts, keeper: Peer | None) -> grpc.aio.Server:
        settings = self.settings
        server = grpc.aio.server(
            interceptors=self._interceptors(edge),
            options=transport.options(
                settings.bounds,
                max_pending=2 * settings.limits.max_queue,
                share_port=self._worker,
                channelz=settings.channelz,
            ),
        )
        catalog = self._catalog if keeper is None else SharedCatalog(self._catalog, self.engine, keeper)
        calls: Any = Decoding(server)
        models_pb2_grpc.add_ModelsServiceServicer_to_server(ModelsServicer(self.engine, edge, catalog), calls)
        drain = None if self._worker else self.drain
        sessions_pb2_grpc.add_SessionsServiceServicer_to_server(SessionsServicer(self.driver, edge, drain), calls)
        inference = InferenceServicer(
            self.driver, edge, self._streams, stream_window=settings.stream_window, bounds=settings.bounds
        )
        self.driver.on_forget += [self.metrics.timings.forget, inference.forget]
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, calls)
        open_inference = OpenInferenceServicer(
            self.driver, edge, self._streams, self.metrics, catalog, stream_window=settings.stream_window
        )
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, calls)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, Decoding(server, foreign=True))
        if settings.channelz:
            channelz.add_channelz_servicer(server)
        if settings.reflection:
            names = [*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME]
            names += [channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name] * settings.channelz
            reflection.enable_server_reflection(names, server)
        return server


def export(
    registry: CollectorRegistry,
    healthy: Probe,
    ready: Probe,
    host: str,
    port: int,
    allow: Callable[[str], bool] | None = None,
    certificates: Certificates | None = None,
) -> Exporter:
    """Serve metrics and probes; see `Exporter`.

    Raises:
        StartError: The port is taken or not allowed.
    """
    try:
        context = None if certificates is None else certificates.context
        return Exporter(registry, healthy, ready, host, port, allow=allow, tls=context)
    except OSError as error:
        raise StartError(f"cannot serve metrics on {host}:{port}: {error.strerror}; choose --metrics-port") from None


async def _end(chores: Sequence[asyncio.Future[None]]) -> None:
    """Cancel, and again: `asyncio.wait_for` of Python 3.11, which the store's client uses, can lose a cancellation."""
    while pending := [chore for chore in chores if not chore.done()]:
        for chore in pending:
            chore.cancel()
        await asyncio.wait(pending, timeout=0.2)


def _build_info() -> dict[str, str]:
    return {
        "version": version("recurra"),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "grpc": version("grpcio"),
    }
