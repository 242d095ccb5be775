"""An OpenTelemetry collector for tests: takes spans by OTLP over HTTP, and keeps them."""

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What was sent.

    Attributes:
        url: Where to send it.
        resource: What the sender says of itself.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.resource: dict[str, str] = {}
        self._spans: list[Span] = []
        self._lock = threading.Condition()

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep what a request holds."""
        with self._lock:
            for of in request.resource_spans:
                self.resource = {pair.key: pair.value.string_value for pair in of.resource.attributes}
                self._spans += [span for scope in of.scope_spans for span in scope.spans]
            self._lock.notify_all()

    def wait_for(self, name: str, count: int, trace_id: str = "", seconds: float = 30.0) -> list[Span]:
        """Wait for spans of a name, of a trace if that is given."""
        patience = time.monotonic() + seconds
        with self._lock:
            while True:
                found = [span for span in self._spans if span.name == name and span.trace_id.hex().startswith(trace_id)]
                if len(found) >= count or not self._lock.wait(patience - time.monotonic()):
                    assert len(found) == count, f"{len(found)} spans {name}, of {[span.name for span in self._spans]}"
                    return found

    def of(self, name: str, trace_id: str) -> list[Span]:
        """The spans of a name that a trace has so far."""
        with self._lock:
            return [span for span in self._spans if span.name == name and span.trace_id.hex() == trace_id]


@contextmanager
def running_collector() -> Iterator[Collector]:
    """A collector for the length of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
