"""grpc.health.v1: which services and models are served, for whoever asks or watches."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recurra_server.engine.errors import CapacityError
from recurra_server.rpc.answers import Answers
from recurra_server.rpc.status import guarded
from recurra_server.security.bounds import Bounds
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]
_Status = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers as the one of grpcio-health-checking does.

    With that one, what is to be told waits until all who watch have read what was told before, and anybody may watch.

    Args:
        edge: Counts errors.
        bounds: Whoever watches must take in what they are told within `slow_reader_timeout`. As many may watch at once
            as there may be connections; one more takes the place of whoever has watched longest, so that nobody can
            keep the others from watching.
    """

    def __init__(self, edge: EdgeCounts, bounds: Bounds) -> None:
        self.edge = edge
        self._patience = bounds.slow_reader_timeout
        self._most_watchers = bounds.max_connections
        self._served = {"": True}
        self._watchers: dict[Answers, None] = {}
        self._news: defaultdict[str, set[asyncio.Event]] = defaultdict(set)  # by what is watched
        self._shutting_down = False

    def tell(self, service: str, served: bool) -> None:
        """Say from now on of a service or model whether it is served; after `shut_down` this does nothing."""
        if not self._shutting_down:
            self._served[service] = served
            for news in self._news.get(service, ()):
                news.set()

    def shut_down(self) -> None:
        """Say from now on that nothing is served."""
        for service in self._served:
            self.tell(service, False)
        self._shutting_down = True

    @guarded
    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """Tell whether something is served."""
        if request.service not in self._served:
            await context.abort(grpc.StatusCode.NOT_FOUND, "nothing of this name has been served here")
        return _Status(status=self._status_of(request.service))

    @guarded
    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        """Tell whether something is served, and again whenever that changes."""
        if len(self._watchers) >= self._most_watchers:
            longest = next(iter(self._watchers))
            del self._watchers[longest]
            longest.expel(_displaced(self._most_watchers))
        answers = Answers(context, self.edge, self._patience)
        self._watchers[answers] = None
        try:
            await answers.run(self._watch(request.service))
        finally:
            self._watchers.pop(answers, None)

    async def _watch(self, service: str) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        news, told = asyncio.Event(), None
        self._news[service].add(news)
        try:
            while True:
                news.clear()
                status = self._status_of(service)
                if status == told:
                    await news.wait()
                else:
                    told = status
                    yield _Status(status=status)
        finally:
            self._news[service].remove(news)
            if not self._news[service]:
                del self._news[service]

    def _status_of(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        served = self._served.get(service)
        if served is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if served else _Status.NOT_SERVING


def _displaced(limit: int) -> CapacityError:
    return CapacityError(
        f"{limit:,} calls may watch, and others came after you", retry_after=1.0, bound="max_connections", limit=limit
    )
