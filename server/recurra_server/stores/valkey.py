"""Checkpoints in a Valkey (or Redis) server."""

import asyncio
import struct
from collections.abc import Sequence
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from valkey.asyncio import Valkey
from valkey.asyncio.sentinel import Sentinel
from valkey.exceptions import ValkeyError

from recurra_server.engine.ports import Checkpoint, StoreError

_HEADER = struct.Struct(">QQdB")
_PREFIX = b"recurra:session:"
_SCRIPT = resources.files("recurra_server.stores").joinpath("session.lua").read_text()
_SENTINEL_PORT = 26379
_MOST_CALLS = 16


class ValkeyStore:
    """A `SessionStore` in Valkey: one key for each session, which the store forgets by itself.

    Args:
        url: `valkey://`, `valkeys://` (TLS), `unix://`; or `sentinel://host:port,host:port/service`, whose
            options after `?` are those of the data servers. As the client library reads them.
        timeout: Seconds after which a call that was not answered has failed.

    Raises:
        ValueError: It is no such URL.
    """

    def __init__(self, url: str, *, timeout: float = 2.0) -> None:
        self._client = _client(url, timeout)
        self._script = self._client.register_script(_SCRIPT)
        self._calls = asyncio.Semaphore(_MOST_CALLS)  # and so many connections

    async def create(self, checkpoint: Checkpoint) -> int | None:
        """Keep the first checkpoint of a new session."""
        epoch = int(await self._run([checkpoint.session_id], "create", _record(checkpoint)))
        return epoch or None

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keep newer checkpoints, all in one call of the script."""
        if not checkpoints:
            return []
        answers = await self._run(
            [checkpoint.session_id for checkpoint in checkpoints],
            "save",
            *[_record(checkpoint) for checkpoint in checkpoints],
        )
        return [answer == 1 for answer in answers]

    async def take_over(self, session_id: str) -> Checkpoint | None:
        """Raise a session's epoch and read it."""
        record = await self._run([session_id], "take_over")
        if record is None:
            return None
        epoch, revision, idle_timeout, durability = _HEADER.unpack_from(record)
        return Checkpoint(session_id, epoch, revision, durability, idle_timeout, record[_HEADER.size :])

    async def delete(self, sessions: Sequence[tuple[str, int, float]]) -> None:
        """Forget sessions, all in one call of the script."""
        if sessions:
            session_ids, epochs, remember = zip(*sessions, strict=True)
            await self._run(session_ids, "delete", *epochs, *remember)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _run(self, session_ids: Sequence[str], *arguments: Any) -> Any:
        try:
            async with self._calls:
                return await self._script([_PREFIX + session_id.encode() for session_id in session_ids], arguments)
        except (ValkeyError, OSError) as error:
            raise StoreError(str(error) or type(error).__name__) from error


def _record(checkpoint: Checkpoint) -> bytes:
    header = _HEADER.pack(checkpoint.epoch, checkpoint.revision, checkpoint.idle_timeout, checkpoint.durability)
    return header + checkpoint.snapshot


def _client(url: str, timeout: float) -> Any:
    """The client of a single server, or of the one that Sentinel says is the primary.

    Raises:
        ValueError: It is no such URL.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 30,
    }
    parts = urlsplit(url)
    if parts.scheme != "sentinel":
        return Valkey.from_url(url, **options)
    service = parts.path.strip("/")
    hosts = [host.rpartition("@")[2] for host in parts.netloc.split(",")]
    if not service or not all(hosts):
        raise ValueError("a Sentinel is named as sentinel://host:port,host:port/service")
    # The library reads a server's URL: let it read the options of this one.
    like_a_server = urlunsplit(("valkey", "localhost", "", urlencode(parse_qsl(parts.query)), ""))
    read = Valkey.from_url(like_a_server).connection_pool.connection_kwargs
    options |= {key: value for key, value in read.items() if key not in ("host", "port")}
    places = [urlsplit(f"//{host}") for host in hosts]
    sentinels = [(place.hostname, place.port or _SENTINEL_PORT) for place in places]
    sentinel = Sentinel(sentinels, **options)  # type: ignore[no-untyped-call]
    return sentinel.master_for(service)
