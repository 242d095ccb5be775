"""Serves the metrics over HTTP, for Prometheus."""

import asyncio
from collections.abc import Iterable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector


class _OnLoop(Collector):
    """Collects on the event loop's thread: what it reads belongs to the loop, and a scrape comes on another thread."""

    def __init__(self, collector: Collector, loop: asyncio.AbstractEventLoop) -> None:
        self._collector = collector
        self._loop = loop

    def describe(self) -> Iterable[Metric]:
        """Nothing, lest registering collects at once."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Collect on the loop's thread and wait for it."""

        async def gather() -> list[Metric]:
            return list(self._collector.collect())

        return asyncio.run_coroutine_threadsafe(gather(), self._loop).result(timeout=5.0)


def process_metrics(collector: Collector) -> CollectorRegistry:
    """The metrics of this process: those of a collector that belongs to the running event loop, and Python's own."""
    registry = CollectorRegistry()
    registry.register(_OnLoop(collector, asyncio.get_running_loop()))
    for process in (ProcessCollector, PlatformCollector, GCCollector):
        process(registry=registry)
    return registry


class MetricsExporter:
    """An HTTP server with `/metrics`, on a thread of its own.

    Raises:
        OSError: The address is taken or not allowed.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._server: WSGIServer
        self._server, self._thread = start_http_server(port, host, registry)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
