"""The blocking client: the asyncio client, run by an event loop in a thread of its own."""

import asyncio
import datetime
import functools
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import grpc
from numpy.typing import ArrayLike, NDArray
from recurra.v1 import models_pb2, sessions_pb2

from recurra_client.admin import Sessions
from recurra_client.client import Client
from recurra_client.codec import Inputs
from recurra_client.credentials import Token
from recurra_client.durability import Durability
from recurra_client.feed import chunks, run_together
from recurra_client.results import BatchResult, Generated, StepInfo
from recurra_client.session import Session

T = TypeVar("T")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop that all blocking clients of this process share."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="recurra-client", daemon=True).start()
    return loop


def _run(work: Coroutine[Any, Any, T]) -> T:
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:  # such as KeyboardInterrupt
        future.cancel()
        raise


def _iterate(items: AsyncIterator[T]) -> Iterator[T]:
    end = object()

    async def advance() -> T | object:
        return await anext(items, end)

    async def finish() -> None:
        await items.aclose()  # type: ignore[attr-defined]  # they are all generators

    try:
        while (item := _run(advance())) is not end:
            yield item  # type: ignore[misc]
    finally:
        _run(finish())


def connect(
    target: str = "localhost:50051",
    *,
    timeout: float | None = 30.0,
    reconnect: float = 20.0,
    keepalive: float | None = 30.0,
    credentials: grpc.ChannelCredentials | None = None,
    token: Token = "",
) -> "BlockingClient":
    """A blocking client of one server; use it with `with`. The arguments are those of `Client`."""

    async def make() -> Client:
        return Client(
            target,
            timeout=timeout,
            reconnect=reconnect,
            keepalive=keepalive,
            credentials=credentials,
            token=token,
        )

    return BlockingClient(_run(make()))


class BlockingClient:
    """`Client` without `await`: the same names, arguments, results and errors. Made by `connect`.

    It may be shared by threads.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.sessions = BlockingSessions(client.sessions)

    def __enter__(self) -> Self:
        """Nothing is sent yet: the first call connects."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """See `Client.close`."""
        _run(self._client.close())

    def session(
        self,
        model: str,
        *,
        version: str = "",
        session_id: str = "",
        idle_timeout: float | datetime.timedelta | None = None,
        initial_states: Mapping[str, ArrayLike] | None = None,
        durability: Durability = "",
        outputs: Sequence[str] = (),
        keep: bool = False,
    ) -> "BlockingSession":
        """See `Client.session`."""
        return BlockingSession(
            self._client.session(
                model,
                version=version,
                session_id=session_id,
                idle_timeout=idle_timeout,
                initial_states=initial_states,
                durability=durability,
                outputs=outputs,
                keep=keep,
            )
        )

    def resume(self, session_id: str, *, outputs: Sequence[str] = (), keep: bool = True) -> "BlockingSession":
        """See `Client.resume`."""
        return BlockingSession(self._client.resume(session_id, outputs=outputs, keep=keep))

    def is_serving(self) -> bool:
        """See `Client.is_serving`."""
        return _run(self._client.is_serving())

    def models(self) -> list[models_pb2.Model]:
        """See `Client.models`."""
        return _run(self._client.models())

    def model(self, name: str, version: str = "") -> models_pb2.Model:
        """See `Client.model`."""
        return _run(self._client.model(name, version))

    def load_model(self, name: str, version: str = "", *, digest: str = "") -> models_pb2.Model:
        """See `Client.load_model`."""
        return _run(self._client.load_model(name, version, digest=digest))

    def unload_model(self, name: str, version: str = "") -> list[str]:
        """See `Client.unload_model`."""
        return _run(self._client.unload_model(name, version))

    @overload
    def predict(
        self,
        model: str,
        xs: Mapping[str, ArrayLike],
        *,
        version: str = ...,
        last_only: bool = ...,
        initial_states: Mapping[str, ArrayLike] | None = ...,
        outputs: Sequence[str] = ...,
    ) -> dict[str, NDArray[Any]]: ...
    @overload
    def predict(
        self,
        model: str,
        xs: ArrayLike,
        *,
        version: str = ...,
        last_only: bool = ...,
        initial_states: Mapping[str, ArrayLike] | None = ...,
        outputs: Sequence[str] = ...,
    ) -> NDArray[Any]: ...
    def predict(self, model: str, xs: Any, **options: Any) -> Any:
        """See `Client.predict`."""
        return _run(self._client.predict(model, xs, **options))

    @overload
    def step_batch(
        self,
        model: str,
        session_ids: Sequence[str],
        x: Mapping[str, ArrayLike],
        *,
        version: str = ...,
        steps: Sequence[int] = ...,
        chunks: bool = ...,
        outputs: Sequence[str] = ...,
    ) -> BatchResult[dict[str, NDArray[Any]]]: ...
    @overload
    def step_batch(
        self,
        model: str,
        session_ids: Sequence[str],
        x: ArrayLike,
        *,
        version: str = ...,
        steps: Sequence[int] = ...,
        chunks: bool = ...,
        outputs: Sequence[str] = ...,
    ) -> BatchResult[NDArray[Any]]: ...
    def step_batch(self, model: str, session_ids: Sequence[str], x: Any, **options: Any) -> BatchResult[Any]:
        """See `Client.step_batch`."""
        return _run(self._client.step_batch(model, session_ids, x, **options))

    def generate(
        self,
        start: "str | BlockingSession",
        x: Inputs,
        *,
        max_steps: int,
        version: str = "",
        temperature: float | None = None,
        top_k: int = 0,
        seed: int | None = None,
        stop_class: int | None = None,
        outputs: Sequence[str] = (),
    ) -> Iterator[Generated]:
        """See `Client.generate`."""
        return _iterate(
            self._client.generate(
                start if isinstance(start, str) else start._session,
                x,
                max_steps=max_steps,
                version=version,
                temperature=temperature,
                top_k=top_k,
                seed=seed,
                stop_class=stop_class,
                outputs=outputs,
            )
        )


class BlockingSession:
    """`Session` without `await`: the same names, arguments, results and errors."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> Self:
        """Open the session."""
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session, unless it is to be kept."""
        _run(self._session.__aexit__(kind, error, trace))

    @property
    def id(self) -> str:
        """See `Session.id`."""
        return self._session.id

    @property
    def route(self) -> str:
        """What a proxy chooses the server by, in all calls about this session."""
        return self._session.route

    @property
    def model(self) -> models_pb2.Model:
        """See `Session.model`."""
        return self._session.model

    @property
    def last(self) -> StepInfo:
        """See `Session.last`."""
        return self._session.last

    def open(self) -> Self:
        """See `Session.open`."""
        _run(self._session.open())
        return self

    def close(self) -> None:
        """See `Session.close`."""
        _run(self._session.close())

    @overload
    def step(self, x: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]: ...
    @overload
    def step(self, x: ArrayLike) -> NDArray[Any]: ...
    def step(self, x: Any) -> Any:
        """See `Session.step`."""
        return _run(self._session.step(x))

    @overload
    def steps(self, xs: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]: ...
    @overload
    def steps(self, xs: ArrayLike) -> NDArray[Any]: ...
    def steps(self, xs: Any) -> Any:
        """See `Session.steps`."""
        return _run(self._session.steps(xs))

    @overload  # a mapping is an iterable too, but the first that fits counts
    def stream(  # type: ignore[overload-overlap]
        self, xs: Mapping[str, ArrayLike], *, window: int = ...
    ) -> Iterator[dict[str, NDArray[Any]]]: ...
    @overload
    def stream(self, xs: ArrayLike | Iterable[ArrayLike], *, window: int = ...) -> Iterator[NDArray[Any]]: ...
    @overload
    def stream(
        self, xs: Iterable[Mapping[str, ArrayLike]], *, window: int = ...
    ) -> Iterator[dict[str, NDArray[Any]]]: ...
    def stream(self, xs: Any, *, window: int = 32) -> Iterator[Any]:
        """See `Session.stream`; of an iterable, the next step is taken when the one before is answered."""
        for chunk in chunks(xs, window):
            outputs, error = _run(run_together(self._session.step, self._session.steps, chunk))
            yield from outputs
            if error is not None:
                raise error

    def export(self) -> bytes:
        """See `Session.export`."""
        return _run(self._session.export())

    def info(self) -> sessions_pb2.Session:
        """See `Session.info`."""
        return _run(self._session.info())

    def reset(self) -> None:
        """See `Session.reset`."""
        _run(self._session.reset())

    def fork(self, session_id: str = "", *, keep: bool = False) -> "BlockingSession":
        """See `Session.fork`."""
        return BlockingSession(_run(self._session.fork(session_id, keep=keep)))


class BlockingSessions:
    """`Sessions` without `await`: the same names, arguments, results and errors."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def list(self, model: str = "", *, limit: int | None = None) -> Iterator[sessions_pb2.Session]:
        """See `Sessions.list`."""
        return _iterate(self._sessions.list(model, limit=limit))

    def count(self, model: str = "") -> int:
        """See `Sessions.count`."""
        return _run(self._sessions.count(model))

    def get(self, session_id: str) -> sessions_pb2.Session:
        """See `Sessions.get`."""
        return _run(self._sessions.get(session_id))

    def reset(self, session_id: str) -> sessions_pb2.Session:
        """See `Sessions.reset`."""
        return _run(self._sessions.reset(session_id))

    def close(self, session_id: str) -> sessions_pb2.Session:
        """See `Sessions.close`."""
        return _run(self._sessions.close(session_id))

    def fork(self, session_id: str, fork_session_id: str = "") -> sessions_pb2.Session:
        """See `Sessions.fork`."""
        return _run(self._sessions.fork(session_id, fork_session_id))

    def export(self, session_id: str) -> bytes:
        """See `Sessions.export`."""
        return _run(self._sessions.export(session_id))

    def import_(
        self,
        snapshot: bytes,
        session_id: str = "",
        *,
        idle_timeout: float | None = None,
        durability: Durability = "",
    ) -> sessions_pb2.Session:
        """See `Sessions.import_`."""
        return _run(self._sessions.import_(snapshot, session_id, idle_timeout=idle_timeout, durability=durability))

    def drain(self, *, grace: float | None = None) -> sessions_pb2.DrainSessionsResponse:
        """See `Sessions.drain`."""
        return _run(self._sessions.drain(grace=grace))

    def rewind(self, session_id: str, snapshot: bytes) -> sessions_pb2.Session:
        """See `Sessions.rewind`."""
        return _run(self._sessions.rewind(session_id, snapshot))
