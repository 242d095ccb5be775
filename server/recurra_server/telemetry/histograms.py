"""Histograms that are cheap to fill: values are gathered in lists and counted many at a time."""

import time
from collections.abc import Sequence

import numpy as np
from prometheus_client.core import Exemplar, HistogramMetricFamily

# From 50 us to 1 s, and beyond for the long chunks of big models; seconds.
SECONDS = (
    50e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 750e-6, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7.5e-3,
    10e-3, 15e-3, 20e-3, 30e-3, 50e-3, 75e-3, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0,
)  # fmt: skip
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_FLUSH_AT = 2048


class BulkHistogram:
    """One histogram of one set of label values.

    Observing a value with prometheus_client's own histogram takes about a microsecond; here it
    takes a list append, and one numpy call for some two thousand values.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = np.array(bounds, np.float64)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._pending: list[float] = []
        self._exemplars: dict[int, Exemplar] = {}

    def observe(self, values: Sequence[float]) -> None:
        """Record values."""
        self._pending.extend(values)
        if len(self._pending) >= _FLUSH_AT:
            self._flush()

    def exemplify(self, value: float, labels: dict[str, str]) -> None:
        """Name the trace of a value, as an example of its bucket; the last one stays."""
        bucket = int(np.searchsorted(self._bounds, value, side="left"))
        self._exemplars[bucket] = Exemplar(labels, value, time.time())

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Write the buckets into a scrape's answer."""
        self._flush()
        cumulative = np.cumsum(self._counts).tolist()
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        buckets = [
            (name, count, exemplar) if (exemplar := self._exemplars.get(bucket)) is not None else (name, count)
            for bucket, (name, count) in enumerate(zip(names, cumulative, strict=True))
        ]
        family.add_metric(labels, buckets, self._sum)

    def total(self) -> tuple[int, float]:
        """How many values were recorded, and their sum."""
        self._flush()
        return int(self._counts.sum()), self._sum

    def _flush(self) -> None:
        values = np.array(self._pending)
        self._pending.clear()
        # Prometheus' buckets include their upper bound.
        buckets = np.searchsorted(self._bounds, values, side="left")
        self._counts += np.bincount(buckets, minlength=len(self._counts))
        self._sum += float(values.sum())
