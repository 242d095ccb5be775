"""What has to be there before a server can start."""

import asyncio
from pathlib import Path

from recurra_server.engine.ports import SessionStore
from recurra_server.stores.embedded import EmbeddedError, EmbeddedValkey
from recurra_server.stores.valkey import ValkeyStore

_EMBEDDED = "embedded"
_FOLDER = "sessions"


class StartError(Exception):
    """The server cannot start; the message says why in one line."""


class Store:
    """A store with, if it is embedded, the Valkey that it is in.

    Attributes:
        sessions: What is kept.
    """

    def __init__(self, sessions: SessionStore, embedded: EmbeddedValkey | None = None) -> None:
        self.sessions = sessions
        self._embedded = embedded

    async def start(self) -> None:
        """Start what is embedded.

        Raises:
            StartError: It cannot.
        """
        if self._embedded is not None:
            try:
                await asyncio.to_thread(self._embedded.start)
            except (EmbeddedError, OSError) as error:
                raise StartError(str(error)) from None

    async def stop(self) -> None:
        """Leave the store, and stop what is embedded if nobody else uses it."""
        await self.sessions.close()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.stop)


def open_store(where: str) -> Store:
    """The store that a setting names; nothing is asked of it yet.

    Raises:
        StartError: It names none.
    """
    try:
        if where.partition(":")[0] != _EMBEDDED:
            return Store(ValkeyStore(where))
        embedded = EmbeddedValkey(Path(where.partition(":")[2] or _FOLDER))
        return Store(ValkeyStore(embedded.url), embedded)
    except (ValueError, EmbeddedError) as error:
        raise StartError(f"--store {where}: {error}") from None
