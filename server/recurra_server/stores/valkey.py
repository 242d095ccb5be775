"""Checkpoints in a Valkey (or Redis) server, or in several."""

import asyncio
import secrets
import struct
from collections.abc import Sequence
from importlib import resources
from typing import Any

from valkey.exceptions import ConnectionError as NotConnectedError
from valkey.exceptions import OutOfMemoryError, ValkeyClusterException, ValkeyError
from valkey.exceptions import TimeoutError as TimedOutError

from recurra_server.engine.ports import Checkpoint, StoreError
from recurra_server.stores.connect import connect

_HEADER = struct.Struct(">QQdB")
_PREFIX = b"recurra:session:"
_STORE = b"recurra:store"
_SCRIPT = resources.files("recurra_server.stores").joinpath("session.lua").read_text()
_MOST_CALLS = 16


class ValkeyStore:
    """A `SessionStore` in Valkey: one key for each session, which the store forgets by itself.

    Args:
        url: `valkey://`, `valkeys://` (TLS), `unix://`, as the client library reads them;
            `sentinel://host:port,host:port/service`, whose options after `?` are those of the data servers;
            `cluster://host:port,host:port` or `clusters://` (TLS).
        timeout: Seconds after which a call that was not answered has failed.

    Raises:
        ValueError: It is no such URL.
    """

    def __init__(self, url: str, *, timeout: float = 2.0) -> None:
        self._client = connect(url, _SCRIPT, timeout)
        self._timeout = timeout
        self._calls = asyncio.Semaphore(_MOST_CALLS)  # and so many connections

    async def create(self, checkpoint: Checkpoint) -> int | None:
        """Keep the first checkpoint of a new session."""
        (epoch,) = await self._run("create", [checkpoint.store_key], [_record(checkpoint)])
        return int(epoch) or None

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keep newer checkpoints, all in one round trip."""
        if not checkpoints:
            return []
        store_keys = [checkpoint.store_key for checkpoint in checkpoints]
        answers = await self._run("save", store_keys, [_record(checkpoint) for checkpoint in checkpoints])
        return [answer == 1 for answer in answers]

    async def take_over(self, store_key: str) -> Checkpoint | None:
        """Raise a session's epoch and read it."""
        (record,) = await self._run("take_over", [store_key], [b""])
        if record is None:
            return None
        epoch, revision, idle_timeout, durability = _HEADER.unpack_from(record)
        return Checkpoint(store_key, epoch, revision, durability, idle_timeout, record[_HEADER.size :])

    async def delete(self, sessions: Sequence[tuple[str, int, float]]) -> None:
        """Forget sessions, all in one round trip."""
        if sessions:
            headers = [_HEADER.pack(epoch + 1, 0, remember, 0) for _, epoch, remember in sessions]
            await self._run("delete", [store_key for store_key, _, _ in sessions], headers)

    async def identity(self) -> str:
        """What is in a key that the store loses with all else, and who the processes are."""
        (known,) = await self._call(self._client.run, [_STORE], "identify", [secrets.token_hex(8).encode()])
        return " ".join([known.decode(), *await self._call(self._client.run_ids)])

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _run(self, command: str, store_keys: Sequence[str], arguments: Sequence[bytes]) -> list[Any]:
        keys = [_PREFIX + store_key.encode() for store_key in store_keys]
        answers: list[Any] = await self._call(self._client.run, keys, command, arguments)
        return answers

    async def _call(self, call: Any, *arguments: Any) -> Any:
        cancelled = _times_cancelled()
        answer, failure = None, None
        try:
            async with self._calls, asyncio.timeout(self._timeout):
                answer = await call(*arguments)
        except (ValkeyError, ValkeyClusterException, OSError) as error:
            failure = StoreError(str(error) or type(error).__name__, _plain(error))
        if _times_cancelled() > cancelled:  # the library swallows a cancellation now and then
            raise asyncio.CancelledError
        if failure is not None:
            raise failure
        return answer


def _times_cancelled() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _record(checkpoint: Checkpoint) -> bytes:
    header = _HEADER.pack(checkpoint.epoch, checkpoint.revision, checkpoint.idle_timeout, checkpoint.durability)
    return header + checkpoint.snapshot


def _plain(error: Exception) -> str:
    if isinstance(error, OutOfMemoryError):
        return "is full"
    if isinstance(error, (NotConnectedError, TimedOutError, OSError, ValkeyClusterException)):
        return "cannot be reached"
    return "refuses what it is sent (the server's log says why)"
