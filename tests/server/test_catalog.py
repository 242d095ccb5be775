"""What is served changes all at once, whoever else asks meanwhile."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from recurra_server.catalog import Catalog
from recurra_server.driver import Driver
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import ModelNotFoundError
from recurra_server.settings import Settings

from tests.support import models


async def test_two_who_unload_a_model_at_once_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    for version in ("1", "2"):
        models.publish(tmp_path, "counter", models.counter(), version=version)
    settings = Settings(models=tmp_path)

    async def tell_health(_name: str, _serving: bool) -> None:
        await asyncio.sleep(0)  # as where somebody watches

    with ThreadPoolExecutor(1) as executor:
        catalog = Catalog(settings, Driver(Engine(settings.limits)), executor, tell_health, {})
        await catalog.load_all()
        first, second = await asyncio.gather(
            catalog.unload("counter", ""), catalog.unload("counter", ""), return_exceptions=True
        )
    if isinstance(first, BaseException):
        raise first
    assert [version for _, version, _ in first.keys] == ["2", "1"]
    assert isinstance(second, ModelNotFoundError)
    with pytest.raises(ModelNotFoundError):
        await catalog.unload("counter", "")


async def test_a_version_that_vanishes_while_another_is_loaded_keeps_none_from_being_seen(tmp_path: Path) -> None:
    settings, told = Settings(models=tmp_path), asyncio.Queue[tuple[str, bool]]()
    driver = Driver(Engine(settings.limits))

    async def tell_health(name: str, serving: bool) -> None:
        if (name, serving) == ("a/1", True):
            shutil.rmtree(tmp_path / "b")
        await told.put((name, serving))

    models.publish(tmp_path, "b", models.counter())
    with ThreadPoolExecutor(1) as executor:
        catalog = Catalog(settings, driver, executor, tell_health, {})
        await catalog.load_all()
        for name in ("a", "b", "c"):
            models.publish(tmp_path, name, models.counter(description="New."))
        watching = asyncio.ensure_future(catalog.watch_forever(0))
        seen: dict[str, bool] = {}
        async with asyncio.timeout(30):
            while seen.get("b/1", True) or not seen.get("c/1"):
                name, seen[name] = await told.get()
        watching.cancel()
    assert [model.name for model in driver.engine.models()] == ["a", "c"]
