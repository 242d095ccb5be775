"""Stores to hold to the port: in memory, and real Valkeys: one, a cluster, and one that Sentinel names."""

from collections.abc import AsyncIterator, Iterator

import pytest
from recurra_server.engine.ports import SessionStore
from recurra_server.stores.embedded import EmbeddedValkey
from recurra_server.stores.valkey import ValkeyStore

from tests.support.memory_store import MemoryStore
from tests.support.valkey import running_cluster, running_sentinel


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("v"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a cluster."""
    with running_cluster(tmp_path_factory.mktemp("c")) as nodes:
        yield f"cluster://{nodes[0].target},{nodes[1].target}"


@pytest.fixture(scope="session")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that is found by Sentinel."""
    with running_sentinel(tmp_path_factory.mktemp("s")) as (process, _):
        yield f"sentinel://{process.target}/main"


@pytest.fixture(params=["memory", "valkey", "cluster", "sentinel"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[SessionStore]:
    """One of each."""
    if request.param == "memory":
        yield MemoryStore()
        return
    store = ValkeyStore(request.getfixturevalue(request.param))
    yield store
    await store.close()
