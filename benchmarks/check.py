"""Whether a server answers as ONNX Runtime does locally, for sessions whose steps alternate."""

import asyncio

import numpy as np
from recurra_client.load.frames import StreamEndedError
from recurra_client.load.wire import WireConnection

from benchmarks.client import in_loop
from benchmarks.dialects import Array, Dialect
from benchmarks.http1 import HttpLane
from benchmarks.models import LocalModel
from benchmarks.venvs import UnavailableError

_SESSIONS, _STEPS = 3, 6
_ANSWER_SECONDS = 10.0
_FIRST_ID = 1 << 31  # beside those that are measured later


class _Talk:
    """One session's line to the server."""

    def __init__(self, target: str, dialect: Dialect) -> None:
        self._target = target
        self._dialect = dialect
        self.replies: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    async def open(self) -> None:
        dialect = self._dialect
        if dialect.transport == "http":
            self._lane = await HttpLane.connect(self._target, dialect.path, b"", b"", self._take)
            self._lane.answered, self._lane.failed = self._refused, self.replies.put_nowait
        else:
            self._connection = await WireConnection.connect(self._target)
            if dialect.transport == "stream":
                self._stream = self._connection.open(dialect.path, self.replies.put_nowait, self._ended)

    def send(self, message: bytes) -> None:
        dialect = self._dialect
        if dialect.transport == "http":
            self._lane.send_body(self._target, dialect.path, message)
        elif dialect.transport == "stream":
            self._stream.send(self._stream.prepare(message))
        else:
            call = self._connection.open(dialect.path, self.replies.put_nowait, self._ended)
            call.send(call.prepare(message, last=True))

    def close(self) -> None:
        if self._dialect.transport == "http":
            self._lane.cut()
        else:
            self._connection.close()

    def _take(self, reply: bytes) -> list[str]:
        self.replies.put_nowait(reply)
        return []

    def _refused(self, reasons: object) -> None:
        if reasons:
            self.replies.put_nowait(ConnectionError(str(reasons)))

    def _ended(self, error: StreamEndedError | None) -> None:
        if error is not None:
            self.replies.put_nowait(error)


def check_answers(target: str, dialect: Dialect, model: LocalModel) -> None:
    """Compare a server's answers with the model's own.

    Raises:
        UnavailableError: It gives none, or others.
    """
    x = np.random.default_rng(7).standard_normal((_SESSIONS, _STEPS, 16)).astype(np.float32)
    expected, _ = model.run(x, model.start(_SESSIONS))
    try:
        answers = in_loop(_ask(target, dialect, x))
    except TimeoutError:
        raise UnavailableError(f"did not answer in {_ANSWER_SECONDS:.0f} s") from None
    except (OSError, StreamEndedError) as error:
        raise UnavailableError(f"refuses a step: {error}") from None
    if not np.allclose(answers, expected, rtol=1e-4, atol=1e-5):
        raise UnavailableError(f"answers differ from the model's by up to {np.abs(answers - expected).max():.3g}")


async def _ask(target: str, dialect: Dialect, x: Array) -> Array:
    answers = np.zeros((*x.shape[:2], 1), np.float32)
    talks = [_Talk(target, dialect) for _ in x]
    for talk in talks:
        await talk.open()
    try:
        for step in range(x.shape[1]):
            for row, talk in enumerate(talks):  # all at once, so that a server that batches does so
                talk.send(dialect.encode(_FIRST_ID + row, x[row, step], first=step == 0))
            for row, talk in enumerate(talks):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    reply = await talk.replies.get()
                if isinstance(reply, Exception):
                    raise reply
                answers[row, step] = dialect.decode(reply)
    finally:
        for talk in talks:
            talk.close()
    return answers
