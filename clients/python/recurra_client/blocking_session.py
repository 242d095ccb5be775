"""Sessions for the blocking client."""

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, overload

from numpy.typing import ArrayLike, NDArray
from recurra.v1 import models_pb2, sessions_pb2

from recurra_client.durability import Durability
from recurra_client.feed import chunks, run_together
from recurra_client.loop_thread import iterate, run
from recurra_client.results import StepInfo
from recurra_client.session import Session
from recurra_client.sessions import Sessions


class BlockingSession:
    """`Session` without `await`: the same names, arguments, results and errors.

    Attributes:
        asyncio_session: The one behind it, for the thread that runs it.
    """

    def __init__(self, session: Session) -> None:
        self.asyncio_session = session

    def __enter__(self) -> Self:
        """Open the session."""
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session, unless it is to be kept."""
        run(self.asyncio_session.__aexit__(kind, error, trace))

    @property
    def id(self) -> str:
        """See `Session.id`."""
        return self.asyncio_session.id

    @property
    def route(self) -> str:
        """What a proxy chooses the server by, in all calls about this session."""
        return self.asyncio_session.route

    @property
    def model(self) -> models_pb2.Model:
        """See `Session.model`."""
        return self.asyncio_session.model

    @property
    def last(self) -> StepInfo:
        """See `Session.last`."""
        return self.asyncio_session.last

    def open(self) -> Self:
        """See `Session.open`."""
        run(self.asyncio_session.open())
        return self

    def close(self) -> None:
        """See `Session.close`."""
        run(self.asyncio_session.close())

    @overload
    def step(self, x: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]: ...
    @overload
    def step(self, x: ArrayLike) -> NDArray[Any]: ...
    def step(self, x: Any) -> Any:
        """See `Session.step`."""
        return run(self.asyncio_session.step(x))

    @overload
    def steps(self, xs: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]: ...
    @overload
    def steps(self, xs: ArrayLike) -> NDArray[Any]: ...
    def steps(self, xs: Any) -> Any:
        """See `Session.steps`."""
        return run(self.asyncio_session.steps(xs))

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
            outputs, error = run(run_together(self.asyncio_session.step, self.asyncio_session.steps, chunk))
            yield from outputs
            if error is not None:
                raise error

    def export(self) -> bytes:
        """See `Session.export`."""
        return run(self.asyncio_session.export())

    def info(self) -> sessions_pb2.Session:
        """See `Session.info`."""
        return run(self.asyncio_session.info())

    def reset(self) -> None:
        """See `Session.reset`."""
        run(self.asyncio_session.reset())

    def fork(self, session_id: str = "", *, keep: bool = False) -> "BlockingSession":
        """See `Session.fork`."""
        return BlockingSession(run(self.asyncio_session.fork(session_id, keep=keep)))


class BlockingSessions:
    """`Sessions` without `await`: the same names, arguments, results and errors."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def list(self, model: str = "", *, limit: int | None = None) -> Iterator[sessions_pb2.Session]:
        """See `Sessions.list`."""
        return iterate(self._sessions.list(model, limit=limit))

    def count(self, model: str = "") -> int:
        """See `Sessions.count`."""
        return run(self._sessions.count(model))

    def get(self, session_id: str) -> sessions_pb2.Session:
        """See `Sessions.get`."""
        return run(self._sessions.get(session_id))

    def reset(self, session_id: str) -> sessions_pb2.Session:
        """See `Sessions.reset`."""
        return run(self._sessions.reset(session_id))

    def close(self, session_id: str) -> sessions_pb2.Session:
        """See `Sessions.close`."""
        return run(self._sessions.close(session_id))

    def fork(self, session_id: str, fork_session_id: str = "") -> sessions_pb2.Session:
        """See `Sessions.fork`."""
        return run(self._sessions.fork(session_id, fork_session_id))

    def export(self, session_id: str) -> bytes:
        """See `Sessions.export`."""
        return run(self._sessions.export(session_id))

    def import_(
        self,
        snapshot: bytes,
        session_id: str = "",
        *,
        idle_timeout: float | None = None,
        durability: Durability = "",
    ) -> sessions_pb2.Session:
        """See `Sessions.import_`."""
        return run(self._sessions.import_(snapshot, session_id, idle_timeout=idle_timeout, durability=durability))

    def drain(self, *, grace: float | None = None) -> sessions_pb2.DrainSessionsResponse:
        """See `Sessions.drain`."""
        return run(self._sessions.drain(grace=grace))

    def rewind(self, session_id: str, snapshot: bytes) -> sessions_pb2.Session:
        """See `Sessions.rewind`."""
        return run(self._sessions.rewind(session_id, snapshot))
