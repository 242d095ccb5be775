"""Models that change in several workers at once, and what their keeper knows of them."""

import asyncio
import gc
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from recurra_server.catalog import Catalog
from recurra_server.driver import Driver
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import ModelNotFoundError, ModelRefusedError
from recurra_server.engine.served_model import ServedModel
from recurra_server.peer import Peer
from recurra_server.runtimes.repository import find_models
from recurra_server.settings import Settings
from recurra_server.shared_catalog import Changes, SharedCatalog

from tests.support import models

KEY = ("sum", "1", "sha256:1")


class Worker(NamedTuple):
    """A worker in this process.

    Attributes:
        catalog: What it changes by itself, as where it watches its folder.
        shared: What its callers change in all workers.
        engine: What it serves.
        asked: Asks it, as the keeper does.
    """

    catalog: Catalog
    shared: SharedCatalog
    engine: Engine
    asked: Peer


@asynccontextmanager
async def sharing(*folders: Path) -> AsyncIterator[list[Worker]]:
    """A worker for each model repository, and their keeper."""
    changes, workers, listening = Changes(), [], []
    with ThreadPoolExecutor(1) as executor:
        for place, folder in enumerate(folders):
            settings = Settings(models=folder)
            engine = Engine(settings.limits)
            catalog = Catalog(settings, Driver(engine), executor, nobody_told, {})
            ours, theirs = connected()
            listening += [asyncio.ensure_future(peer.listen()) for peer in (ours, theirs)]
            changes.add(place, ours)
            workers.append(Worker(catalog, SharedCatalog(catalog, engine, theirs), engine, ours))
        async with asyncio.timeout(30):
            yield workers
        for task in listening:
            task.cancel()


def connected() -> tuple[Peer, Peer]:
    """Both ends of a pipe."""
    one, other = asyncio.StreamReader(), asyncio.StreamReader()
    return Peer(one, other.feed_data), Peer(other, one.feed_data)


async def nobody_told(_name: str, _serving: bool) -> None:
    """Nobody asks after health here."""


async def test_what_a_worker_changes_by_itself_and_what_calls_change_come_one_after_the_other(tmp_path: Path) -> None:
    what = {"name": "sum", "version": "1", "digest": "", "tried": True}
    models.publish(tmp_path, "sum", models.counter())
    async with sharing(tmp_path) as (worker,):
        loading = asyncio.ensure_future(worker.catalog.load("sum", "1", ""))
        await asyncio.sleep(0)
        await worker.asked.ask("prepare", **what)
        assert loading.done(), "it began before the call came"
        assert await worker.asked.ask("serve") == {"changed": False}

        models.publish(tmp_path, "sum", models.counter(description="New."))
        (digest,) = [file.digest() for file in find_models(tmp_path)]
        await worker.asked.ask("prepare", **what)
        unloading = asyncio.ensure_future(worker.catalog.unload("sum", "1"))
        assert await worker.asked.ask("serve") == {"changed": True}
        assert (await unloading).keys == [("sum", "1", digest)], "the call came before"
        assert worker.engine.models() == []


async def test_what_one_worker_does_not_find_the_others_do_not_keep(tmp_path: Path) -> None:
    """Neither its memory nor its place: other changes can be made."""
    for folder, versions in (("one", ("1", "2")), ("other", ("1",))):
        for version in versions:
            models.publish(tmp_path / folder, "sum", models.counter(), version)
    async with sharing(tmp_path / "one", tmp_path / "other") as (one, other):
        with pytest.raises(ModelNotFoundError, match="no 'sum' '2'; it has 1"):
            await one.shared.load("sum", "", "")
        gc.collect()
        assert [model for model in gc.get_objects() if type(model) is ServedModel and model.version == "2"] == []
        assert await one.shared.load("sum", "1", "") == (one.engine.model("sum"), True)
        assert [model.key for model in one.engine.models()] == [model.key for model in other.engine.models()]


@pytest.mark.parametrize("works", [True, False])
async def test_a_version_that_a_call_has_loaded_is_no_longer_known_as_one_that_cannot_be(works: bool) -> None:
    """It was tried at the start, and did not fit into memory then, for example."""
    changes = Changes()
    changes.verdicts[KEY] = "no memory"
    changes.left_out.add(KEY)
    keeper, worker = connected()

    async def answer(what: str, facts: dict[str, Any]) -> dict[str, Any]:
        if what == "prepare" and not works:
            raise ModelRefusedError("no memory", model="sum", version="1")
        answers: dict[str, dict[str, Any]] = {
            "prepare": {"version": "1", "digest": KEY[2]},
            "serve": {"changed": True},
            "drop": {},
        }
        return answers[what]

    worker.answer = answer
    changes.add(0, keeper)
    async with asyncio.TaskGroup() as group:
        listening = [group.create_task(peer.listen()) for peer in (keeper, worker)]
        try:
            assert (await worker.ask("load", name="sum", version="", digest=""))["version"] == "1"
        except ModelRefusedError:
            assert not works
        for task in listening:
            task.cancel()
    assert (changes.verdicts, changes.left_out) == (({KEY: ""}, set()) if works else ({KEY: "no memory"}, {KEY}))
