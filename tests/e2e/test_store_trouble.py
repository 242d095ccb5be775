"""The store dies under sessions: those that do not wait for it go on, the others say why not."""

import asyncio
from pathlib import Path

import pytest
from recurra_client import Client, StoreUnavailableError
from recurra_server.stores.embedded import EmbeddedValkey

from tests.support import models
from tests.support.server import running_server


@pytest.mark.e2e
async def test_async_goes_on_and_sync_says_why_it_cannot(tmp_path: Path) -> None:
    models.publish(tmp_path / "models", "counter", models.counter())
    valkey = EmbeddedValkey(tmp_path / "v")
    valkey.start()
    with running_server(tmp_path / "models", "--store", valkey.url) as server:
        async with Client(server.target, reconnect=0) as client:
            going_on = await client.session("counter", durability="async").open()
            waiting = await client.session("counter", durability="sync").open()
            assert (await waiting.step([1])).tolist() == [1]
            assert valkey._process is not None
            valkey._process.kill()
            valkey._process.wait()
            while server.metrics().get("recurra_store_up"):
                await going_on.step([1])
            durable = going_on.last.durable_step
            for _ in range(100):
                await going_on.step([1])
            assert going_on.last.durable_step == durable
            lag = server.metrics().get("recurra_durable_lag_seconds")
            assert lag is not None
            assert lag > 0
            with pytest.raises(StoreUnavailableError, match="not applied"):
                await waiting.step([10])
            assert (await waiting.info()).steps == 1
            with pytest.raises(StoreUnavailableError):
                await client.session("counter").open()

            await asyncio.to_thread(valkey.start)
            while going_on.last.durable_step == durable:
                await going_on.step([1])
            assert server.metrics().get("recurra_store_up") == 1
            assert (await waiting.step([100])).tolist() == [111], "the step that was refused stayed in line"
            assert waiting.last.durable_step == 3
    valkey.stop()
