"""The composition root: the one file that knows everybody."""

import asyncio
import platform
import signal
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import CollectorRegistry

from recurra_server.catalog import Catalog
from recurra_server.checkpoints import Checkpoints
from recurra_server.chores import Chores
from recurra_server.driver import Driver
from recurra_server.engine.engine import Engine
from recurra_server.grpc_server import SERVICES, build_server
from recurra_server.peer import Peer
from recurra_server.rpc import transport
from recurra_server.rpc.health import HealthServicer
from recurra_server.rpc.models import ModelKey
from recurra_server.rpc.stream_base import OpenStreams
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
_STORE = "recurra.store"


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
        self._health = HealthServicer(edge, settings.bounds)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        turnstile = None if settings.protection.access is None else Turnstile(self.driver.clock)
        self._streams = OpenStreams(edge, turnstile, patience=settings.bounds.slow_reader_timeout)
        self._told = asyncio.Event()
        self._chores = Chores()
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
        self._server = build_server(
            settings,
            driver=self.driver,
            edge=edge,
            streams=self._streams,
            metrics=self.metrics,
            catalog=self._catalog if keeper is None else SharedCatalog(self._catalog, self.engine, keeper),
            health=self._health,
            access=self._access,
            read_trace=None if self._tracing is None else self._tracing.read,
            drain=None if self._worker else self.drain,
            share_port=self._worker,
        )

    async def start(
        self,
        *,
        excluded: Collection[ModelKey] = (),
        verdicts: Mapping[ModelKey, str] = MappingProxyType({}),
        going_on: Callable[[], object] = lambda: None,
    ) -> tuple[int, int]:
        """Load all models (see `screen` for the arguments), listen, and say so through the health service.

        Returns:
            The ports of gRPC and of the metrics, which is 0 where there are none.

        Raises:
            StartError: No model can be loaded, a port is taken or not allowed, or the embedded store does not start.
        """
        settings = self.settings
        for number in (signal.SIGTERM, signal.SIGINT):  # before anybody can know that there is a server to end
            asyncio.get_running_loop().add_signal_handler(number, self.end)
        load_all = partial(self._catalog.load_all, excluded=excluded, verdicts=verdicts, going_on=going_on)
        self._loading = asyncio.ensure_future(self._load_models(load_all))
        try:
            await self._loading
        except asyncio.CancelledError:
            raise StartError("told to end before it served") from None
        port = self._listen(settings.host, settings.port)
        self._exporter = self._export() if settings.metrics else None
        if self._store is not None:  # last of all that can fail: an embedded one runs by itself
            await self._store.start()
        self._begin_chores()
        await self._server.start()
        for service in ("", *SERVICES, *([_STORE] if self._store is not None else [])):
            self._health.tell(service, True)
        await self._catalog.tell_health_of_all()
        return port, self._exporter.port if self._exporter is not None else 0

    def end(self) -> None:
        """Begin to drain, or do not begin to serve; asked again, end the drain at once."""
        self._told.set()
        self._loading.cancel()

    async def run_until_end(self) -> int:
        """Serve until SIGTERM, SIGINT or `end`, then drain.

        Returns:
            The process' exit status: 1 where gRPC gave up by itself, with what is durable saved. Others that watch
            over the process start it anew; a process that lives on and listens no more would help nobody.
        """
        told, gave_up = self._told, asyncio.ensure_future(self._server.wait_for_termination())
        await _first(told.wait(), asyncio.wait((gave_up,)))
        if gave_up.done():
            _log.error("grpc_gave_up", exc_info=gave_up.exception())
            await self.drain(0.0)
            await self.stop()
            return 1
        told.clear()
        _log.info("draining", streams=len(self._streams), grace_seconds=self.settings.drain_seconds)
        await _first(self.drain(), told.wait())
        await self.stop()
        await asyncio.wait((gave_up,))
        _log.info("stopped")
        return 0

    async def drain(self, grace: float | None = None) -> tuple[int, int]:
        """Open nothing new, tell the streams, wait until they have ended or their time is up; then let sessions go.

        Args:
            grace: That time in seconds; None for what is set.

        Returns:
            The number of sessions that can go on elsewhere, and of those that cannot.
        """
        self.engine.draining = True
        self._health.shut_down()
        await self._streams.drain(self.settings.drain_seconds if grace is None else grace)
        moved = await self.driver.checkpoints.hand_over() if self.driver.checkpoints is not None else 0
        return moved, sum(1 for _ in self.engine.accounts.sessions())

    async def stop(self) -> None:
        """Stop listening, and end what is left."""
        await self._server.stop(grace=1.0)
        await self._chores.end()
        if self.driver.checkpoints is not None and self._store is not None:
            await self.driver.checkpoints.writer.write()
            if lost := len(self.engine.ledger.changed):
                _log.error("checkpoints_lost", sessions=lost)
            await self._store.stop()
        if self._exporter is not None:
            await asyncio.to_thread(self._exporter.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._executor.shutdown()

    def _begin_chores(self) -> None:
        driver, access = self.driver, self._access
        self._chores.begin(driver.expire_forever, driver.watch_load)
        if driver.checkpoints is not None:
            writer = driver.checkpoints.writer
            writer.on_store.append(lambda up: self._health.tell(_STORE, up))
            self._chores.begin(writer.write_forever, writer.retry_forever, writer.watch_forever)
        if self.settings.bounds.slow_reader_timeout > 0:
            self._chores.begin(lambda: self._streams.watch_readers(driver.clock))
        if access is not None:
            end_calls = partial(self._streams.end_where_not, access.still_holds)
            self._chores.begin(access.keep_keys, partial(access.keep_current, end_calls))
        if self.settings.watch:
            self._chores.begin(lambda: self._catalog.watch_forever(self.settings.watch))

    def _open_tracing(self) -> "Tracing":
        """Have spans made of batches and requests to the store.

        Raises:
            StartError: What that needs is not installed.
        """
        try:
            from recurra_server.telemetry.tracing import Tracing  # noqa: PLC0415 - it is optional
        except ImportError:
            raise StartError("--traces needs OpenTelemetry: pip install '.[otel]' in Recurra's folder") from None
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

    def _listen(self, host: str, port: int) -> int:
        """Take the port.

        Raises:
            StartError: It is taken or not allowed.
        """
        address = f"{host}:{port}"
        try:
            if self._certificates is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, transport.credentials(self._certificates))
        except RuntimeError:
            raise StartError(f"cannot listen on {address}: the port is in use, or not allowed; choose --port") from None

    async def _load_models(self, load_all: Callable[[], Awaitable[int]]) -> None:
        found, where = await load_all(), self.settings.models
        if not self.engine.models():
            raise StartError(
                f"none of the {found} models in {where} can be served (the log says why)"
                if found
                else f"there is no {where}/<name>/<version>/model.onnx: train one (recurra train) or choose --models"
            )

    async def _tell_health(self, service: str, serving: bool) -> None:
        self._health.tell(service, serving)


async def _first(*awaitables: Coroutine[Any, Any, object]) -> None:
    """Wait for the first that is done, and end the others."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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


def _build_info() -> dict[str, str]:
    return {
        "version": version("recurra"),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "grpc": version("grpcio"),
    }
