"""What has happened at a server between two scrapes of its metrics."""

import math
from typing import NamedTuple

from recurra_client.cli.scrape import Scrape, Where, everywhere


class Between(NamedTuple):
    """Two scrapes of one server, one after the other."""

    before: Scrape
    now: Scrape

    @property
    def seconds(self) -> float:
        """The time between them."""
        return max(self.now.at - self.before.at, 1e-9)

    def rate(self, counter: str, where: Where = everywhere) -> float:
        """A counter's increase per second, summed."""
        return self._increase(counter, where) / self.seconds

    def rates(self, counter: str, label: str) -> dict[str, float]:
        """The same by a label, without what did not increase."""
        values = {sample.labels[label] for sample in self.now.of(counter)}
        rates = {value: self.rate(counter, lambda labels, value=value: labels[label] == value) for value in values}  # type: ignore[misc]
        return {value: rate for value, rate in sorted(rates.items(), key=lambda pair: -pair[1]) if rate > 0}

    def mean(self, histogram: str, where: Where = everywhere) -> float:
        """The mean of what was observed; NaN where nothing was."""
        count = self._increase(f"{histogram}_count", where)
        return self._increase(f"{histogram}_sum", where) / count if count else math.nan

    def quantile(self, share: float, histogram: str, where: Where = everywhere) -> float:
        """What this share of what was observed stays below; NaN where nothing was.

        Interpolated inside a bucket, as Prometheus' `histogram_quantile` does.
        """
        bounds = sorted({float(sample.labels["le"]) for sample in self.now.of(f"{histogram}_bucket")})
        counts = [
            self._increase(f"{histogram}_bucket", lambda labels, le=le: float(labels["le"]) == le and where(labels))  # type: ignore[misc]
            for le in bounds
        ]
        if not counts or not counts[-1]:
            return math.nan
        rank = share * counts[-1]
        place = next(place for place, count in enumerate(counts) if count >= rank)
        if math.isinf(bounds[place]):
            return bounds[place - 1]
        low, below = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
        return low + (bounds[place] - low) * (rank - below) / (counts[place] - below)

    def _increase(self, counter: str, where: Where) -> float:
        increase = self.now.total(counter, where) - self.before.total(counter, where)
        return increase if increase >= 0 else self.now.total(counter, where)  # the server was started anew
