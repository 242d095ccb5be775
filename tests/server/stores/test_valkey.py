"""What only a real Valkey can show."""

from pathlib import Path

import pytest
from recurra_server.engine.ports import StoreError
from recurra_server.stores.embedded import EmbeddedError, EmbeddedValkey
from recurra_server.stores.valkey import ValkeyStore
from valkey.asyncio import Valkey

from tests.server.stores.test_contract import begin, next_of


async def test_it_survives_a_restart_and_a_forgotten_script(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    server.start()
    store = ValkeyStore(server.url)
    first = await begin(store)
    assert await store.save([next_of(first)]) == [True]
    await store.close()
    server.stop()
    with pytest.raises(StoreError):
        await store.take_over(first.session_id)
    server.start()
    taken = await store.take_over(first.session_id)
    assert taken is not None
    assert (taken.epoch, taken.snapshot) == (first.epoch + 1, b"next")
    await store.close()
    server.stop()


async def test_the_last_who_leaves_stops_it(tmp_path: Path) -> None:
    here, there = EmbeddedValkey(tmp_path), EmbeddedValkey(tmp_path)
    here.start()
    there.start()
    store = ValkeyStore(there.url)
    first = await begin(store)
    here.stop()
    assert await store.take_over(first.session_id) is not None
    await store.close()
    there.stop()
    with pytest.raises(StoreError):
        await store.take_over(first.session_id)


async def test_a_full_store_says_so(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    server.start()
    async with Valkey.from_url(server.url) as client:
        await client.config_set("maxmemory", 1)
        store = ValkeyStore(server.url)
        with pytest.raises(StoreError, match="maxmemory"):
            await begin(store)
        await client.config_set("maxmemory", 0)
        assert await begin(store)
        await store.close()
    server.stop()


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://localhost", "sentinel://localhost:26379", "sentinel:///main"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"valkey|sentinel"):
        ValkeyStore(url)


async def test_sentinel_urls_are_understood() -> None:
    store = ValkeyStore("sentinel://one:26380,two/main?db=3&password=secret")
    pool = store._client.connection_pool
    assert [each.connection_pool.connection_kwargs["port"] for each in pool.sentinel_manager.sentinels] == [
        26380,
        26379,
    ]
    assert (pool.service_name, pool.connection_kwargs["db"], pool.connection_kwargs["password"]) == (
        "main",
        3,
        "secret",
    )


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="shorter"):
        EmbeddedValkey(tmp_path / ("x" * 100))
