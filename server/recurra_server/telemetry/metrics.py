"""The server's Prometheus metrics (docs/metrics.md).

Counters and gauges are the engine's own numbers, read when somebody scrapes; only the
histograms are filled as batches are answered.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from recurra_server.checkpoints import Checkpoints
from recurra_server.engine.batch import Batch
from recurra_server.engine.blocks import BlockBatch
from recurra_server.engine.engine import Engine
from recurra_server.engine.served_model import ServedModel
from recurra_server.telemetry.histograms import SECONDS, SIZES, BulkHistogram

_MODEL = ("model", "version", "digest")


@dataclass(slots=True)
class _Timings:
    total: BulkHistogram = field(default_factory=lambda: BulkHistogram(SECONDS))
    queue: BulkHistogram = field(default_factory=lambda: BulkHistogram(SECONDS))
    compute: BulkHistogram = field(default_factory=lambda: BulkHistogram(SECONDS))
    batch_size: BulkHistogram = field(default_factory=lambda: BulkHistogram(SIZES))
    last: float | None = None


class Totals(NamedTuple):
    """What a model has done so far: counts, and seconds in all.

    Attributes:
        applied: Steps and chunks applied.
        seconds, queue, compute: Of these, as the histograms have them.
        batches: Model calls.
        last: When the last one ended, in seconds of the driver's clock; None where there was none.
    """

    applied: int = 0
    seconds: float = 0.0
    queue: float = 0.0
    compute: float = 0.0
    batches: int = 0
    last: float | None = None


@dataclass(slots=True)
class EdgeCounts:
    """What only the edge knows: counted there, read here.

    Attributes:
        streams: Open `StreamSteps` and `ModelStreamInfer` streams.
        errors: Calls, stream messages and rows answered with an error, by reason.
    """

    streams: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def count_error(self, reason: str) -> None:
        """Count an error that was answered."""
        self.errors[reason.lower()] += 1


class ServerMetrics(Collector):
    """Everything about models, sessions and steps.

    Attributes:
        checkpoints: Where durable sessions are kept; None where there is no store.
    """

    checkpoints: Checkpoints | None = None

    def __init__(self, engine: Engine, edge: EdgeCounts, build: dict[str, str]) -> None:
        self._engine = engine
        self._edge = edge
        self._build = build
        self._timings: dict[ServedModel, _Timings] = {}

    def observe_batch(self, model: ServedModel, batch: Batch | BlockBatch, now: float) -> None:
        """Record a batch whose steps were answered at `now`."""
        timings = self._timings.get(model)
        if timings is None:
            timings = self._timings[model] = _Timings()
        timings.last = now
        timings.batch_size.observe((len(batch),))
        answered = batch.answered
        if isinstance(batch, BlockBatch):  # all alike
            block, count = batch.block, len(answered)
            timings.total.observe([now - block.arrived] * count)
            timings.queue.observe([block.started - block.arrived] * count)
            timings.compute.observe([block.compute] * count)
        else:
            timings.total.observe([now - step.arrived for step in answered])
            timings.queue.observe([step.started - step.arrived for step in answered])
            timings.compute.observe([step.compute for step in answered])

    def forget(self, model: ServedModel) -> None:
        """A model is not served any more."""
        self._timings.pop(model, None)

    def totals(self, model: ServedModel) -> Totals:
        """What a model has done so far."""
        timings = self._timings.get(model)
        if timings is None:
            return Totals()
        applied, seconds = timings.total.total()
        return Totals(
            applied,
            seconds,
            timings.queue.total()[1],
            timings.compute.total()[1],
            timings.batch_size.total()[0],
            timings.last,
        )

    def collect(self) -> Iterator[Metric]:
        """Answer a scrape."""
        yield from self._histograms()
        yield from self._model_gauges()
        yield from self._model_counters()
        errors = CounterMetricFamily(
            "recurra_errors", "Calls, stream messages and rows answered with an error.", labels=["reason"]
        )
        for reason, count in sorted(self._edge.errors.items()):
            errors.add_metric([reason], count)
        yield errors
        yield GaugeMetricFamily(
            "recurra_streams", "Open StreamSteps and ModelStreamInfer streams.", value=self._edge.streams
        )
        yield GaugeMetricFamily(
            "recurra_draining", "1 while the server shuts down.", value=float(self._engine.draining)
        )
        yield from self._store()
        yield GaugeMetricFamily("recurra_workers", "Server processes.", value=1)  # added up where there are several
        build = GaugeMetricFamily("recurra_build_info", "Always 1.", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1)
        yield build

    def _store(self) -> Iterator[Metric]:
        ledger, written = self._engine.ledger, Counter(saved=0, stale=0, failed=0)
        if self.checkpoints is not None:
            written.update(self.checkpoints.written)
        yield GaugeMetricFamily(
            "recurra_store_up", "0 while the store of checkpoints cannot be reached.", value=float(ledger.store_up)
        )
        yield GaugeMetricFamily(
            "recurra_durable_lag_seconds",
            "Age of the oldest change that is not in the store.",
            value=ledger.lag(time.monotonic()),
        )
        family = CounterMetricFamily("recurra_checkpoints", "Checkpoints sent to the store.", labels=["outcome"])
        for outcome, count in written.items():
            family.add_metric([outcome], count)
        yield family
        yield CounterMetricFamily(
            "recurra_sessions_taken_over",
            "Sessions taken over from another server.",
            value=0 if self.checkpoints is None else self.checkpoints.taken_over,
        )

    def _histograms(self) -> Iterator[Metric]:
        for name, help_text, attribute in (
            ("recurra_step_seconds", "Time of a step inside the server.", "total"),
            ("recurra_step_queue_seconds", "Time a step waited for its first model call.", "queue"),
            ("recurra_step_compute_seconds", "Time a step spent in model calls.", "compute"),
            ("recurra_batch_size", "Sessions in one model call.", "batch_size"),
        ):
            family = HistogramMetricFamily(name, help_text, labels=_MODEL)
            for model, timings in self._timings.items():
                histogram: BulkHistogram = getattr(timings, attribute)
                histogram.add_to(family, model.key)
            yield family

    def _model_gauges(self) -> Iterator[Metric]:
        sessions = GaugeMetricFamily("recurra_sessions", "Open sessions.", labels=_MODEL)
        depth = GaugeMetricFamily("recurra_queue_depth", "Steps accepted and not yet answered.", labels=_MODEL)
        used = GaugeMetricFamily("recurra_state_bytes", "Bytes of state that open sessions hold.", labels=_MODEL)
        allocated = GaugeMetricFamily(
            "recurra_state_allocated_bytes", "Bytes of memory that states take or have taken.", labels=_MODEL
        )
        info = GaugeMetricFamily("recurra_model_info", "Always 1.", labels=[*_MODEL, "latest"])
        for model in self._engine.shelf.all():
            labels = model.key
            sessions.add_metric(labels, model.sessions)
            depth.add_metric(labels, model.turns.depth)
            used.add_metric(labels, model.sessions * model.signature.state_bytes)
            allocated.add_metric(labels, model.slots.nbytes)
            info.add_metric([*labels, str(self._engine.shelf.is_latest(model)).lower()], 1)
        yield from (sessions, depth, used, allocated, info)

    def _model_counters(self) -> Iterator[Metric]:
        steps = CounterMetricFamily("recurra_steps", "Steps and chunks answered.", labels=[*_MODEL, "outcome"])
        time_steps = CounterMetricFamily("recurra_timesteps", "Time steps applied.", labels=_MODEL)
        opened = CounterMetricFamily("recurra_sessions_opened", "Sessions opened.", labels=_MODEL)
        refused = CounterMetricFamily(
            "recurra_sessions_refused", "Sessions that could not be opened for a bound.", labels=[*_MODEL, "bound"]
        )
        ended = CounterMetricFamily("recurra_sessions_ended", "Sessions ended.", labels=[*_MODEL, "reason"])
        for model in self._engine.shelf.all():
            labels = model.key
            # From the start at 0, so that the first increase is seen as one.
            for outcome, count in {"ok": 0, "replayed": 0, **model.turns.outcomes}.items():
                steps.add_metric([*labels, outcome], count)
            time_steps.add_metric(labels, model.applied_steps)
            opened.add_metric(labels, self._engine.opened[labels])
            for bound in ("max_sessions", "latency"):
                refused.add_metric([*labels, bound], self._engine.refused[*labels, bound])
            for reason in ("closed", "expired", "moved"):
                ended.add_metric([*labels, reason], self._engine.ended[*labels, reason])
        yield from (steps, time_steps, opened, refused, ended)
