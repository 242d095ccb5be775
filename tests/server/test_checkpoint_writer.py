"""What one session or caller does to the checkpoints of others, and to what it waits for."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest
from recurra.v1.sessions_pb2 import CloseSessionRequest
from recurra_server import checkpoint_writer, checkpoints
from recurra_server.driver import Driver
from recurra_server.engine.accounts import Quota
from recurra_server.engine.durability import Durability
from recurra_server.engine.errors import EngineError, StepGapError, StoreUnavailableError
from recurra_server.engine.ledger import BatchBound
from recurra_server.engine.ports import StoreError
from recurra_server.engine.sessions import Session
from recurra_server.rpc.sessions import SessionsServicer
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.telemetry.metrics import EdgeCounts

from tests.server.test_checkpoints import Writer, fail_with
from tests.support.attacks import Attack


@pytest.fixture
def writer(runtimes: dict[str, OnnxRuntime]) -> Writer:
    return Writer(runtimes)


async def turns() -> None:
    """Let everything go on as far as it goes by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


def driver_of(writer: Writer) -> Driver:
    driver = Driver(writer.owner.engine, clock=lambda: writer.owner.now)
    driver.checkpoints = writer.checkpoints
    return driver


def step_of(session: Session) -> int:
    assert session.durable is not None
    return session.durable.step


class Gate:
    """The store does not begin requests of a kind before it is told to; or does not answer, though it is done."""

    def __init__(self, writer: Writer, request: str, *, done_first: bool = False) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self._done_first = done_first
        self._request = getattr(writer.store, request)
        setattr(writer.store, request, self._wait)

    async def _wait(self, argument: object) -> object:
        self.begun.set()
        answer = await self._request(argument) if self._done_first else None
        await self.go_on.wait()
        return answer if self._done_first else await self._request(argument)


async def _close(writer: Writer) -> None:
    servicer = SessionsServicer(driver_of(writer), EdgeCounts(), None)
    await servicer.CloseSession(CloseSessionRequest(session_id="own"), cast("Any", None))


async def _drain(writer: Writer) -> None:
    await writer.checkpoints.hand_over()


async def _open_again(writer: Writer) -> None:
    writer.owner.engine.close(writer.owner.engine.session("own", writer.owner.now))
    await writer.open("own")


@pytest.mark.parametrize("call", [_close, _drain, _open_again])
async def test_who_hangs_up_takes_nobodys_checkpoint_with_him(
    writer: Writer, call: Callable[[Writer], Coroutine[Any, Any, None]], attack: Attack
) -> None:
    """Even a call that has something written is not the one that writes what others wait for."""
    others = await writer.open("a")
    await writer.open("own")
    gate = Gate(writer, "save")
    writer.step(others)
    told: list[EngineError | None] = []
    assert others.durable is not None
    others.durable.when_saved(told.append)
    calling = asyncio.ensure_future(call(writer))
    await turns()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    gate.go_on.set()
    assert await writer.checkpoints.writer.write()
    assert told == [None]
    assert writer.checkpoints.writer.written["failed"] == 0
    attack("store", "closing sessions, opening them again, draining, and cancelling the calls", "others are saved")


async def test_an_opening_that_fails_is_no_trouble_of_the_store(writer: Writer) -> None:
    """It may be that session's own size."""
    sync = await writer.open("sync", Durability.SYNC)
    writer.store.on_create = fail_with(StoreError("timed out"))
    with pytest.raises(StoreUnavailableError):
        await writer.open("large")
    writer.step(sync)
    assert sync.applied == 1, "it is not refused"


async def test_what_was_closed_does_not_come_back_while_the_store_is_told(writer: Writer) -> None:
    writer.owner.engine.close(await writer.open("a"))
    gate = Gate(writer, "delete")
    writing = asyncio.create_task(writer.checkpoints.writer.write())
    await gate.begun.wait()
    finding = asyncio.create_task(writer.checkpoints.take_over("a"))
    await turns()
    gate.go_on.set()
    assert await finding is None
    assert await writing
    assert await writer.store.take_over("a") is None


async def test_the_id_of_what_was_closed_is_free_once_the_store_is_told(writer: Writer) -> None:
    writer.owner.engine.close(await writer.open("a"))
    gate = Gate(writer, "delete")
    writing = asyncio.create_task(writer.checkpoints.writer.write())
    await gate.begun.wait()
    opening = asyncio.create_task(writer.open("a"))
    await turns()
    assert not opening.done()
    gate.go_on.set()
    assert not (await opening).closed
    assert await writing


async def test_a_name_is_nobody_elses_until_the_store_has_answered_who_hung_up(writer: Writer, attack: Attack) -> None:
    """Else the session that was found is another owner's by the time that it is here."""
    gate = Gate(writer, "create", done_first=True)
    opening = asyncio.ensure_future(writer.open("a"))
    await gate.begun.wait()
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    finding = asyncio.ensure_future(driver_of(writer).find("a"))
    await turns()
    assert not finding.done()
    gate.go_on.set()
    session = await finding
    writer.step(session)
    assert await writer.checkpoints.writer.write()
    assert step_of(session) == 1, "it is its only owner's"
    assert writer.checkpoints.taken_over == 0
    attack("store", "cancelling OpenSession and stepping the session at once", "it waits until the session is open")


async def test_an_id_is_not_free_while_the_store_cannot_be_told(writer: Writer) -> None:
    writer.owner.engine.close(await writer.open("a"))
    writer.store.on_delete = writer.store.on_identity = fail_with(StoreError("away"))
    opening = asyncio.create_task(writer.open("a"))
    await turns()
    assert not await writer.checkpoints.writer.write()
    with pytest.raises(StoreUnavailableError):
        await opening


async def test_what_was_closed_is_deleted_in_parts_with_what_somebody_waits_for_between_them(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "_DELETIONS", 2)
    sync = await writer.open("sync", Durability.SYNC)
    for number in range(5):
        writer.owner.engine.close(await writer.open(str(number)))
    order: list[str] = []
    delete = writer.store.delete

    async def note(sessions: Sequence[tuple[str, int, float]]) -> None:
        order.append(" ".join(store_key for store_key, _, _ in sessions))
        await delete(sessions)
        if len(order) == 1:
            writer.step(sync)

    monkeypatch.setattr(writer.store, "delete", note)
    writer.store.on_save = lambda: order.append("save")
    assert await writer.checkpoints.writer.write()
    assert order == ["0 1", "save", "2 3", "4"]


async def test_what_somebody_waits_for_does_not_wait_for_all_that_has_changed(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, attack: Attack
) -> None:
    monkeypatch.setattr(checkpoint_writer, "_BATCH", BatchBound(sessions=1, bytes=1 << 20))
    many = [await writer.open(str(number)) for number in range(20)]
    sync = await writer.open("sync", Durability.SYNC)
    for session in many:
        writer.step(session)
    writer.store.on_save = lambda: None if writer.store.saves else writer.step(sync)  # while the first is written
    assert await writer.checkpoints.writer.write()
    assert writer.store.saves == [["0"], ["sync"], *[[str(number)] for number in range(1, 20)]]
    attack("store", "many ASYNC sessions that change all the time", "SYNC steps go between two of their batches")


@pytest.mark.parametrize("gone", [True, False], ids=["hangs up", "gives up"])
async def test_nothing_is_left_of_who_waits_no_more(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, gone: bool, attack: Attack
) -> None:
    session = await writer.open("a", Durability.SYNC)
    if not gone:
        monkeypatch.setattr(checkpoints, "_PATIENCE", 0.0)
    writer.store.on_save = writer.store.on_identity = fail_with(StoreError("away"))
    for _ in range(3):
        writer.owner.engine.reset(session, writer.owner.now)
        waiting = asyncio.ensure_future(writer.checkpoints.saved(session))
        await turns()
        assert not await writer.checkpoints.writer.write()
        if gone:
            waiting.cancel()
        (error,) = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(error, asyncio.CancelledError if gone else StoreUnavailableError)
    assert session.durable is not None
    assert session.durable.change is not None
    assert session.durable.change.told == []
    attack("store", "resetting a SYNC session again and again while the store is away", "nothing is left of the calls")


@pytest.mark.parametrize("gone", [True, False], ids=["hangs up", "gives up"])
async def test_nothing_is_left_of_who_waits_no_more_for_a_name_to_be_free(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    session = await writer.open("a")
    writer.owner.engine.close(session)
    if not gone:
        monkeypatch.setattr(checkpoints, "_PATIENCE", 0.0)
    waiting = asyncio.ensure_future(writer.checkpoints.deleted(session))
    await asyncio.sleep(0)
    if gone:
        (deletion,) = writer.owner.engine.ledger.deletions.values()
        assert len(deletion.told) == 1
        waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled() is gone
    (deletion,) = writer.owner.engine.ledger.deletions.values()
    assert deletion.told == []


async def test_who_asks_for_steps_that_are_not_there_has_few_sessions_saved_at_a_time(
    writer: Writer, attack: Attack
) -> None:
    alice = writer.owner.engine.accounts.of("alice", Quota())
    sessions = [await writer.open(str(number), caller=alice) for number in range(20)]
    driver = driver_of(writer)
    asking = [asyncio.ensure_future(driver.has_applied(session, 2**60)) for session in sessions for _ in range(2)]
    most = 0
    async with asyncio.timeout(20):
        while not all(call.done() for call in asking):
            await turns()
            most = max(most, len(writer.owner.engine.ledger.changed))
            assert await writer.checkpoints.writer.write()
    assert 4 <= most <= 8
    for call in asking:
        assert isinstance(call.exception(), StepGapError)
    attack(
        "store", "asking for steps that were never applied, of many sessions", "eight at a time are saved to be sure"
    )
