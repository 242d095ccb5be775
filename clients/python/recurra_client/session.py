"""A session: one sequence in progress on the server, stepped with asyncio."""

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from numpy.typing import ArrayLike, NDArray
from recurra.v1 import inference_pb2, models_pb2, sessions_pb2

from recurra_client.codec import Codec, Inputs
from recurra_client.connection import Connection
from recurra_client.delivery import Delivered, Delivery
from recurra_client.errors import RecurraError, SessionNotFoundError, StepGapError
from recurra_client.feed import run_feed
from recurra_client.opening import fork_session, get_session
from recurra_client.results import StepInfo

_T = TypeVar("_T")


class Session:
    """One sequence in progress. Made by `Client.session`, `Client.resume` or `fork`; use it with `async with`.

    Every step is numbered, so that a step whose connection broke is sent again and yet applied once. At most
    one message is on its way at a time: the server keeps the reply to the last one only. The steps of a durable session
    are kept here until they are durable there, and are sent again to the server that takes it over.

    A step that was called stays in the sequence even if the caller stops waiting for it (by cancelling it, or by
    `UnavailableError`, `DeadlineExceededError`, `UnauthenticatedError` or `ForbiddenError`): it is applied before the
    next one, and its output is dropped. So go on with the next reading; do not send the same one again. A step that
    fails otherwise was not applied, but for `StepNotHeldError`: then it was, and its output is lost.
    """

    def __init__(
        self,
        connection: Connection,
        begin: Callable[[], Awaitable[sessions_pb2.Session]],
        *,
        outputs: Sequence[str] = (),
        keep: bool,
        route: str = "",
    ) -> None:
        self._connection = connection
        self._begin = begin
        self._outputs = outputs
        self._keep = keep
        self._route = route  # if not by its id
        self._info = sessions_pb2.Session()
        self._codec: Codec | None = None
        self._delivery: Delivery | None = None
        self._last = Delivered(inference_pb2.StepResult(), 0.0)

    @property
    def id(self) -> str:
        """The session's id: any client may go on with it, by `Client.resume`."""
        return self._info.session_id

    @property
    def route(self) -> str:
        """What a proxy chooses the server by, in all calls about this session."""
        return self._route or self.id

    @property
    def model(self) -> models_pb2.Model:
        """The description of the model that it steps."""
        return self._opened()[0].model

    @property
    def last(self) -> StepInfo:
        """How the last answered step went."""
        result, latency = self._last
        timing = result.timing
        return StepInfo(
            step=result.step,
            replayed=result.replayed,
            latency=latency,
            queue=timing.queue_us * 1e-6,
            compute=timing.compute_us * 1e-6,
            batch_size=timing.batch_size,
            durable_step=result.durable_step,
        )

    async def open(self) -> Self:
        """Open the session on the server, as `async with` does.

        Raises:
            ModelNotFoundError, CapacityError, DrainingError, SessionExistsError, InputError, UnavailableError
        """
        if self._delivery is None:
            self._info = info = await self._begin()
            codec = await self._connection.codec(info.model, info.version, info.model_digest)
            self._codec = codec.asking(self._outputs)
            durable = info.durability in (sessions_pb2.DURABILITY_ASYNC, sessions_pb2.DURABILITY_SYNC)
            self._delivery = Delivery(
                self._connection,
                info.session_id,
                info.steps,
                outputs=self._codec.wanted,
                route=self.route,
                durable=durable,
            )
        return self

    async def close(self) -> None:
        """Close the session on the server and free its memory there. No error if it is gone already.

        Raises:
            UnavailableError, DeadlineExceededError: No answer; call it again.
        """
        await self._close(repeatable=True)

    async def __aenter__(self) -> Self:
        """Open the session."""
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session, or drop what stands in line if it is kept; one that cannot be closed will expire."""
        if self._keep:
            if self._delivery is not None:
                await self._delivery.once.end()
        else:
            with contextlib.suppress(RecurraError):
                await self._close(repeatable=False)

    @overload
    async def step(self, x: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]: ...
    @overload
    async def step(self, x: ArrayLike) -> NDArray[Any]: ...
    async def step(self, x: Inputs) -> Any:
        """Apply one step.

        Args:
            x: The model's input, of its [dims]; converted to its dtype. Where there are several inputs, or several
                outputs are answered: a dict by name.

        Returns:
            The output, of its [dims]; for a dict, a dict by name. Read-only views: `.copy()` to change one.

        Raises:
            InputError: It does not fit the model, or holds NaN or infinity. It was not applied.
            StateNotFiniteError: It would have spoilt the session's memory. It was not applied.
            SessionNotFoundError, SessionExpiredError, SessionLostError: The session is gone.
            UnavailableError, DeadlineExceededError: No answer; the step stays in the sequence. So where a generation
                of the session has not ended in time.
        """
        codec, delivery = self._opened()
        self._last = done = await delivery.deliver(codec.step(x))
        return codec.outputs(done.result.outputs, named=isinstance(x, Mapping))

    @overload
    async def steps(self, xs: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]: ...
    @overload
    async def steps(self, xs: ArrayLike) -> NDArray[Any]: ...
    async def steps(self, xs: Inputs) -> Any:
        """Apply a chunk of T consecutive steps in one message: all of them, or on an error none.

        Args:
            xs: As for `step`, but of shape [T, dims]; T is bounded by the server and by the size of a message.

        Returns:
            As `step`, but of shape [T, dims].

        Raises:
            As `step`.
        """
        codec, delivery = self._opened()
        tensors, _ = codec.sequence(xs)
        self._last = done = await delivery.deliver(tensors)
        return codec.outputs(done.result.outputs, named=isinstance(xs, Mapping))

    @overload  # a mapping is an iterable too, but the first that fits counts
    def stream(  # type: ignore[overload-overlap]
        self, xs: Mapping[str, ArrayLike], *, window: int = ...
    ) -> AsyncIterator[dict[str, NDArray[Any]]]: ...
    @overload
    def stream(
        self, xs: ArrayLike | Iterable[ArrayLike] | AsyncIterable[ArrayLike], *, window: int = ...
    ) -> AsyncIterator[NDArray[Any]]: ...
    @overload
    def stream(
        self, xs: Iterable[Mapping[str, ArrayLike]] | AsyncIterable[Mapping[str, ArrayLike]], *, window: int = ...
    ) -> AsyncIterator[dict[str, NDArray[Any]]]: ...
    async def stream(self, xs: Any, *, window: int = 32) -> AsyncIterator[Any]:
        """Apply a sequence of any length, step by step, and yield each step's output in order.

        An array of shape [T, dims] (or a dict of them, or a list) is sent in chunks of `window` steps. Of an
        (async) iterable, each step is sent as soon as it comes; what an async iterable brings while the server
        works on a step travels together as the next chunk, so that a slow network does not hold the sequence up.

        Args:
            xs: The steps.
            window: The most steps in one message; up to so many are applied ahead of those yielded.

        Yields:
            What `step` would return for each of them.

        Raises:
            As `step`, after the outputs of all steps before the one that failed.
        """
        async for outputs, error in run_feed(self.step, self.steps, xs, window):
            for output in outputs:
                yield output
            if error is not None:
                raise error

    async def info(self) -> sessions_pb2.Session:
        """How the session stands on the server, after what is in flight there; does not count as use."""
        delivery = self._opened()[1]
        while True:
            step = delivery.applied  # what stands in line here does not hold it up
            try:
                return await get_session(self._connection, self.id, after_step=step, route=self.route)
            except StepGapError as gap:
                async with delivery.standstill(after_all=False) as applied:
                    if applied == step:  # else it was reset meanwhile, or is further: ask again
                        await delivery.once.bring(gap)

    async def reset(self) -> None:
        """Put the session back to its initial states and step number 0, after all steps that were called.

        Raises:
            SessionNotFoundError, SessionExpiredError: It cannot be done.
            RecurraError: No answer, such as UnavailableError, or not now; it stays in the sequence, as a step does.
        """
        await self._opened()[1].reset()

    async def fork(self, session_id: str = "", *, keep: bool = False) -> "Session":
        """Open a new session that begins where this one stands; this one is left as it is.

        Args:
            session_id: The id of the new one. Empty: an unguessable one is made.
            keep: Of the new one, as in `Client.session`.

        Returns:
            The new session, open: use it with `async with`, or `close` it.

        Raises:
            DeadlineExceededError: Also where a generation of the session has not ended in time: see `Client.generate`.
            RecurraError: Any other of a call, or of the steps that stood in line.
        """
        # Where this one is: an EPHEMERAL one is nowhere else.
        begun = await self._with_all_steps(
            lambda step: fork_session(self._connection, self.id, session_id, after_step=step, route=self.route)
        )
        return await Session(
            self._connection, lambda: _ready(begun), outputs=self._outputs, keep=keep, route=self.route
        ).open()

    async def export(self) -> bytes:
        """Take a snapshot of the session with all steps that were called, for `Sessions.import_` and `rewind`."""

        async def export(step: int) -> bytes:
            request = sessions_pb2.ExportSessionRequest(session_id=self.id, after_step=step)
            method = self._connection.sessions.ExportSession
            return (await self._connection.call(method, request, route=self.route)).snapshot

        return await self._with_all_steps(export)

    async def _with_all_steps(self, call: Callable[[int], Awaitable[_T]]) -> _T:
        """Make a call that says which step must be applied; a server that lacks steps is given them before."""
        delivery = self._opened()[1]
        async with delivery.standstill() as applied:
            while True:
                try:
                    return await call(applied)
                except StepGapError as gap:
                    await delivery.once.bring(gap)

    @contextlib.asynccontextmanager
    async def exclusively(self) -> AsyncIterator[tuple[Codec, Delivery, int]]:
        """Hold the session while another call advances it on the server: `Client.generate`.

        Yields:
            Its codec, and as `Delivery.standstill`.
        """
        codec, delivery = self._opened()
        async with delivery.standstill(changes=True) as applied:
            yield codec, delivery, applied

    def _opened(self) -> tuple[Codec, Delivery]:
        if self._codec is None or self._delivery is None:
            raise RuntimeError("the session is not open: use `async with`, or call `open()` first")
        return self._codec, self._delivery

    async def _close(self, *, repeatable: bool) -> None:
        if self._delivery is None:
            return
        await self._delivery.once.end()
        request = sessions_pb2.CloseSessionRequest(session_id=self.id)
        with contextlib.suppress(SessionNotFoundError):
            await self._connection.call(
                self._connection.sessions.CloseSession, request, repeatable=repeatable, route=self.route
            )
        self._delivery = None  # only now: until then it can be closed again


async def _ready(session: sessions_pb2.Session) -> sessions_pb2.Session:
    return session
