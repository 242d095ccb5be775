"""The server's Prometheus metrics (docs/metrics.md).

Counters and gauges are the engine's own numbers, read when somebody scrapes; only the
histograms are filled as batches are answered.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from recurra_server.checkpoints import Checkpoints
from recurra_server.engine.engine import Engine
from recurra_server.telemetry.store import ObservedStore, request_families
from recurra_server.telemetry.timings import AllTimings

_MODEL = ("model", "version", "digest")
# What keeps sessions from being opened.
_BOUNDS = ("max_sessions", "latency", "identity_sessions", "identity_state_bytes")
_SERVERS_FAULT: Final = frozenset({
    ("capacity", "max_sessions"), ("capacity", "max_queue"), ("capacity", "latency"),
    ("deadline", ""), ("internal", ""), ("store_unavailable", ""),
})  # fmt: skip
"""Errors by reason and bound that no caller could have avoided: what the error budget counts. The other bounds are a
caller's own, or of calls that need no token: if they counted, anybody could wake whoever runs the server."""


class Failure(Protocol):
    """What was answered, be it an `EngineError` or a message of one."""

    @property
    def reason(self) -> str:
        """The stable name of its cause."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """Its facts; `bound` names the bound that was reached."""
        ...


@dataclass(slots=True)
class EdgeCounts:
    """What only the edge knows: counted there, read here.

    Attributes:
        streams: Open `StreamSteps` and `ModelStreamInfer` streams.
        errors: Calls, stream messages and rows answered with an error, by reason and by fault: "server" or "other".
        loads: Of every version in the repository, whether it could be loaded when that was tried last.
    """

    streams: int = 0
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    loads: dict[tuple[str, str], bool] = field(default_factory=dict)

    def count_error(self, error: Failure) -> None:
        """Count an error that was answered."""
        reason = error.reason.lower()
        servers = (reason, error.metadata.get("bound", "")) in _SERVERS_FAULT
        self.errors[reason, "server" if servers else "other"] += 1

    def count_slow_reader(self) -> None:
        """Count a call that was cut off whose caller read nothing. They are not told: they would not read it."""
        self.errors["slow_reader", "other"] += 1


class ServerMetrics(Collector):
    """Everything about models, sessions and steps. To be collected on the event loop's thread.

    Attributes:
        timings: Where the time of steps went.
        checkpoints: Where durable sessions are kept; None where there is no store.
        store: That store; likewise.
    """

    checkpoints: Checkpoints | None = None
    store: ObservedStore | None = None

    def __init__(self, engine: Engine, edge: EdgeCounts, build: dict[str, str]) -> None:
        self.timings = AllTimings()
        self._engine = engine
        self._edge = edge
        self._build = build

    def collect(self) -> Iterator[Metric]:
        """Answer a scrape."""
        yield from self.timings.families(_MODEL)
        yield from self._model_gauges()
        yield from self._model_counters()
        yield from self._edges()
        yield from self._bounds()
        yield from self._store()
        yield GaugeMetricFamily("recurra_workers", "Server processes.", value=1)  # added up where there are several
        build = GaugeMetricFamily("recurra_build_info", "Always 1.", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1)
        yield build

    def _edges(self) -> Iterator[Metric]:
        errors = CounterMetricFamily(
            "recurra_errors", "Calls, stream messages and rows answered with an error.", labels=["reason", "fault"]
        )
        # From the start at 0, so that the first increase is seen as one.
        servers = dict.fromkeys(((reason, "server") for reason, _ in _SERVERS_FAULT), 0)
        for labels, count in sorted({**servers, **self._edge.errors}.items()):
            errors.add_metric(labels, count)
        yield errors
        yield GaugeMetricFamily(
            "recurra_streams", "Open StreamSteps and ModelStreamInfer streams.", value=self._edge.streams
        )
        failed = GaugeMetricFamily(
            "recurra_model_load_failed",
            "1 where the newest try to load a version of the repository failed.",
            labels=["model", "version"],
        )
        for version, loaded in self._edge.loads.items():
            failed.add_metric(version, float(not loaded))
        yield failed

    def _bounds(self) -> Iterator[Metric]:
        """How near the server is to what it can take."""
        limits = self._engine.limits
        yield GaugeMetricFamily(
            "recurra_sessions_limit", "Sessions that can be open, of all models.", value=limits.max_sessions
        )
        yield GaugeMetricFamily(
            "recurra_queue_limit", "Steps of one model that can wait for their answer.", value=limits.max_queue
        )
        yield CounterMetricFamily(
            "recurra_loop_cpu_seconds", "Processor time of the event loop's thread.", value=time.thread_time()
        )
        yield GaugeMetricFamily("recurra_tasks", "Unfinished tasks of the event loop.", value=len(asyncio.all_tasks()))
        yield GaugeMetricFamily(
            "recurra_draining", "1 while the server shuts down.", value=float(self._engine.draining)
        )

    def _store(self) -> Iterator[Metric]:
        ledger, written = self._engine.ledger, Counter(saved=0, stale=0, failed=0)
        if self.checkpoints is not None:
            written.update(self.checkpoints.writer.written)
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
        yield from request_families(self.store)

    def _model_gauges(self) -> Iterator[Metric]:
        sessions = GaugeMetricFamily("recurra_sessions", "Open sessions.", labels=_MODEL)
        depth = GaugeMetricFamily("recurra_queue_depth", "Steps accepted and not yet answered.", labels=_MODEL)
        used = GaugeMetricFamily("recurra_state_bytes", "Bytes of state that open sessions hold.", labels=_MODEL)
        allocated = GaugeMetricFamily(
            "recurra_state_allocated_bytes", "Bytes of memory that states take or have taken.", labels=_MODEL
        )
        target = GaugeMetricFamily(
            "recurra_step_target_seconds",
            "Time a step may take before new sessions are refused, of models that say how fast they are to be.",
            labels=_MODEL,
        )
        admitted = GaugeMetricFamily(
            "recurra_admission_used_ratio",
            "How much of what there is the open sessions of the same models use; at 1, new ones are refused.",
            labels=_MODEL,
        )
        info = GaugeMetricFamily("recurra_model_info", "Always 1.", labels=[*_MODEL, "latest"])
        for model in self._engine.shelf.all():
            labels = model.key
            sessions.add_metric(labels, model.sessions)
            depth.add_metric(labels, model.turns.depth)
            used.add_metric(labels, model.sessions * model.signature.state_bytes)
            allocated.add_metric(labels, model.slots.nbytes)
            if model.admission is not None:
                target.add_metric(labels, model.admission.target)
                admitted.add_metric(labels, model.admission.used(model.sessions, time.monotonic()))
            info.add_metric([*labels, str(self._engine.shelf.is_latest(model)).lower()], 1)
        yield from (sessions, depth, used, allocated, target, admitted, info)

    def _model_counters(self) -> Iterator[Metric]:
        steps = CounterMetricFamily("recurra_steps", "Steps and chunks answered.", labels=[*_MODEL, "outcome"])
        computed = CounterMetricFamily("recurra_compute_seconds", "Time spent in model calls.", labels=_MODEL)
        time_steps = CounterMetricFamily("recurra_timesteps", "Time steps applied.", labels=_MODEL)
        opened = CounterMetricFamily("recurra_sessions_opened", "Sessions opened.", labels=_MODEL)
        refused = CounterMetricFamily(
            "recurra_sessions_refused", "Sessions that could not be opened for a bound.", labels=[*_MODEL, "bound"]
        )
        ended = CounterMetricFamily("recurra_sessions_ended", "Sessions ended.", labels=[*_MODEL, "reason"])
        for model in self._engine.shelf.all():
            labels = model.key
            for outcome, count in {"ok": 0, "replayed": 0, "state_not_finite": 0, **model.turns.outcomes}.items():
                steps.add_metric([*labels, outcome], count)
            time_steps.add_metric(labels, model.applied_steps)
            computed.add_metric(labels, model.compute_seconds)
            opened.add_metric(labels, self._engine.opened[labels])
            for bound in _BOUNDS:
                refused.add_metric([*labels, bound], self._engine.room.refused[*labels, bound])
            for reason in ("closed", "expired", "moved"):
                ended.add_metric([*labels, reason], self._engine.ended[*labels, reason])
        yield from (steps, computed, time_steps, opened, refused, ended)
