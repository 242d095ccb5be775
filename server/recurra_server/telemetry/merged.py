"""The metrics of several processes as those of one."""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from typing import TypeVar

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import Exemplar, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_log = structlog.get_logger(__name__)
_TIMEOUT = 4.0  # seconds
_NO_ANSWER = (OSError, HTTPException, ValueError)  # there is none, it breaks off, or it is no metrics
_COUNTED = ("counter", "histogram")
_LARGEST = ("_info", "_draining", "_lag_seconds", "_target_seconds", "_load_failed", "_used_ratio")
_SMALLEST = ("process_start_time_seconds", "recurra_store_up")
_Key = tuple[str, frozenset[tuple[str, str]]]
_Values = dict[_Key, float]
_Metrics = dict[str, Metric]  # by name
_T = TypeVar("_T")


class MergedMetrics(Collector):
    """Scrapes workers and adds up what they tell.

    What a worker that has died, or does not answer, had counted stays in the sums: a counter must not go back. What it
    had open is no longer told.

    Attributes:
        registry: What to serve.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # never held for long: scrapes come on other threads, workers on the loop's
        self._scraping = threading.Lock()  # one after the other, lest an older one is taken for the newest
        self._ports: dict[int, int] = {}
        self._last: dict[int, _Metrics] = {}
        self._departed: _Metrics = {}
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
            self._departed = merge([self._departed, _counted(self._last.pop(place, {}))])

    def unready(self) -> str:
        """Why callers should not be sent to any of the workers; nothing where they should."""
        troubles = self._troubles("/readyz")
        return "" if "" in troubles else "; ".join(sorted(troubles)) or "no worker runs"

    def unhealthy(self) -> str:
        """What is wrong where workers serve and none of them does its work; nothing while they are being started."""
        troubles = self._troubles("/healthz")
        return "" if "" in troubles else "; ".join(sorted(troubles))

    def _troubles(self, probe: str) -> set[str]:
        """What the workers answer to a probe; nothing is among it where one is well."""
        with self._lock:
            ports = list(self._ports.values())
        return set(_all_at_once(partial(_trouble, probe), ports))

    def describe(self) -> Iterable[Metric]:
        """Nothing, lest registering scrapes at once."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Scrape all workers; one that does not answer counts with what it had counted when it last did."""
        with self._scraping:
            with self._lock:
                ports = dict(self._ports)
            found = _all_at_once(_scrape, ports.values())
            with self._lock:
                for (place, port), metrics in zip(ports.items(), found, strict=True):
                    if self._ports.get(place) == port:  # else it is gone meanwhile, and is counted with those
                        self._last[place] = _counted(self._last.get(place, {})) if metrics is None else metrics
                parts = [self._departed, *self._last.values()]
        yield from merge(parts).values()


def merge(parts: Iterable[_Metrics]) -> _Metrics:
    """Add up metrics, by name; states, lags and shares are the largest, start times and what is up the smallest.

    Of the examples of a bucket the newest stays.
    """
    merged: _Metrics = {}
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


def _counted(metrics: _Metrics) -> _Metrics:
    return {name: metric for name, metric in metrics.items() if metric.type in _COUNTED}


def _all_at_once(ask: Callable[[int], _T], ports: Collection[int]) -> list[_T]:
    """Ask all workers: several that hang take no longer than one."""
    with ThreadPoolExecutor(max(1, len(ports))) as executor:
        return list(executor.map(ask, ports))


def _scrape(port: int) -> _Metrics | None:
    with_exemplars = {"Accept": "application/openmetrics-text; version=1.0.0"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=with_exemplars)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310 - likewise
            text = answer.read().decode()
        families: Iterator[Metric] = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        return {metric.name: metric for metric in families}
    except _NO_ANSWER as error:
        _log.warning("worker_not_scraped", port=port, why=str(error))
        return None


def _trouble(probe: str, port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{probe}", timeout=_TIMEOUT):
            return ""
    except urllib.error.HTTPError as error:
        return error.read().decode().strip()
    except _NO_ANSWER:
        return "a worker does not answer"
