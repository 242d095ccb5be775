"""The keeper of workers: what it knows of models when a worker begins anew."""

import asyncio
from typing import Any

import pytest
from recurra_server.engine.errors import ModelRefusedError
from recurra_server.peer import Peer
from recurra_server.shared_catalog import Changes

KEY = ("sum", "1", "sha256:1")


@pytest.mark.parametrize("works", [True, False])
async def test_a_version_that_a_call_has_loaded_is_no_longer_known_as_one_that_cannot_be(works: bool) -> None:
    """It was tried at the start, and did not fit into memory then, for example."""
    changes = Changes()
    changes.verdicts[KEY] = "no memory"
    changes.left_out.add(KEY)
    to_keeper, to_worker = asyncio.StreamReader(), asyncio.StreamReader()
    keeper, worker = Peer(to_keeper, to_worker.feed_data), Peer(to_worker, to_keeper.feed_data)

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
