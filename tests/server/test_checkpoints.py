"""What is opened, taken over and written, whatever the store does."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recurra_server.checkpoints import Checkpoints
from recurra_server.engine.accounts import Account, Quota
from recurra_server.engine.durability import Durability
from recurra_server.engine.errors import CapacityError, ModelNotFoundError
from recurra_server.engine.ports import Checkpoint, SessionStore, StoreError
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.engine.standing import Standing
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.stores.valkey import ValkeyStore

from tests.support.attacks import Attack
from tests.support.memory_store import MemoryStore
from tests.support.owner import Owner
from tests.support.valkey import running_valkey

ONE = np.ones((1, 1))


class Store(MemoryStore):
    """Does something when it is to save, and can be another."""

    def __init__(self) -> None:
        super().__init__()
        self.saves: list[list[str]] = []
        self.on_save: Callable[[], object] = lambda: None
        self.on_identity: Callable[[], object] = lambda: None
        self.on_create: Callable[[], object] = lambda: None
        self.on_delete: Callable[[], object] = lambda: None
        self.name = "one"

    async def create(self, checkpoint: Checkpoint) -> int | None:
        """Keep the first."""
        self.on_create()
        return await super().create(checkpoint)

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Save them."""
        self.on_save()
        self.saves.append([checkpoint.store_key for checkpoint in checkpoints])
        return await super().save(checkpoints)

    async def delete(self, sessions: Sequence[tuple[str, int, float]]) -> None:
        """Forget them."""
        self.on_delete()
        await super().delete(sessions)

    async def identity(self) -> str:
        """Its name."""
        self.on_identity()
        return self.name


class Writer:
    """A server whose checkpoints are written when the test says so."""

    def __init__(self, runtimes: dict[str, OnnxRuntime]) -> None:
        self.owner = Owner(runtimes)
        self.store = Store()
        self.use(self.store)

    def use(self, store: SessionStore) -> None:
        """Write to another store."""
        self.checkpoints = Checkpoints(self.owner.engine, store, interval=0.1, clock=lambda: self.owner.now)

    async def open(
        self,
        session_id: str,
        durability: Durability = Durability.ASYNC,
        *,
        version: str = "",
        caller: Account | None = None,
        idle_timeout: float | None = None,
    ) -> Session:
        """Open one."""
        standing = Standing.beginning(self.owner.engine.model("counter", version), {})
        return await self.checkpoints.open(
            standing, session_id=session_id, idle_timeout=idle_timeout, durability=durability, caller=caller
        )

    def step(self, session: Session) -> None:
        """Step it, a moment later."""
        self.owner.now += 0.001
        self.owner.submit(session, ONE)
        self.owner.run()


@pytest.fixture
def writer(runtimes: dict[str, OnnxRuntime]) -> Writer:
    return Writer(runtimes)


def fail_with(error: Exception) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


async def test_what_changes_while_it_is_written_is_for_the_next_time(writer: Writer) -> None:
    session = await writer.open("a")
    writer.step(session)
    writer.store.on_save = lambda: writer.step(session) if len(writer.store.saves) < 10 else None
    for _ in range(3):
        writer.store.saves.clear()
        assert await writer.checkpoints.writer.write()
        assert writer.store.saves == [["a"]]


async def test_sessions_that_are_closed_all_the_time_keep_nobody_from_being_saved(
    writer: Writer, attack: Attack
) -> None:
    session = await writer.open("a")
    others = [await writer.open(str(number)) for number in range(10)]
    writer.owner.engine.close(others.pop())
    writer.store.on_delete = lambda: writer.owner.engine.close(others.pop()) if others else None
    assert await writer.checkpoints.writer.write()
    assert len(others) == 8, "what is closed meanwhile is for the next time"
    writer.step(session)
    assert await writer.checkpoints.writer.write()
    assert writer.store.saves[-1] == ["a"]
    assert len(others) == 6
    attack("store", "opening and closing sessions all the time", "checkpoints of others are written all the same")


async def test_what_was_not_saved_is_saved_again_when_the_store_is_back(writer: Writer) -> None:
    session, closed = await writer.open("a"), await writer.open("b")
    writer.step(session)
    writer.owner.engine.close(closed)
    writer.store.on_save = writer.store.on_delete = writer.store.on_identity = fail_with(StoreError("away"))
    assert not await writer.checkpoints.writer.write()
    assert not writer.owner.engine.ledger.store_up
    writer.store.on_save = writer.store.on_delete = writer.store.on_identity = lambda: None
    assert await writer.checkpoints.writer.write()
    assert writer.owner.engine.ledger.store_up
    assert session.durable is not None
    assert session.durable.step == 1
    assert await writer.store.take_over("b") is None


async def test_a_store_that_is_another_gets_what_does_not_change_too(writer: Writer) -> None:
    alice = writer.owner.engine.accounts.of("alice", Quota())
    for session_id, caller in (("a", None), ("b", None), ("c", alice)):
        await writer.open(session_id, caller=caller)
    await writer.checkpoints.writer.look()
    await writer.checkpoints.writer.write()
    assert writer.store.saves == []
    writer.store.name = "another"
    await writer.checkpoints.writer.look()
    await writer.checkpoints.writer.write()
    assert writer.store.saves == [["a", "b", "alice/c"]], "everybody's"


async def test_whether_the_store_is_there_is_known_when_nothing_is_written(writer: Writer) -> None:
    told: list[bool] = []
    writer.checkpoints.writer.on_store.append(told.append)
    writer.store.on_identity = fail_with(StoreError("no", "is full"))
    for _ in range(2):
        await writer.checkpoints.writer.look()
    assert writer.owner.engine.ledger.trouble == "is full"
    writer.store.on_identity = lambda: None
    await writer.checkpoints.writer.look()
    assert told == [False, True]


async def test_only_what_is_saved_is_handed_over(writer: Writer) -> None:
    saved, changing = await writer.open("a"), await writer.open("b")
    ephemeral = writer.owner.open("counter")
    writer.step(saved)
    writer.step(changing)
    writer.store.on_save = lambda: writer.step(changing) if len(writer.store.saves) < 10 else None
    assert await writer.checkpoints.hand_over() == 1
    assert (saved.closed, changing.closed, ephemeral.closed) == (True, False, False)


async def test_a_session_that_its_caller_has_no_room_for_is_not_taken_from_its_owner(
    runtimes: dict[str, OnnxRuntime], attack: Attack
) -> None:
    there, here = Writer(runtimes), Writer(runtimes)
    here.use(there.store)
    accounts = [writer.owner.engine.accounts.of("ann", Quota(sessions=1)) for writer in (there, here)]
    owned = await there.open("a", caller=accounts[0])
    await here.open("b", caller=accounts[1])
    with pytest.raises(CapacityError):
        await here.checkpoints.take_over("a", accounts[1])
    there.step(owned)
    assert await there.checkpoints.writer.write()
    assert not owned.closed, "it is still its owner's"
    attack(
        "store", "taking over more sessions than one's bound", "RESOURCE_EXHAUSTED CAPACITY; they stay where they are"
    )


async def test_it_is_opened_on_the_version_that_was_asked_for(writer: Writer, runtimes: dict[str, OnnxRuntime]) -> None:
    engine, runtime = writer.owner.engine, runtimes["counter"]
    asked = engine.model("counter")
    engine.add_model(ServedModel("counter", "2", asked.digest, runtime.signature, runtime, engine.limits))
    session = await writer.open("a", version="1")
    assert session.model is asked, "though the newer one has the same file"


async def test_nothing_is_left_of_a_session_whose_model_goes_while_it_is_opened(writer: Writer) -> None:
    engine = writer.owner.engine
    model = engine.model("counter")

    def go() -> None:
        engine.shelf.remove(model)
        assert engine.shelf.forget_retired() == [model]

    writer.store.on_create = go
    with pytest.raises(ModelNotFoundError):
        await writer.open("a")
    assert model.slots.in_use == 0
    assert await writer.store.take_over("a") is None


async def test_what_nobody_waits_for_any_more_is_opened_all_the_same_and_counts(writer: Writer, attack: Attack) -> None:
    """Else the store would have sessions that no bound knows of."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    create = writer.store.create

    async def slowly(checkpoint: Checkpoint) -> int | None:
        begun.set()
        await go_on.wait()
        return await create(checkpoint)

    writer.store.create = slowly  # type: ignore[method-assign]
    alice = writer.owner.engine.accounts.of("alice", Quota(sessions=1))
    opening = asyncio.create_task(writer.open("a", caller=alice))
    await begun.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go_on.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert list(alice.sessions) == ["a"]
    with pytest.raises(CapacityError):
        await writer.open("b", caller=alice)
    attack("store", "opening sessions and cancelling the calls", "they are opened and count as the caller's")


async def test_who_asks_for_sessions_that_are_nowhere_holds_up_neither_checkpoints_nor_others(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Attack
) -> None:
    with running_valkey(tmp_path) as process:
        store = ValkeyStore(process.url, timeout=60.0)
        answer, go_on, asked = store._client.run, asyncio.Event(), 0

        async def run(keys: Sequence[bytes], command: str, arguments: Sequence[bytes]) -> list[Any]:
            nonlocal asked
            if b"noisy" in keys[0]:
                asked += 1
                await go_on.wait()
            return await answer(keys, command, arguments)

        monkeypatch.setattr(store._client, "run", run)
        writer.use(store)
        noisy, quiet = (writer.owner.engine.accounts.of(name, Quota()) for name in ("noisy", "quiet"))
        async with asyncio.timeout(20):
            session = await writer.open("a", caller=quiet)
            asking = [asyncio.create_task(writer.checkpoints.take_over(f"nowhere-{i}", noisy)) for i in range(100)]
            await asyncio.sleep(0)
            writer.step(session)
            assert await writer.checkpoints.writer.write()
            assert await writer.checkpoints.take_over("b", quiet) is None
            assert asked == 8
            go_on.set()
            assert await asyncio.gather(*asking) == [None] * 100
        assert asked == 100
        await store.close()
    attack(
        "store",
        "asking for a hundred sessions at once that are nowhere",
        "eight at a time are looked for; checkpoints and other callers go on",
    )


async def test_of_a_closed_session_little_is_kept_and_only_for_minutes(
    writer: Writer, tmp_path: Path, attack: Attack
) -> None:
    with running_valkey(tmp_path) as process:
        store = ValkeyStore(process.url)
        writer.use(store)
        session = await writer.open("a", idle_timeout=86_400.0)
        assert process.client.pttl("recurra:session:a") > 86_000_000
        assert session.durable is not None
        epoch = session.durable.epoch
        writer.owner.engine.close(session)
        assert await writer.checkpoints.writer.write()
        assert 200_000 < process.client.pttl("recurra:session:a") <= 300_000, "as long as its caller chose, before"
        assert process.client.strlen("recurra:session:a") == 25
        assert await store.save([Checkpoint("a", epoch, 99, 2, 60.0, b"late")]) == [False]
        await store.close()
    attack(
        "store",
        "opening durable sessions with long lives, and closing them",
        "of each, 25 bytes are kept for five minutes",
    )
