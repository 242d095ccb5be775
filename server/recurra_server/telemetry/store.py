"""A store of checkpoints as it is, with every request timed."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from recurra_server.engine.ports import Checkpoint, SessionStore
from recurra_server.telemetry.histograms import SECONDS, BulkHistogram

_T = TypeVar("_T")
_OPERATIONS = ("create", "save", "take_over", "delete")
# Is told of a request: what was asked, its size in sessions, when it began (monotonic seconds), how long it took,
# and whether it failed.
StoreObserver = Callable[[str, int, float, float, bool], object]


class ObservedStore:
    """A `SessionStore` that passes everything on to another.

    Attributes:
        seconds: Times of its requests, by operation.
        failures: Requests that failed, by operation.
        observers: Told of every request.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.seconds = {operation: BulkHistogram(SECONDS) for operation in _OPERATIONS}
        self.failures: Counter[str] = Counter()
        self.observers: list[StoreObserver] = []

    async def create(self, checkpoint: Checkpoint) -> int | None:
        """Keep the first checkpoint of a new session."""
        return await self._timed("create", 1, self._store.create(checkpoint))

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keep newer checkpoints."""
        if not checkpoints:
            return []
        return await self._timed("save", len(checkpoints), self._store.save(checkpoints))

    async def take_over(self, store_key: str) -> Checkpoint | None:
        """Raise a session's epoch and read it."""
        return await self._timed("take_over", 1, self._store.take_over(store_key))

    async def delete(self, sessions: Sequence[tuple[str, int, float]]) -> None:
        """Forget sessions."""
        if sessions:
            await self._timed("delete", len(sessions), self._store.delete(sessions))

    async def identity(self) -> str:
        """Who the store is; not timed, as nobody waits for it."""
        return await self._store.identity()

    async def close(self) -> None:
        """End the connections."""
        await self._store.close()

    async def _timed(self, operation: str, sessions: int, answer: Awaitable[_T]) -> _T:
        began, failed = time.monotonic(), True
        try:
            answered = await answer
            failed = False
            return answered
        finally:
            seconds = time.monotonic() - began
            self.seconds[operation].observe((seconds,))
            self.failures[operation] += failed
            for observe in self.observers:
                observe(operation, sessions, began, seconds, failed)


def request_families(store: ObservedStore | None) -> Iterator[Metric]:
    """The requests as a scrape has them; no samples where there is no store."""
    seconds = HistogramMetricFamily(
        "recurra_store_request_seconds", "Time of a request to the store of checkpoints.", labels=["operation"]
    )
    failures = CounterMetricFamily(
        "recurra_store_request_failures", "Requests that the store did not answer, or refused.", labels=["operation"]
    )
    if store is not None:
        for operation, histogram in store.seconds.items():
            histogram.add_to(seconds, [operation])
            failures.add_metric([operation], store.failures[operation])
    yield from (seconds, failures)
