"""Serves over HTTP what is asked of a server from outside: its metrics, whether it lives, whether it is ready."""

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

_log = structlog.get_logger(__name__)
MOST_CONNECTIONS = 32
_SLOWEST = 10.0  # seconds for a request and its answer
_ENDING = 1.0  # seconds for a connection to end that makes room for another
_PATIENCE = 5.0  # seconds for the event loop to answer
_STUCK = "the event loop has not answered for {:g} s"
# A format in a version that is no numbers: prometheus_client compares them, whatever they are, and fails.
_ODD_FORMAT = re.compile(r";\s*version=(?![0-9]{1,4}(\.[0-9]{1,4})*\s*(;|$))")
# What is asked; returns nothing where all is well, or in a line what is not. Called on any thread.
Probe = Callable[[], str]


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

        return asyncio.run_coroutine_threadsafe(gather(), self._loop).result(_PATIENCE)


def process_metrics(collector: Collector) -> CollectorRegistry:
    """The metrics of this process: those of a collector that belongs to the running event loop, and Python's own."""
    registry = CollectorRegistry()
    registry.register(_OnLoop(collector, asyncio.get_running_loop()))
    for process in (ProcessCollector, PlatformCollector, GCCollector):
        process(registry=registry)
    return registry


def on_loop(answer: Callable[[], str], patience: float = _PATIENCE) -> Probe:
    """A probe that is answered on the running event loop: one that is stuck for so many seconds fails it."""
    loop = asyncio.get_running_loop()

    async def ask() -> str:
        return answer()

    def probe() -> str:
        try:
            return asyncio.run_coroutine_threadsafe(ask(), loop).result(patience)
        except TimeoutError:
            return _STUCK.format(patience)

    return probe


class _Answer(SimpleHandler):
    """Tells of a failure in the server's log, where wsgiref writes a trace past it."""

    def log_exception(self, exc_info: Any) -> None:
        """Tell, unless the caller has gone."""
        if not isinstance(exc_info[1], OSError):
            _log.error("unexpected", exc_info=exc_info)


class _Quiet(WSGIRequestHandler):
    """Logs no requests."""

    def handle(self) -> None:
        """As wsgiref has it, which leaves no choice of what answers."""
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
        elif self.parse_request():
            output: Any = self.wfile
            answer = _Answer(self.rfile, output, self.get_stderr(), self.get_environ())
            answer.run(self.server.get_app())  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    """Serves a bounded number of connections at once, each on a thread and for a bounded time.

    One more ends the one that has been there longest: so nobody can keep the others out.
    """

    daemon_threads = True
    request_queue_size = 128  # of 5, as it is otherwise, a burst takes all, and the next is put off for a second

    def __init__(self, address: tuple[str, int], tls: Callable[[], ssl.SSLContext] | None, slowest: float) -> None:
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        self._tls = tls
        self._slowest = slowest
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._open: dict[socket.socket, None] = {}
        self._changing = threading.Lock()
        super().__init__(address, _Quiet)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - as it is called
        """Whether there is room for one more, or can be made."""
        if self._room.acquire(blocking=False):
            return True
        with self._changing:
            longest = next(iter(self._open), None)
        if longest is not None:
            _end(longest)
        return self._room.acquire(timeout=_ENDING)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection: slow ones hold up nobody, and not for long."""
        try:
            with self._bounded(request):
                if self._tls is not None:
                    request = self._tls().wrap_socket(request, server_side=True)
                super().process_request_thread(request, client_address)
        except Exception:  # the caller's doing, or files of a certificate that are being changed
            self.shutdown_request(request)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever is gone is gone."""

    @contextmanager
    def _bounded(self, connection: socket.socket) -> Iterator[None]:
        """Let a connection be ended, and end it after its time: a timeout of the socket would be one for each byte."""
        with connection.dup() as same:  # with TLS, `connection` itself is given up for another
            timer = threading.Timer(self._slowest, _end, (same,))
            timer.daemon = True
            timer.start()
            with self._changing:
                self._open[same] = None
            try:
                yield
            finally:
                with self._changing:
                    del self._open[same]
                timer.cancel()


def _end(connection: socket.socket) -> None:
    """Have whoever reads from a connection find its end, and whoever writes to it fail. Any thread."""
    with suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)


class Exporter:
    """An HTTP server on a thread of its own: `/metrics`, `/healthz` and `/readyz`.

    Args:
        registry: What `/metrics` tells.
        healthy: Whether the process does its work at all; if not, it is best started anew.
        ready: Whether callers should be sent here.
        host, port: Where it listens.
        allow: Whether a request with this `Authorization` header may read the metrics; None where all may.
        tls: Makes what encrypts a connection, anew for each: certificates change; None where nothing does.
        slowest: Seconds after which a connection is closed, however far it has come.

    Raises:
        OSError: The address is taken or not allowed.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        healthy: Probe,
        ready: Probe,
        host: str,
        port: int,
        *,
        allow: Callable[[str], bool] | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        slowest: float = _SLOWEST,
    ) -> None:
        metrics = make_wsgi_app(registry)
        probes = {"/healthz": healthy, "/readyz": ready}

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            def say(status: str, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
                start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
                return [f"{text}\n".encode()]

            path = environ["PATH_INFO"]
            if path in probes:
                trouble = probes[path]()
                status = "503 Service Unavailable" if trouble else "200 OK"
                return say(status, trouble or "ok", ("Cache-Control", "no-store"))
            if path != "/metrics":
                return say("404 Not Found", "there are /metrics, /healthz and /readyz")
            if allow is not None and not allow(environ.get("HTTP_AUTHORIZATION", "")):
                unknown = "WWW-Authenticate", "Bearer"
                return say("401 Unauthorized", "the metrics need a token with the role metrics", unknown)
            formats = environ.get("HTTP_ACCEPT", "").split(",")
            environ["HTTP_ACCEPT"] = ",".join(each for each in formats if not _ODD_FORMAT.search(each))
            try:
                answer: Iterable[bytes] = metrics(environ, start_response)
            except TimeoutError:
                return say("503 Service Unavailable", _STUCK.format(_PATIENCE))
            return answer

        self._server = _Server((host, port), tls, slowest)
        self._server.set_app(app)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="exporter")
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
