"""The metrics of several processes as those of one."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Exemplar, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_TIMEOUT = 4.0  # seconds
_COUNTED = ("counter", "histogram")
_LARGEST = ("_info", "_draining", "_lag_seconds", "_target_seconds", "_load_failed")
_SMALLEST = ("process_start_time_seconds", "recurra_store_up")
_Key = tuple[str, frozenset[tuple[str, str]]]
_Values = dict[_Key, float]


class MergedMetrics(Collector):
    """Scrapes workers and adds up what they tell.

    What a worker that has died had counted stays in the sums: a counter must not go back.

    Attributes:
        registry: What to serve.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # scrapes come on other threads
        self._ports: dict[int, int] = {}
        self._last: dict[int, dict[str, Metric]] = {}
        self._departed: dict[str, Metric] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def add(self, place: int, port: int) -> None:
        """A worker serves its metrics on this port of this machine."""
        with self._lock:
            self._ports[place] = port

    def remove(self, place: int) -> None:
        """A worker is gone."""
        with self._lock:
            self._ports.pop(place, None)
            last = self._last.pop(place, {})
            counted = {name: metric for name, metric in last.items() if metric.type in _COUNTED}
            self._departed = merge([self._departed, counted])

    def unready(self) -> str:
        """Why callers should not be sent to any of the workers; nothing where they should."""
        with self._lock:
            ports = list(self._ports.values())
        troubles = [_trouble(port) for port in ports]
        return "" if "" in troubles else "; ".join(sorted(set(troubles))) or "no worker runs"

    def describe(self) -> Iterable[Metric]:
        """Nothing, lest registering scrapes at once."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Scrape all workers; one that does not answer counts with what it last told."""
        with self._lock:
            for place, port in self._ports.items():
                try:
                    self._last[place] = _scrape(port)
                except OSError:
                    continue
            merged = merge([self._departed, *self._last.values()])
        yield from merged.values()


def merge(parts: Iterable[dict[str, Metric]]) -> dict[str, Metric]:
    """Add up metrics, by name; states and lags are the largest, start times and what is up the smallest.

    Of the examples of a bucket the newest stays.
    """
    merged: dict[str, Metric] = {}
    values: dict[str, _Values] = {}
    exemplars: dict[_Key, Exemplar] = {}
    for part in parts:
        for name, metric in part.items():
            merged.setdefault(name, Metric(name, metric.documentation, metric.type))
            found = values.setdefault(name, {})
            for sample in metric.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                found[key] = _together(name, found[key], sample.value) if key in found else sample.value
                if sample.exemplar is not None:
                    exemplars[key] = max(exemplars.get(key, sample.exemplar), sample.exemplar, key=_said_at)
    for name, metric in merged.items():
        for (sample_name, labels), value in values[name].items():
            metric.add_sample(sample_name, dict(labels), value, exemplar=exemplars.get((sample_name, labels)))
    return merged


def _said_at(exemplar: Exemplar) -> float:
    return float(exemplar.timestamp or 0)


def _together(name: str, one: float, other: float) -> float:
    if name.endswith(_LARGEST):
        return max(one, other)
    return min(one, other) if name in _SMALLEST else one + other


def _scrape(port: int) -> dict[str, Metric]:
    with_exemplars = {"Accept": "application/openmetrics-text; version=1.0.0"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=with_exemplars)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310 - likewise
        text = answer.read().decode()
    families: Iterator[Metric] = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return {metric.name: metric for metric in families}


def _trouble(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=_TIMEOUT):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode().strip()
    except OSError:
        return "a worker does not answer"
