"""What the calls of one client share: the channel, the time limits, and trying again when the connection breaks."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import cached_property
from typing import Final, TypeVar

import grpc
from grpc import aio
from recurra.v1 import inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2_grpc

from recurra_client.codec import Codec
from recurra_client.errors import (
    DeadlineExceededError,
    DrainingError,
    RecurraError,
    StoreUnavailableError,
    UnavailableError,
    rpc_errors,
)

Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")

_LATEST_SECONDS = 1.0  # for which the latest version is taken to be the latest
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
ROUTE: Final = "recurra-session"
"""Metadata key of what a proxy in front of several servers chooses one by: the same in all calls about a session."""


def pauses(uniform: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
    """Seconds to wait before each new attempt: exponential back-off with full jitter.

    The jitter keeps the clients of a server that went down from coming back all at once
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    ceiling = FIRST_PAUSE
    while True:
        yield uniform(0, ceiling)
        ceiling = min(2 * ceiling, LONGEST_PAUSE)


def channel_options(keepalive: float | None) -> list[tuple[str, int]]:
    """Options of gRPC's channels: keep-alive, quick reconnects, and answers of any size."""
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # also how long one attempt to connect may take
        ("grpc.max_reconnect_backoff_ms", int(LONGEST_PAUSE * 1000)),
    ]
    if keepalive is not None:
        options += [("grpc.keepalive_time_ms", int(keepalive * 1000)), ("grpc.keepalive_timeout_ms", 10_000)]
    return options


def route_by(key: str) -> tuple[tuple[str, str], ...]:
    """Metadata for a proxy; none for a call that is about no session."""
    return ((ROUTE, key),) if key else ()


class Connection:
    """A channel to one server, and how patient to be with it."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None,
        reconnect: float,
        keepalive: float | None,
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        self.target = target
        self.timeout = timeout
        self.reconnect = reconnect
        self._options = channel_options(keepalive)
        self._credentials = credentials
        self._codecs: dict[tuple[str, str], tuple[Codec, float]] = {}  # and until when it holds

    # The channel belongs to the event loop that runs when it is made, so it is made by the first call.
    @cached_property
    def _channel(self) -> aio.Channel:
        if self._credentials is None:
            return aio.insecure_channel(self.target, options=self._options)
        return aio.secure_channel(self.target, self._credentials, options=self._options)

    @cached_property
    def inference(self) -> "inference_pb2_grpc.InferenceServiceAsyncStub":
        """Stub of the InferenceService."""
        return inference_pb2_grpc.InferenceServiceStub(self._channel)

    @cached_property
    def sessions(self) -> "sessions_pb2_grpc.SessionsServiceAsyncStub":
        """Stub of the SessionsService."""
        return sessions_pb2_grpc.SessionsServiceStub(self._channel)

    @cached_property
    def models(self) -> "models_pb2_grpc.ModelsServiceAsyncStub":
        """Stub of the ModelsService."""
        return models_pb2_grpc.ModelsServiceStub(self._channel)

    @cached_property
    def health(self) -> "aio.UnaryUnaryMultiCallable[bytes, bytes]":
        """The health service's Check, whose messages are so small that they need no stubs."""
        return self._channel.unary_unary("/grpc.health.v1.Health/Check")

    async def close(self) -> None:
        """Close the channel; calls in progress and later ones raise ClientClosedError."""
        await self._channel.close()

    async def call(
        self,
        method: aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        repeatable: bool = True,
        route: str = "",
    ) -> Response:
        """Make a unary call, and make it again while it is sure that this does no harm.

        Args:
            method: What is called.
            request: What is sent.
            repeatable: Whether it may be repeated if the connection breaks. Where a server shuts down and
                has not done what was asked, any call is repeated: another server may be there.
            route: What a proxy chooses the server by; else the session that the request names.

        Raises:
            RecurraError: Or one of its subclasses.
        """
        metadata = route_by(route or getattr(request, "session_id", ""))

        async def attempt() -> Response:
            with rpc_errors():
                return await method(request, timeout=self.timeout, metadata=metadata)

        return await self.in_time(self.persist(attempt, UnavailableError if repeatable else DrainingError))

    async def persist(
        self, attempt: Callable[[], Awaitable[Result]], through: type[UnavailableError] = UnavailableError
    ) -> Result:
        """Await `attempt()`, again and again with growing pauses while it fails with `through`.

        Raises:
            UnavailableError: The server could not be reached for `reconnect` seconds.
            RecurraError: Whatever else `attempt` raised.
        """
        try:
            return await attempt()
        except through as error:
            trouble = error
        began = time.monotonic()
        for pause in pauses():
            if time.monotonic() + pause > began + self.reconnect:
                break
            try:
                await asyncio.sleep(pause)
                return await attempt()
            except through as error:
                trouble = error
            except asyncio.CancelledError as cancelled:
                cancelled.__cause__ = trouble  # what was waited for, if this is a timeout
                raise
        if isinstance(trouble, (DrainingError, StoreUnavailableError)):
            raise trouble
        raise self._unreachable(trouble, time.monotonic() - began) from None

    async def in_time(self, work: Awaitable[Result]) -> Result:
        """Await `work`, for at most `timeout` seconds.

        Raises:
            UnavailableError: The time went by while the server could not be reached.
            DeadlineExceededError: The server was reached, but did not answer in time.
            RecurraError: What the CancelledError has as its cause that ends `work`: it says what was waited for.
        """
        try:
            async with asyncio.timeout(self.timeout):
                return await work
        except RecurraError:  # some are TimeoutErrors too
            raise
        except TimeoutError as error:
            assert self.timeout is not None  # noqa: S101 - for the type checker
            trouble = error.__cause__.__cause__ if error.__cause__ else None
            if isinstance(trouble, UnavailableError):
                raise self._unreachable(trouble, self.timeout) from None
            if isinstance(trouble, RecurraError):
                raise trouble from None
            raise DeadlineExceededError(
                f"{self.target} did not answer within {self.timeout:g} s",
                reason="DEADLINE",
                code=grpc.StatusCode.DEADLINE_EXCEEDED,
            ) from None

    async def codec(self, model: str, version: str = "", digest: str = "") -> Codec:
        """The codec of a model, asked for once; of its latest version if none is named.

        Args:
            model: Its name.
            version: Its version. Empty: the latest.
            digest: The model's, if known: a codec kept of another file is dropped.

        Raises:
            ModelNotFoundError: No such model or version is loaded.
        """
        kept, until = self._codecs.get((model, version), (None, 0.0))
        if kept is not None and time.monotonic() < until and (not digest or kept.model.digest == digest):
            return kept
        request = models_pb2.GetModelRequest(name=model, version=version, digest=digest)
        codec = Codec((await self.call(self.models.GetModel, request)).model)
        # Which one is the latest may change.
        self._codecs[model, version] = codec, math.inf if version else time.monotonic() + _LATEST_SECONDS
        return codec

    def _unreachable(self, trouble: RecurraError, seconds: float) -> UnavailableError:
        waited = f" (tried for {seconds:.3g} s)" if self.reconnect and seconds >= FIRST_PAUSE else ""
        return UnavailableError(
            f"cannot reach {self.target}: {_plain(trouble.message)}{waited}",
            reason="UNAVAILABLE",
            code=grpc.StatusCode.UNAVAILABLE,
        )


# What stands in gRPC's message when a connection could not be made, and what it means.
_CAUSES: Final = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of this address, or not signed by anybody who is trusted here",
    "Tls handshake failed": "the TLS handshake failed",
    "Socket closed": "it closed the connection: it may want TLS, or a certificate of the client",
}


def _plain(message: str) -> str:
    """The message of gRPC without its repetition of addresses: only the last cause is of interest."""
    if message.startswith("failed to connect"):
        for sign, meaning in _CAUSES.items():
            if sign in message:
                return meaning
    return message.rsplit(": ", 1)[-1].rstrip(".")
