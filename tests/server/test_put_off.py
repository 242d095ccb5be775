"""Sessions that cannot be saved though the store is there: they hold up neither others nor the end of their server."""

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from recurra_server import checkpoint_writer
from recurra_server.engine import handover
from recurra_server.engine.accounts import Quota
from recurra_server.engine.durability import Durability
from recurra_server.engine.errors import EngineError, StoreUnavailableError
from recurra_server.engine.ledger import BatchBound
from recurra_server.engine.ports import Checkpoint, StoreError
from recurra_server.engine.sessions import Session
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.server.test_checkpoints import Writer, fail_with
from tests.support.attacks import Attack
from tests.support.owner import step_of

_TIME_OUT = 2.0  # seconds


@pytest.fixture
def writer(runtimes: dict[str, OnnxRuntime]) -> Writer:
    return Writer(runtimes)


def time_out_with(writer: Writer, name: str) -> list[list[str]]:
    """Have the store time out over all that holds a session of such a name; what it was sent then is returned."""
    save = writer.store.save
    tries: list[list[str]] = []

    async def slowly(checkpoints: Sequence[Checkpoint]) -> list[bool]:
        sent = [checkpoint.store_key for checkpoint in checkpoints]
        if not any(name in store_key for store_key in sent):
            return await save(checkpoints)
        writer.owner.now += _TIME_OUT
        tries.append(sent)
        if len(tries) > 1000:
            pytest.fail("there is no end to it")
        raise StoreError("timed out")

    writer.store.save = slowly  # type: ignore[method-assign]
    return tries


@pytest.mark.parametrize("why", ["timed out", "cannot be sent", "cannot be encoded"])
async def test_a_session_that_cannot_be_saved_keeps_no_other_from_it(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, why: str, attack: Attack
) -> None:
    """One that takes more than two seconds to send, for one."""
    sessions = [await writer.open(str(number)) for number in range(40)]
    bad, sync = sessions[7], await writer.open("sync", Durability.SYNC)
    save, encode = writer.store.save, handover.encode
    is_bad, tries = True, 0

    async def refuse(checkpoints: Sequence[Checkpoint]) -> list[bool]:
        nonlocal tries
        if is_bad and any(checkpoint.store_key == "7" for checkpoint in checkpoints):
            tries += 1
            if tries > 100:
                pytest.fail("there is no end to it")
            raise StoreError(why) if why == "timed out" else MemoryError(why)
        return await save(checkpoints)

    def cannot(session: Session) -> bytes:
        nonlocal tries
        if is_bad and session is bad:
            tries += 1
            raise MemoryError
        return encode(session)

    if why == "cannot be encoded":
        monkeypatch.setattr(handover, "encode", cannot)
    else:
        writer.store.save = refuse  # type: ignore[method-assign]
    for session in [*sessions, sync]:
        writer.step(session)
    told: dict[str, EngineError | None] = {}
    for session in (bad, sessions[8]):
        assert session.durable is not None
        session.durable.when_saved(partial(told.__setitem__, session.id or ""))
    assert await writer.checkpoints.writer.write(), "the store is there"
    assert told.pop("8") is None
    assert isinstance(told.pop("7"), StoreUnavailableError)
    assert writer.owner.engine.ledger.store_up
    assert [step_of(session) for session in sessions] == [int(session is not bad) for session in sessions]
    assert step_of(sync) == 1
    assert tries == 2, "with the others, and alone"

    for number in range(2, 12):
        for session in [*sessions, sync]:
            writer.step(session)
        writer.store.saves.clear()
        assert await writer.checkpoints.writer.write()
        assert step_of(sync) == step_of(sessions[0]) == number
        assert len(writer.store.saves) == 1, "the others go in one batch still"
        writer.owner.now += 1.0
    assert step_of(bad) == 0
    assert tries <= 2 + 4, "less and less often"

    is_bad = False
    writer.owner.now += 30.0
    assert await writer.checkpoints.writer.write()
    assert step_of(bad) == bad.applied == 11
    attack(
        "store", "a session that cannot be saved", "it is put off; other sessions are saved, and SYNC steps answered"
    )


async def test_others_have_turns_of_the_loop_while_many_are_tried_that_cannot_be_made_bytes(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(_: Session) -> bytes:
        raise MemoryError

    for number in range(40):
        writer.step(await writer.open(str(number)))
    monkeypatch.setattr(handover, "encode", cannot)
    written, turns = asyncio.create_task(writer.checkpoints.writer.write()), 0
    while not written.done():
        await asyncio.sleep(0)
        turns += 1
    assert writer.checkpoints.writer.written["failed"] == 2 * 40, "with the others, and alone"
    assert turns >= 40


async def test_nobody_waits_while_one_is_tried_again(writer: Writer) -> None:
    sync, bad = await writer.open("sync", Durability.SYNC), await writer.open("bad")
    begun, save = asyncio.Event(), writer.store.save

    async def refuse(checkpoints: Sequence[Checkpoint]) -> list[bool]:
        if all(checkpoint.store_key != "bad" for checkpoint in checkpoints):
            return await save(checkpoints)
        if len(checkpoints) == 1:
            begun.set()
            await asyncio.Event().wait()
        raise StoreError("timed out")

    writer.store.save = refuse  # type: ignore[method-assign]
    for session in (sync, bad):
        writer.step(session)
    assert bad.durable is not None
    bad.durable.when_saved(lambda _: None)
    forever = (writer.checkpoints.writer.write_forever, writer.checkpoints.writer.retry_forever)
    running = [asyncio.create_task(each()) for each in forever]
    async with asyncio.timeout(20):
        await begun.wait()
        assert step_of(sync) == 1
        for number in (2, 3):
            writer.step(sync)
            await writer.checkpoints.saved(sync)
            assert step_of(sync) == number
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert step_of(bad) == 0
    assert not bad.durable.is_saved


async def test_what_is_too_much_at_once_for_a_slow_store_goes_one_by_one(writer: Writer) -> None:
    sessions = [await writer.open(str(number)) for number in range(100)]
    save = writer.store.save

    async def slowly(checkpoints: Sequence[Checkpoint]) -> list[bool]:
        if len(checkpoints) > 10:
            raise StoreError("timed out")
        return await save(checkpoints)

    writer.store.save = slowly  # type: ignore[method-assign]
    for session in sessions:
        writer.step(session)
    assert await writer.checkpoints.writer.write()
    assert [step_of(session) for session in sessions] == [1] * 100


@pytest.mark.parametrize("durability", [Durability.ASYNC, Durability.SYNC])
async def test_many_that_cannot_be_saved_hold_up_neither_others_nor_a_drain(
    writer: Writer, durability: Durability, attack: Attack
) -> None:
    """However long it would take to try all of them."""
    noisy, quiet = (writer.owner.engine.accounts.of(name, Quota()) for name in ("noisy", "quiet"))
    bad = [await writer.open(f"bad{number}", durability, caller=noisy) for number in range(20)]
    good = [await writer.open(str(number), durability, caller=quiet) for number in range(50)]
    tries = time_out_with(writer, "bad")
    for session in bad + good:
        writer.step(session)
    began = writer.owner.now
    moved = await writer.checkpoints.hand_over()
    assert writer.owner.now - began <= checkpoint_writer.LAP_SECONDS + _TIME_OUT
    assert moved == len(good)
    assert [session.closed for session in good] == [True] * len(good), "they are let go"
    assert {step_of(session) for session in bad} == {0}
    assert [len(sent) for sent in tries[:2]] == [70, 1]
    for _ in range(10):
        assert await writer.checkpoints.writer.write()
    assert {name for (name,) in tries[1:]} == {f"noisy/bad{number}" for number in range(20)}, "each has its turn"
    attack("store", "20 sessions that cannot be saved, and a drain", "it ends in seconds, and moves all others")


async def test_of_one_caller_the_small_ones_are_tried_first(writer: Writer) -> None:
    """Where callers are not told apart, all are one; and what cannot be saved is large, as a rule."""
    bad = [await writer.open(f"bad{number}") for number in range(20)]
    good = [await writer.open(str(number)) for number in range(20)]
    time_out_with(writer, "bad")
    for session in bad:
        writer.owner.ask(session, np.ones((300, 1)), number=1)  # its reply is kept
    for session in good:
        writer.step(session)
    assert await writer.checkpoints.hand_over() == 20
    assert {session.closed for session in good} == {True}


async def test_one_that_is_new_does_not_wait_for_all_that_have_failed_alone(writer: Writer) -> None:
    """With sixteen of them, there is always one that is due."""
    bad = [await writer.open(f"bad{number}") for number in range(30)]
    tries = time_out_with(writer, "bad")
    for session in bad:
        writer.step(session)
    for _ in range(10):
        assert await writer.checkpoints.writer.write()
    late, with_it = await writer.open("late"), await writer.open("bad-late")
    for session in (late, with_it):
        writer.step(session)
    tries.clear()
    assert await writer.checkpoints.writer.write()
    assert tries[0] == ["late", "bad-late"]
    assert step_of(late) == 1


@pytest.mark.parametrize("at_once", [1, 4], ids=["in batches", "alone"])
async def test_where_one_cannot_be_made_bytes_the_next_is_tried(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    sessions = [await writer.open(session_id) for session_id in ("bad", "a", "b", "c")]
    encode, save = handover.encode, writer.store.save

    def cannot(session: Session) -> bytes:
        if session.id == "bad":
            raise MemoryError
        return encode(session)

    async def one_at_a_time(checkpoints: Sequence[Checkpoint]) -> list[bool]:
        if len(checkpoints) > 1:
            raise StoreError("timed out")
        return await save(checkpoints)

    monkeypatch.setattr(handover, "encode", cannot)
    monkeypatch.setattr(checkpoint_writer, "_BATCH", BatchBound(sessions=at_once, bytes=1 << 20))
    for session in sessions:
        writer.step(session)
    assert await writer.checkpoints.hand_over() == 3


async def test_a_drain_does_not_wait_for_a_store_that_never_answers(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await writer.open("a")
    stopped = asyncio.Event()

    async def never(checkpoints: Sequence[Checkpoint]) -> list[bool]:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return []

    writer.store.save = never  # type: ignore[method-assign]
    monkeypatch.setattr(checkpoint_writer, "LAP_SECONDS", 0.01)
    writer.step(session)
    async with asyncio.timeout(20):
        assert await writer.checkpoints.hand_over() == 0
    assert not session.closed
    assert not stopped.is_set(), "others may wait for it"


async def test_who_cannot_be_told_strands_no_other(writer: Writer) -> None:
    sessions = [await writer.open(session_id) for session_id in ("a", "b", "c")]

    def tell(_: EngineError | None) -> None:
        raise MemoryError

    for on_save in (lambda: None, fail_with(StoreError("timed out")), lambda: None):
        writer.store.on_save = on_save
        for session in sessions:
            writer.step(session)
        assert sessions[0].durable is not None
        sessions[0].durable.when_saved(tell)
        assert await writer.checkpoints.writer.write()
        writer.owner.now += 1.0
    assert [step_of(session) for session in sessions] == [3, 3, 3]
