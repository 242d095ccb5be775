"""Stores to hold to the port: in memory, and a real Valkey."""

from collections.abc import AsyncIterator, Iterator

import pytest
from recurra_server.engine.ports import SessionStore
from recurra_server.stores.embedded import EmbeddedValkey
from recurra_server.stores.memory import MemoryStore
from recurra_server.stores.valkey import ValkeyStore


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A real Valkey server."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("v"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "valkey"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[SessionStore]:
    """One of each."""
    if request.param == "memory":
        yield MemoryStore()
        return
    store = ValkeyStore(request.getfixturevalue("valkey").url)
    yield store
    await store.close()
