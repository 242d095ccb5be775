"""OpenTelemetry traces: imported only where they are wanted, and told of batches after these are answered.

Spans are made with the times that the steps carry anyway. A step's span is a child of its caller's (W3C `traceparent`
in the metadata of the call), with one child for its time in line and one for its model calls. A batch's span is in the
trace of its first step, and links to those of all.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from recurra_server.engine.batch import Batch
from recurra_server.engine.block import Block, BlockBatch
from recurra_server.engine.errors import EngineError
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.engine.steps import Step
from recurra_server.telemetry.logs import shortened
from recurra_server.telemetry.timings import AllTimings
from recurra_server.tracecontext import TRACE, Trace, trace_of

_PATH = "v1/traces"
_PATIENCE = "3"  # seconds: a collector that is away must not keep the server from ending
_STORE = {"db.system.name": "valkey"}


class Tracing:
    """Makes spans of steps, batches and requests to the store, and sends them to a collector.

    Args:
        endpoint: The collector's URL, for OTLP over HTTP. What else can be set is read from OpenTelemetry's own
            environment variables (OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS ...).
        version: Of this server.
        timings: Gets each traced step's latency as an exemplar.
        clock: What the steps' times are of: seconds.
    """

    def __init__(self, endpoint: str, version: str, timings: AllTimings, clock: Callable[[], float]) -> None:
        name = os.environ.get("OTEL_SERVICE_NAME", "recurra")
        resource = Resource.create({"service.name": name, "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        os.environ.setdefault("OTEL_EXPORTER_OTLP_TIMEOUT", _PATIENCE)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/{_PATH}")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("recurra", version)
        self._timings = timings
        self._clock = clock
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left, for as long as OTEL_EXPORTER_OTLP_TIMEOUT allows."""
        self._provider.shutdown()

    def read(self, metadata: Mapping[str, str]) -> Trace:
        """What a call is part of, by its `traceparent`."""
        context = self._propagator.extract(metadata)
        found = trace.get_current_span(context).get_span_context()
        return Trace(context, f"{found.trace_id:032x}" if found.is_valid else "")

    # --- batches -------------------------------------------------------------------------

    def observe_batch(self, model: ServedModel, batch: Batch | BlockBatch, now: float, seconds: float) -> None:
        """Make the spans of the steps that a batch has completed, and its own."""
        spans = _BatchSpans(self._tracer, model, batch, self._nanoseconds, now, seconds)
        if isinstance(batch, BlockBatch):
            block_trace = trace_of(batch.block.waiter)
            if block_trace is not None:
                spans.of_block(batch.block, block_trace)
                self._exemplify(model, spans.last, now - batch.block.arrived)
        else:
            for step in batch.steps:
                step_trace = trace_of(step.waiter)
                if step_trace is not None and (step.error is not None or step.position == step.count):
                    spans.of_step(step, step_trace)
                    self._exemplify(model, spans.last, now - step.arrived)
        spans.end()

    def observe_store(self, operation: str, sessions: int, began: float, seconds: float, failed: bool) -> None:
        """Make the span of a request to the store: in its caller's trace, or its own for what goes by itself."""
        inherited = TRACE.get()
        span = self._tracer.start_span(
            f"recurra.store.{operation}",
            context=None if inherited is None else inherited.context,  # type: ignore[arg-type]
            kind=trace.SpanKind.CLIENT,
            start_time=self._nanoseconds(began),
            attributes={**_STORE, "db.operation.name": operation, "recurra.sessions": sessions},
        )
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(self._nanoseconds(began + seconds))

    def _exemplify(self, model: ServedModel, span: Span | None, seconds: float) -> None:
        context = None if span is None else span.get_span_context()
        if context is not None and context.trace_flags.sampled:
            ids = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
            self._timings.exemplify(model, seconds, ids)

    def _nanoseconds(self, at: float) -> int:
        """A time of the clock as one since 1970."""
        return time.time_ns() - round((self._clock() - at) * 1e9)


class _BatchSpans:
    """The spans of one batch and of what it completed."""

    def __init__(
        self,
        tracer: trace.Tracer,
        model: ServedModel,
        batch: Batch | BlockBatch,
        nanoseconds: Callable[[float], int],
        now: float,
        seconds: float,
    ) -> None:
        self.last: Span | None = None
        self._batch: Span | None = None
        self._tracer = tracer
        self._model = {"recurra.model": model.name, "recurra.version": model.version}
        self._size = len(batch)
        self._at = nanoseconds
        self._now, self._seconds = now, seconds

    def of_step(self, step: Step, parent: Trace) -> None:
        """A step, the time it waited, and the time it was computed."""
        count = {"recurra.step": step.last_number, "recurra.time_steps": step.count}
        self._make(parent, step.session, step.arrived, step.started, step.compute, step.error, count)
        durable = step.session.durable
        if step.error is None and durable is not None and durable.is_sync and self.last is not None:
            durable.when_saved(partial(self._saved, self.last, self._now))
        elif self.last is not None:
            self.last.end(self._at(self._now))

    def of_block(self, block: Block, parent: Trace) -> None:
        """The rows of a message, which all went one way."""
        count = {"recurra.rows": len(block), "recurra.time_steps": block.count}
        self._make(parent, block.sessions[0], block.arrived, block.started, block.compute, None, count)
        if self.last is not None:
            self.last.end(self._at(self._now))

    def end(self) -> None:
        """All of the batch's steps have been looked at."""
        if self._batch is not None:
            self._batch.end(self._at(self._now))

    def _make(
        self,
        parent: Trace,
        session: Session,
        arrived: float,
        started: float,
        compute: float,
        error: EngineError | None,
        count: dict[str, int],
    ) -> None:
        self.last = span = self._tracer.start_span(
            "recurra.step",
            context=parent.context,  # type: ignore[arg-type]
            kind=trace.SpanKind.SERVER,
            start_time=self._at(arrived),
            attributes={**self._model, "recurra.session": shortened(session.id), **count},
        )
        if not span.is_recording():
            return
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error.reason))
            span.set_attribute("error.type", error.reason)
        inside = trace.set_span_in_context(span)
        began = started or self._now  # it failed before it was run
        self._tracer.start_span("recurra.queue", inside, start_time=self._at(arrived)).end(self._at(began))
        if not started:
            return
        if self._batch is None:
            self._batch = self._tracer.start_span(
                "recurra.batch",
                inside,
                start_time=self._at(self._now - self._seconds),
                attributes={**self._model, "recurra.batch_size": self._size},
            )
        self._batch.add_link(span.get_span_context())
        self._tracer.start_span(
            "recurra.compute",
            inside,
            start_time=self._at(began),
            links=[Link(self._batch.get_span_context())],
            attributes={"recurra.compute_seconds": compute, "recurra.batch_size": self._size},
        ).end(self._at(self._now))

    def _saved(self, span: Span, applied: float, error: EngineError | None) -> None:
        """A SYNC step was applied some time ago, and can be answered now."""
        inside, done = trace.set_span_in_context(span), time.time_ns()
        self._tracer.start_span("recurra.store", inside, start_time=self._at(applied), attributes=_STORE).end(done)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error.reason))
        span.end(done)
