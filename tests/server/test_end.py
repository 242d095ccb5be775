"""How a server process ends."""

import asyncio
from pathlib import Path

import pytest
from recurra_server.app import App
from recurra_server.settings import Settings

from tests.support import models


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    models.publish(tmp_path, "counter", models.counter())
    return Settings(models=tmp_path, port=0, metrics_port=0, drain_seconds=1.0)


async def test_one_that_is_told_to_ends_well(settings: Settings) -> None:
    app = App(settings)
    await app.start()
    app.end()
    assert await asyncio.wait_for(app.run_until_end(), 30) == 0


async def test_one_that_listens_no_more_does_not_live_on(settings: Settings) -> None:
    """Whoever starts processes anew must see that it has failed."""
    app = App(settings)
    await app.start()
    ended = asyncio.ensure_future(app.run_until_end())
    await asyncio.sleep(0)
    await app._server.stop(None)  # as gRPC does where its own loop has failed
    assert await asyncio.wait_for(ended, 30) == 1
