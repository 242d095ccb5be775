"""What only a real Valkey can show."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest
from recurra_server.engine.ports import StoreError
from recurra_server.stores.connect import ClusterClient, SingleClient
from recurra_server.stores.embedded import EmbeddedError, EmbeddedValkey
from recurra_server.stores.valkey import ValkeyStore

from tests.server.stores.test_contract import begin, checkpoint, next_of
from tests.support.attacks import Attack
from tests.support.valkey import running_cluster, running_sentinel, running_valkey


async def test_it_survives_a_restart_and_a_forgotten_script(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    server.start()
    store = ValkeyStore(server.url)
    first = await begin(store)
    assert await store.save([next_of(first)]) == [True]
    await store.close()
    server.stop()
    with pytest.raises(StoreError):
        await store.take_over(first.store_key)
    server.start()
    taken = await store.take_over(first.store_key)
    assert taken is not None
    assert (taken.epoch > first.epoch, taken.snapshot) == (True, b"next")
    await store.close()
    server.stop()


async def test_the_last_who_leaves_stops_it(tmp_path: Path) -> None:
    here, there = EmbeddedValkey(tmp_path), EmbeddedValkey(tmp_path)
    here.start()
    there.start()
    store = ValkeyStore(there.url)
    first = await begin(store)
    here.stop()
    assert await store.take_over(first.store_key) is not None
    await store.close()
    there.stop()
    with pytest.raises(StoreError):
        await store.take_over(first.store_key)


def test_other_users_cannot_read_what_an_embedded_one_keeps(tmp_path: Path, attack: Attack) -> None:
    folder = tmp_path / "new"
    before = os.umask(0)
    try:
        server = EmbeddedValkey(folder)
        server.start()
    finally:
        os.umask(before)
    kept = [path for path in folder.rglob("*") if path.name != "lock"]
    assert {"appendonlydir", "valkey.log", "valkey.sock"} <= {path.name for path in kept}
    assert not any(path.stat().st_mode & 0o077 for path in (folder, *kept))
    server.stop()
    folder.chmod(0o755)
    with pytest.raises(EmbeddedError, match="chmod 700"):
        server.start()
    assert folder.stat().st_mode & 0o777 == 0o755
    attack(
        "machine",
        "connecting to an embedded store, or reading its files, as another user",
        "its folder, files and socket are the server's user's alone",
    )


async def test_a_full_store_says_so_and_has_room_again_when_sessions_end(tmp_path: Path, attack: Attack) -> None:
    with running_valkey(tmp_path) as valkey:
        store = ValkeyStore(valkey.url)
        first = await begin(store)
        valkey.client.config_set("maxmemory", 1)
        for refused in (
            begin(store),
            store.save([next_of(first)]),
            store.take_over(first.store_key),
            store.identity(),
        ):
            with pytest.raises(StoreError, match="maxmemory") as caught:
                await refused
            assert caught.value.plain == "is full"
        await store.delete([(first.store_key, first.epoch, 60.0)])
        assert valkey.client.dbsize() == 0
        valkey.client.config_set("maxmemory", 0)
        assert await begin(store)
        await store.close()
    attack("store", "filling it", "it says that it is full; room again when sessions end")


async def test_one_that_is_emptied_or_started_anew_is_another(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as valkey:
        store = ValkeyStore(valkey.url)
        seen = [await store.identity()]
        valkey.client.flushall()
        seen.append(await store.identity())
        valkey.kill()
        valkey.start()
        with suppress(StoreError):  # the connection of before has ended
            await store.identity()
        seen.append(await store.identity())
        assert len(set(seen)) == 3
        await store.close()


async def test_of_a_cluster_every_node_is_used_and_a_script_that_it_forgot_is_sent_again(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as nodes:
        store = ValkeyStore(f"cluster://{nodes[0].target}")
        sessions = [await begin(store) for _ in range(60)]
        assert all(int(node.client.dbsize()) > 5 for node in nodes)
        for node in nodes:
            node.client.script_flush()
        assert await store.save([next_of(one) for one in sessions]) == [True] * len(sessions)
        before = await store.identity()
        nodes[1].client.flushall()
        nodes[1].kill()
        with pytest.raises(StoreError) as caught:
            await store.save([next_of(one, revisions=2) for one in sessions])
        assert caught.value.plain == "cannot be reached"
        assert "next" not in str(caught.value), "sessions are nothing for a log"
        await store.close()
        assert before


async def test_a_cancellation_that_the_library_swallows_is_one_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = ValkeyStore("valkey://localhost"), asyncio.Event()

    async def run(*_: object) -> list[int]:
        asked.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return [1]

    monkeypatch.setattr(store._client, "run", run)
    save = asyncio.create_task(store.save([checkpoint()]))
    await asked.wait()
    save.cancel()
    with pytest.raises(asyncio.CancelledError):
        await save


async def test_sentinel_leads_to_the_replica_when_the_primary_dies(tmp_path: Path) -> None:
    with running_sentinel(tmp_path) as (sentinel, (primary, replica)):
        store = ValkeyStore(f"sentinel://{sentinel.target}/main")
        before, first = await store.identity(), await begin(store)
        while not replica.client.dbsize():
            pass
        primary.kill()
        taken = None
        while taken is None:
            with suppress(StoreError):
                taken = await store.take_over(first.store_key)
        assert taken.epoch > first.epoch
        assert await store.identity() != before
        assert replica.client.role()[0] == b"master"
        await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost",
        "sentinel://localhost:26379",
        "sentinel:///main",
        "cluster://",
        "cluster://one/0",
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"valkey|sentinel|cluster"):
        ValkeyStore(url)


async def test_sentinel_urls_are_understood() -> None:
    store = ValkeyStore("sentinel://one:26380,two/main?db=3&password=secret")
    assert isinstance(store._client, SingleClient)
    pool = store._client._client.connection_pool
    assert [each.connection_pool.connection_kwargs["port"] for each in pool.sentinel_manager.sentinels] == [
        26380,
        26379,
    ]
    assert (pool.service_name, pool.connection_kwargs["db"], pool.connection_kwargs["password"]) == (
        "main",
        3,
        "secret",
    )


async def test_cluster_urls_are_understood() -> None:
    store = ValkeyStore("clusters://one:7000,two?password=secret")
    assert isinstance(store._client, ClusterClient)
    client = store._client._client
    assert [(node.host, node.port) for node in client.nodes_manager.startup_nodes.values()] == [
        ("one", 7000),
        ("two", 6379),
    ]
    assert "secret" in client.connection_kwargs["password"]
    assert client.connection_kwargs["connection_class"].__name__ == "SSLConnection"


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="shorter"):
        EmbeddedValkey(tmp_path / ("x" * 100))
