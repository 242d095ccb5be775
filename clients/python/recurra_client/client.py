"""The asyncio client."""

import contextlib
import datetime
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, overload

import grpc
from google.protobuf import duration_pb2
from numpy.typing import ArrayLike, NDArray
from recurra.v1 import inference_pb2, models_pb2, sessions_pb2

from recurra_client.codec import Inputs
from recurra_client.connection import Connection
from recurra_client.credentials import Token, with_token
from recurra_client.durability import DURABILITIES, Durability
from recurra_client.errors import from_message
from recurra_client.generation import generate_anew, generate_in_session
from recurra_client.opening import get_session, once
from recurra_client.results import BatchResult, Generated
from recurra_client.session import Session
from recurra_client.sessions import Sessions

_SERVING: Final = b"\x08\x01"  # HealthCheckResponse(status=SERVING)


class Client:
    """A client of one Recurra server (or of several behind one address); use it with `async with`.

    Args:
        target: "host:port", or any target that gRPC can resolve.
        timeout: Seconds that a call or a step may take in all, reconnecting included. None: no bound.
        reconnect: Seconds to go on trying, with growing random pauses, when the server cannot be reached. 0: none.
        keepalive: Seconds between signs of life on the connection. None: none are sent.
        credentials: For TLS, such as `tls()` or `grpc.ssl_channel_credentials()`. None: no encryption.
        token: Shows who calls, where the server wants to know; or a function that says it anew for each call. Without
            TLS it is only sent to this machine.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout: float | None = 30.0,
        reconnect: float = 20.0,
        keepalive: float | None = 30.0,
        credentials: grpc.ChannelCredentials | None = None,
        token: Token = "",
    ) -> None:
        self._connection = Connection(
            target,
            timeout=timeout,
            reconnect=reconnect,
            keepalive=keepalive,
            credentials=with_token(credentials, token) if token else credentials,
        )
        self.sessions = Sessions(self._connection)

    async def __aenter__(self) -> Self:
        """Nothing is sent yet: the first call connects."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def close(self) -> None:
        """Close the connection. Sessions that are still open stay so on the server, until they expire.

        Calls that are under way, and later ones, raise ClientClosedError.
        """
        await self._connection.close()

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
    ) -> Session:
        """A new session; `async with` (or `open`) opens it on the server, and closes it there.

        Args:
            model: The model's name.
            version: Empty: the latest.
            session_id: 1 to 128 characters of A-Z a-z 0-9 . _ : - . Empty: an unguessable one is made.
            idle_timeout: Seconds it may go unused before it expires. None: the server's default.
            initial_states: States to begin from, by the model's input_name, and the session's own constants, by their
                name. Those not given begin as the model says.
            durability: What of it outlives the server: nothing; all steps, of which the client sends the last ones
                again; or every step that was answered. Empty: "async" where the server has a store, else "ephemeral".
            outputs: Names of the outputs to answer each step with. Empty: all that are not optional. Where there are
                several, inputs are given by name, too.
            keep: Leave it open on the server when the `async with` ends, to be gone on with by `resume`. What then
                still stands in line, having had no answer, is dropped: it is applied or it is not.
        """
        request = sessions_pb2.OpenSessionRequest(
            model=model,
            version=version,
            session_id=session_id or secrets.token_hex(16),
            durability=DURABILITIES[durability],
        )
        if idle_timeout is not None:
            request.idle_timeout.CopyFrom(_duration(idle_timeout))

        async def begin() -> sessions_pb2.Session:
            if initial_states or outputs:  # what is wrong with them is said before anything is opened
                codec = (await self._connection.codec(model, version)).asking(outputs)
                request.initial_states.extend(codec.states(initial_states))

            async def opening() -> sessions_pb2.Session:
                return (await self._connection.call(self._connection.sessions.OpenSession, request)).session

            return await once(self._connection, opening(), request.session_id, chosen=bool(session_id))

        return Session(self._connection, begin, outputs=outputs, keep=keep)

    def resume(self, session_id: str, *, outputs: Sequence[str] = (), keep: bool = True) -> Session:
        """A session that is open on the server, to go on with; only one client at a time may step it.

        Args:
            session_id: Its id.
            outputs: As in `session`; they need not be those that it was begun with.
            keep: As in `session`.
        """
        return Session(self._connection, lambda: get_session(self._connection, session_id), outputs=outputs, keep=keep)

    async def is_serving(self) -> bool:
        """Whether the server takes new sessions, as its health service says (`grpc.health.v1`)."""
        return await self._connection.call(self._connection.health, b"") == _SERVING

    async def models(self) -> list[models_pb2.Model]:
        """Every loaded version of every model, by name, newest version first."""
        answer = await self._connection.call(self._connection.models.ListModels, models_pb2.ListModelsRequest())
        return list(answer.models)

    async def model(self, name: str, version: str = "") -> models_pb2.Model:
        """One version of a model (the latest, if none is named), described.

        Raises:
            ModelNotFoundError: It is not loaded.
        """
        request = models_pb2.GetModelRequest(name=name, version=version)
        return (await self._connection.call(self._connection.models.GetModel, request)).model

    async def load_model(self, name: str, version: str = "", *, digest: str = "") -> models_pb2.Model:
        """Have a version (the latest, if none is named) loaded from the server's repository, anew if its files changed.

        Args:
            name: The model.
            version: Its version.
            digest: What its `digest` must be; empty for whatever is there.

        Raises:
            ModelNotFoundError: The repository has no such version.
            ModelRefusedError: It cannot be loaded; what was served before goes on.
        """
        request = models_pb2.LoadModelRequest(name=name, version=version, digest=digest)
        return (await self._connection.call(self._connection.models.LoadModel, request)).model

    async def unload_model(self, name: str, version: str = "") -> list[str]:
        """Have no more sessions opened on a version, or on all; open ones go on. Returns the versions.

        Raises:
            ModelNotFoundError: It is not loaded.
        """
        request = models_pb2.UnloadModelRequest(name=name, version=version)
        return list((await self._connection.call(self._connection.models.UnloadModel, request)).versions)

    @overload
    async def predict(
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
    async def predict(
        self,
        model: str,
        xs: ArrayLike,
        *,
        version: str = ...,
        last_only: bool = ...,
        initial_states: Mapping[str, ArrayLike] | None = ...,
        outputs: Sequence[str] = ...,
    ) -> NDArray[Any]: ...
    async def predict(
        self,
        model: str,
        xs: Inputs,
        *,
        version: str = "",
        last_only: bool = False,
        initial_states: Mapping[str, ArrayLike] | None = None,
        outputs: Sequence[str] = (),
    ) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """Run a whole sequence from its beginning, without a session.

        Args:
            model: As in `session`.
            version: As in `session`.
            xs: As in `Session.steps`: [T, dims], or a dict by name.
            last_only: Answer only the last step's output (many-to-one).
            initial_states: As in `session`.
            outputs: As in `session`.

        Returns:
            The outputs, [T, dims], or [dims] with `last_only`.

        Raises:
            ModelNotFoundError, InputError, CapacityError, UnavailableError, DeadlineExceededError
        """
        codec = (await self._connection.codec(model, version)).asking(outputs)
        tensors, _ = codec.sequence(xs)
        request = inference_pb2.PredictRequest(
            model=model,
            version=version,
            inputs=tensors,
            initial_states=codec.states(initial_states),
            last_only=last_only,
            outputs=codec.wanted,
        )
        answer = await self._connection.call(self._connection.inference.Predict, request)
        return codec.outputs(answer.outputs, named=isinstance(xs, Mapping))

    @overload
    async def step_batch(
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
    async def step_batch(
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
    async def step_batch(
        self,
        model: str,
        session_ids: Sequence[str],
        x: Inputs,
        *,
        version: str = "",
        steps: Sequence[int] = (),
        chunks: bool = False,
        outputs: Sequence[str] = (),
    ) -> BatchResult[Any]:
        """Apply one step (or chunk) to each of many sessions of one model, in one message: for gateways.

        Args:
            model: The model of all of the sessions.
            version: And its version. Empty: the latest.
            session_ids: The session of each of the B rows.
            x: [B, dims], or with `chunks` [B, T, dims]; or a dict of such by name.
            steps: The number of each row's (first) step, so that a row sent again is not applied twice. Empty: just
                the next one, whatever it is; then nothing is sent again if the connection breaks.
            chunks: Each row is a chunk of T steps.
            outputs: As in `session`.

        Raises:
            RecurraError: The call failed as a whole. A row that failed alone is in the result's `errors`.
        """
        codec = (await self._connection.codec(model, version)).asking(outputs)
        tensors, rows = codec.sequence(x, ("B", "T") if chunks else ("B",))
        if rows != len(session_ids) or (steps and rows != len(steps)):
            raise ValueError(f"{rows} rows of input for {len(session_ids)} session_ids and {len(steps)} steps")
        request = inference_pb2.StepBatchRequest(
            session_ids=session_ids, steps=steps, inputs=tensors, outputs=codec.wanted
        )
        answer = await self._connection.call(self._connection.inference.StepBatch, request, repeatable=bool(steps))
        # Where no row has a session, the server does not know of which model the outputs would be.
        answered = answer.outputs or codec.zeros(tensors[0].shape[: 2 if chunks else 1])
        return BatchResult(
            outputs=codec.outputs(answered, named=isinstance(x, Mapping)),
            steps=list(answer.steps),
            errors={row.row: from_message(row.error) for row in answer.errors},
            replayed=frozenset(answer.replayed_rows),
            durable_steps=list(answer.durable_steps) or [0] * len(session_ids),
        )

    async def generate(
        self,
        start: str | Session,
        x: Inputs,
        *,
        max_steps: int,
        version: str = "",
        temperature: float | None = None,
        top_k: int = 0,
        seed: int | None = None,
        stop_class: int | None = None,
        outputs: Sequence[str] = (),
    ) -> AsyncGenerator[Generated]:
        """Feed each output back as the next input (one-to-many), and yield it.

        A generation holds its session until all that it yields was taken or its iterator is closed: `step`, `steps`,
        `stream`, `reset`, `fork`, `export` and another generation wait for that, for at most `timeout` seconds. So
        none of them can be called for the same session between two items.

        The server generates ahead of what is taken. One that is left early leaves the session where the server has
        got to by then, which may be many steps past the last that was yielded, up to `max_steps`.

        Args:
            start: A model's name, to begin at its beginning without a session; or an open session, which goes on
                from where it stands and is advanced.
            x: What is fed in first: a chunk [T, dims], of which the last step's output is the first yielded.
            max_steps: The most steps to yield.
            version: Of the model; with a session, ignored.
            temperature: Divides the logits before a class is drawn. None or 0: the most likely class.
            top_k: Draw only from the k most likely classes. 0: from all.
            seed: The same seed gives the same draw. None: a random one.
            stop_class: Stop after this class.
            outputs: As in `session`; with a session, ignored: it has its own.

        Raises:
            NoFeedbackError: The model does not say how an output becomes an input.
            SessionChangedError: Somebody else reset, rewound or stepped the session meanwhile.
            ModelNotFoundError, SessionNotFoundError, InputError, UnavailableError, DeadlineExceededError
            ClientClosedError: The client was closed meanwhile.
        """
        request = inference_pb2.GenerateRequest(max_steps=max_steps, stop_class=stop_class)
        if temperature is not None:
            request.sampling.CopyFrom(inference_pb2.Sampling(temperature=temperature, top_k=top_k, seed=seed))
        if isinstance(start, Session):
            generation = generate_in_session(self._connection, start, request, x)
        else:
            codec = (await self._connection.codec(start, version)).asking(outputs)
            request.model.CopyFrom(inference_pb2.ModelVersion(name=start, version=version))
            generation = generate_anew(self._connection, codec, request, x)
        async with contextlib.aclosing(generation):
            async for generated in generation:
                yield generated


def _duration(value: float | datetime.timedelta) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromTimedelta(value if isinstance(value, datetime.timedelta) else datetime.timedelta(seconds=value))
    return duration
