"""The blocking client: the asyncio client, run by an event loop in a thread of its own."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, overload

import grpc
from numpy.typing import ArrayLike, NDArray
from recurra.v1 import models_pb2

from recurra_client.blocking_session import BlockingSession, BlockingSessions
from recurra_client.client import Client
from recurra_client.codec import Inputs
from recurra_client.credentials import Token
from recurra_client.durability import Durability
from recurra_client.loop_thread import iterate, run
from recurra_client.results import BatchResult, Generated


def connect(
    target: str = "localhost:50051",
    *,
    timeout: float | None = 30.0,
    reconnect: float = 20.0,
    keepalive: float | None = 30.0,
    credentials: grpc.ChannelCredentials | None = None,
    token: Token = "",
) -> "BlockingClient":
    """A blocking client of one server; use it with `with`. The arguments are those of `Client`.

    Raises:
        RuntimeError: This process was forked from one that had called it; as does any use of a client from before.
    """

    async def make() -> Client:
        return Client(
            target,
            timeout=timeout,
            reconnect=reconnect,
            keepalive=keepalive,
            credentials=credentials,
            token=token,
        )

    return BlockingClient(run(make()))


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
        run(self._client.close())

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
    ) -> BlockingSession:
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

    def resume(self, session_id: str, *, outputs: Sequence[str] = (), keep: bool = True) -> BlockingSession:
        """See `Client.resume`."""
        return BlockingSession(self._client.resume(session_id, outputs=outputs, keep=keep))

    def is_serving(self) -> bool:
        """See `Client.is_serving`."""
        return run(self._client.is_serving())

    def models(self) -> list[models_pb2.Model]:
        """See `Client.models`."""
        return run(self._client.models())

    def model(self, name: str, version: str = "") -> models_pb2.Model:
        """See `Client.model`."""
        return run(self._client.model(name, version))

    def load_model(self, name: str, version: str = "", *, digest: str = "") -> models_pb2.Model:
        """See `Client.load_model`."""
        return run(self._client.load_model(name, version, digest=digest))

    def unload_model(self, name: str, version: str = "") -> list[str]:
        """See `Client.unload_model`."""
        return run(self._client.unload_model(name, version))

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
        return run(self._client.predict(model, xs, **options))

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
        return run(self._client.step_batch(model, session_ids, x, **options))

    def generate(
        self,
        start: str | BlockingSession,
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
        """See `Client.generate`: it holds the session until all is taken or it is closed, as by leaving its `for`.

        Left early, it leaves the session where the server has got to, perhaps many steps past the last yielded.
        """
        return iterate(
            self._client.generate(
                start if isinstance(start, str) else start.asyncio_session,
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
