"""A server's metrics, as two scrapes tell them: what stands, and what has happened between them."""

import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from recurra_client.cli.usererror import UserError

_TIMEOUT: Final = 5.0
Labels = Mapping[str, str]
Where = Callable[[Labels], bool]


def everywhere(_: Labels) -> bool:
    """All series of a metric."""
    return True


class Sample(NamedTuple):
    """One series."""

    labels: dict[str, str]
    value: float


class Scrape:
    """What a server told at a time (monotonic, in seconds)."""

    def __init__(self, at: float, series: dict[str, list[Sample]]) -> None:
        self.at = at
        self._series = series

    def of(self, name: str) -> list[Sample]:
        """The series of a metric."""
        return self._series.get(name, [])

    def total(self, name: str, where: Where = everywhere) -> float:
        """A gauge or counter, summed."""
        return sum(sample.value for sample in self.of(name) if where(sample.labels))

    def value(self, name: str, otherwise: float = math.nan) -> float:
        """A metric without labels."""
        return self.of(name)[0].value if self.of(name) else otherwise


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


def scrape(url: str) -> Scrape:
    """Ask a server for its metrics.

    Raises:
        UserError: It cannot be reached, or answers something else.
    """
    if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
        raise UserError(f"{url} is no URL of metrics, such as http://localhost:9464/metrics")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:  # noqa: S310 - it is one of the two
            text = answer.read().decode()
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise UserError(f"cannot get metrics from {url}: {getattr(why, 'strerror', None) or why}") from None
    series: dict[str, list[Sample]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series.setdefault(sample.name, []).append(Sample(sample.labels, sample.value))
    except ValueError:
        series = {}
    if "recurra_build_info" not in series:
        raise UserError(f"{url} answers, but not with the metrics of a Recurra server")
    return Scrape(time.monotonic(), series)
