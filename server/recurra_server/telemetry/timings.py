"""Where the time of steps went, model by model: filled as batches are answered."""

from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client.core import HistogramMetricFamily

from recurra_server.engine.batch import Batch
from recurra_server.engine.block import BlockBatch
from recurra_server.engine.served_model import ServedModel
from recurra_server.telemetry.histograms import SECONDS, SIZES, BulkHistogram


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
class Timings:
    """The histograms of one model.

    Attributes:
        total, queue, compute: Seconds of its steps: in all, waiting, and in model calls.
        batch_size: Sessions in its model calls.
        last: When the last one ended, in seconds of the driver's clock; None where there was none.
    """

    total: BulkHistogram = field(default_factory=lambda: BulkHistogram(SECONDS))
    queue: BulkHistogram = field(default_factory=lambda: BulkHistogram(SECONDS))
    compute: BulkHistogram = field(default_factory=lambda: BulkHistogram(SECONDS))
    batch_size: BulkHistogram = field(default_factory=lambda: BulkHistogram(SIZES))
    last: float | None = None

    def observe(self, batch: Batch | BlockBatch, now: float) -> None:
        """Record a batch whose steps were answered at `now`."""
        self.last = now
        self.batch_size.observe((len(batch),))
        answered = batch.answered
        if isinstance(batch, BlockBatch):  # all alike
            block, count = batch.block, len(answered)
            self.total.observe([now - block.arrived] * count)
            self.queue.observe([block.started - block.arrived] * count)
            self.compute.observe([block.compute] * count)
        else:
            self.total.observe([now - step.arrived for step in answered])
            self.queue.observe([step.started - step.arrived for step in answered])
            self.compute.observe([step.compute for step in answered])

    def totals(self) -> Totals:
        """What the model has done so far."""
        applied, seconds = self.total.total()
        waited, computed, batches = self.queue.total()[1], self.compute.total()[1], self.batch_size.total()[0]
        return Totals(applied, seconds, waited, computed, batches, self.last)


class AllTimings:
    """The histograms of all models."""

    def __init__(self) -> None:
        self._of: dict[ServedModel, Timings] = {}

    def observe_batch(self, model: ServedModel, batch: Batch | BlockBatch, now: float, seconds: float) -> None:  # noqa: ARG002
        """Record a batch whose steps were answered at `now`."""
        timings = self._of.get(model)
        if timings is None:
            timings = self._of[model] = Timings()
        timings.observe(batch, now)

    def exemplify(self, model: ServedModel, seconds: float, trace: dict[str, str]) -> None:
        """Name the trace of a step that took so long."""
        timings = self._of.get(model)
        if timings is not None:
            timings.total.exemplify(seconds, trace)

    def forget(self, model: ServedModel) -> None:
        """A model is not served any more."""
        self._of.pop(model, None)

    def totals(self, model: ServedModel) -> Totals:
        """What a model has done so far."""
        timings = self._of.get(model)
        return Totals() if timings is None else timings.totals()

    def families(self, labels: tuple[str, ...]) -> list[HistogramMetricFamily]:
        """The histograms as a scrape has them, with these labels for a model's key."""
        families = []
        for name, help_text, attribute in (
            ("recurra_step_seconds", "Time of a step inside the server.", "total"),
            ("recurra_step_queue_seconds", "Time a step waited for its first model call.", "queue"),
            ("recurra_step_compute_seconds", "Time a step spent in model calls.", "compute"),
            ("recurra_batch_size", "Sessions in one model call.", "batch_size"),
        ):
            family = HistogramMetricFamily(name, help_text, labels=labels)
            for model, timings in self._of.items():
                histogram: BulkHistogram = getattr(timings, attribute)
                histogram.add_to(family, model.key)
            families.append(family)
        return families
