"""What of a session has to be put in the store, and what a session is told of it."""

from collections.abc import Callable

import numpy as np
import pytest
from recurra_server.engine import handover, snapshots
from recurra_server.engine.durability import Durability
from recurra_server.engine.errors import (
    DrainingError,
    EngineError,
    SessionMovedError,
    SessionNotFoundError,
    SnapshotInvalidError,
    StepGapError,
    StepNotHeldError,
    StoreUnavailableError,
)
from recurra_server.engine.ports import Checkpoint
from recurra_server.engine.sessions import Session
from recurra_server.engine.snapshots import Snapshot
from recurra_server.engine.standing import Standing
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support.attacks import Attack
from tests.support.owner import Owner, heard, step_of

Runtimes = dict[str, OnnxRuntime]
ONE = np.ones((1, 1))


@pytest.fixture
def owner(runtimes: Runtimes) -> Owner:
    return Owner(runtimes)


def test_an_ephemeral_session_is_never_saved(owner: Owner) -> None:
    session = owner.open("counter")
    owner.ask(session, ONE, number=1)
    assert session.durable is None
    assert owner.take() == []


def test_what_changed_is_saved_once(owner: Owner, runtimes: Runtimes) -> None:
    session = owner.begin()
    assert owner.take() == [], "it is in the store as it was opened"
    for number in (1, 2, 3):
        owner.ask(session, ONE, number=number)
    (checkpoint,) = owner.save()
    assert (checkpoint.store_key, checkpoint.epoch, checkpoint.revision) == ("a", 7, 1)
    assert step_of(session) == 3
    assert owner.take() == []
    there = Owner(runtimes)
    moved = handover.adopt(there.engine, checkpoint, 0.0)
    assert there.ask(moved, ONE, number=4).item() == 4.0


@pytest.mark.parametrize(
    "change",
    [
        lambda owner, session: owner.engine.reset(session, 0.0),
        lambda owner, session: snapshots.rewind(session, snapshots.take(session, 0.0), 0.0),
        lambda owner, session: (owner.submit_block([session], ONE[None]), owner.run()),
        lambda owner, session: owner.ask(session, np.ones((100, 1))),
    ],
    ids=["reset", "rewind", "block", "chunk"],
)
def test_whatever_changes_a_session_is_saved(owner: Owner, change: Callable[[Owner, Session], object]) -> None:
    session = owner.begin()
    change(owner, session)
    assert [checkpoint.store_key for checkpoint in owner.save()] == ["a"]
    assert step_of(session) == session.applied


def test_whoever_counts_anew_has_nothing_durable_yet(owner: Owner) -> None:
    session = owner.begin()
    owner.ask(session, np.ones((9, 1)))
    (save,) = owner.take()
    owner.engine.reset(session, 0.0)
    save.durable.saved(save, 0.0)
    owner.ask(session, ONE, number=1)
    assert step_of(session) == 0
    owner.save()
    assert step_of(session) == 1


def test_what_fails_changes_nothing(owner: Owner) -> None:
    session = owner.begin()
    assert owner.submit(session, np.full((1, 1), np.nan)).error is None
    owner.run()
    assert owner.take() == []


def test_a_chunk_on_its_way_is_saved_as_it_was_before(owner: Owner) -> None:
    session = owner.begin()
    owner.ask(session, ONE, number=1)
    owner.submit(session, np.ones((200, 1)), number=2)
    owner.run_batch()
    (save,) = owner.take()
    assert save.step == 1
    owner.run()
    save.durable.saved(save, 0.0)
    assert step_of(session) == 1
    assert owner.save()
    assert step_of(session) == 201


def test_a_session_is_on_its_way_once_at_a_time(owner: Owner) -> None:
    session = owner.begin()
    owner.ask(session, ONE)
    (save,) = owner.take()
    owner.ask(session, ONE)
    assert owner.take() == []
    save.durable.saved(save, 0.0)
    assert [checkpoint.revision for checkpoint in owner.save()] == [2]


def test_what_did_not_reach_the_store_is_saved_again(owner: Owner) -> None:
    session = owner.begin()
    owner.ask(session, ONE)
    told = heard(session)
    (save,) = owner.take()
    save.durable.failed(save, 0.0)
    assert isinstance(told[0], StoreUnavailableError)
    owner.ask(session, ONE)
    assert step_of(session) == 0
    assert [checkpoint.revision for checkpoint in owner.save()] == [2]
    assert step_of(session) == 2


def test_a_sync_step_is_answered_when_it_is_saved(owner: Owner) -> None:
    session = owner.begin(Durability.SYNC)
    step = owner.submit(session, ONE, number=1)
    behind = owner.submit(session, ONE, number=2)
    owner.run()
    assert owner.answered == []
    (save,) = owner.take(hurried_only=True)
    save.durable.failed(save, 0.0)
    assert owner.answered == []
    owner.save()
    assert owner.answered == [step]
    assert step_of(session) == 1
    owner.run()
    owner.save()
    assert owner.answered == [step, behind]
    again = owner.submit(session, ONE, number=2)
    assert again.replayed


def test_a_sync_step_is_refused_while_the_store_is_away(owner: Owner) -> None:
    session, other = owner.begin(Durability.SYNC), owner.begin(session_id="b")
    owner.engine.ledger.trouble = "is away"
    with pytest.raises(StoreUnavailableError):
        owner.ask(session, ONE, number=1)
    assert session.applied == 0
    owner.ask(other, ONE, number=1)
    assert other.applied == 1, "an ASYNC one goes on"


def test_async_sessions_are_not_hurried_by_sync_ones(owner: Owner) -> None:
    slow, quick = owner.begin(), owner.begin(Durability.SYNC, "b")
    for session in (slow, quick):
        owner.submit(session, ONE)
    owner.run()
    assert [save.checkpoint.store_key for save in owner.take(hurried_only=True)] == ["b"]
    assert [save.checkpoint.store_key for save in owner.take()] == ["a"]


def test_a_gap_is_told_only_by_the_owner(owner: Owner) -> None:
    """The step that is missing here may have been applied by a server that has taken the session over."""
    session = owner.begin()
    owner.ask(session, ONE, number=1)
    owner.save()
    gap = owner.submit(session, ONE, number=5)
    assert owner.answered[1:] == []
    owner.save()
    assert isinstance(gap.error, StepGapError)
    gap = owner.submit(session, ONE, number=5)
    owner.engine.let_go(session)
    assert isinstance(gap.error, SessionMovedError)


@pytest.mark.parametrize("durability", [Durability.ASYNC, Durability.SYNC])
@pytest.mark.parametrize("number", [1, 5], ids=["not held", "gap"])
def test_what_the_store_cannot_confirm_is_not_told(owner: Owner, durability: Durability, number: int) -> None:
    session = owner.begin(durability)
    for count in (1, 2):
        owner.submit(session, ONE, number=count)
        owner.run()
        owner.save()
    owner.engine.ledger.trouble = "is away"
    steps = [owner.submit(session, ONE, number=number)]
    if durability is Durability.ASYNC:
        owner.engine.ledger.trouble = ""  # it goes away under the very save that was to tell
        steps.append(owner.submit(session, ONE, number=number))
        (save,) = owner.take()
        save.durable.failed(save, 0.0)
    assert owner.answered[2:] == steps
    assert [type(step.error) for step in steps] == [StoreUnavailableError] * len(steps)
    owner.engine.ledger.trouble = ""
    again = owner.submit(session, ONE, number=number)
    owner.save()
    assert isinstance(again.error, StepNotHeldError if number == 1 else StepGapError)


@pytest.mark.parametrize("durability", [Durability.ASYNC, Durability.SYNC])
def test_whoever_waits_hears_of_the_end(owner: Owner, durability: Durability) -> None:
    session = owner.begin(durability)
    step, behind = owner.submit(session, ONE), owner.submit(session, ONE)
    owner.run()
    told = heard(session)
    batch = owner.take()
    later = heard(session)
    owner.engine.let_go(session)
    assert [type(error) for error in told + later] == [SessionMovedError] * 2
    assert isinstance(step.error, SessionMovedError) == (durability is Durability.SYNC)
    assert isinstance(behind.error, SessionMovedError) == (durability is Durability.SYNC)
    for save in batch:
        save.durable.failed(save, 0.0)
    assert owner.take() == []
    assert owner.engine.model("counter").slots.in_use == 0
    assert owner.engine.ended["counter", "1", "sha256:counter", "moved"] == 1
    assert owner.engine.ledger.deletions == {}


@pytest.mark.parametrize("error", [None, DrainingError("it shuts down", retry_after=0.1)], ids=["taken", "drained"])
def test_whoever_still_holds_a_session_that_goes_on_elsewhere_is_told_so(
    owner: Owner, error: EngineError | None
) -> None:
    """They would take it for gone, and its sequence for lost."""
    session = owner.begin()
    data = snapshots.take(session, 0.0)
    block = owner.submit_block([session], ONE[None])
    owner.engine.let_go(session, error)
    owner.run()
    told = [*block.errors.values(), *heard(session)]
    for use in (
        lambda: owner.submit(session, ONE),
        lambda: session.check_applied(0),
        lambda: snapshots.take(session, 0.0),
        lambda: snapshots.rewind(session, data, 0.0),
        lambda: owner.engine.reset(session, 0.0),
        lambda: owner.engine.begin_anew(session, session.model, 0.0),
        lambda: owner.engine.close(session),
    ):
        with pytest.raises(EngineError) as caught:
            use()
        told.append(caught.value)
    expected = SessionMovedError if error is None else DrainingError
    assert [type(each) for each in told] == [expected] * 9
    assert {each.retry_after for each in told if each is not None} == {0.0 if error is None else 0.1}


def test_of_a_session_that_has_ended_nothing_is_saved(owner: Owner, attack: Attack) -> None:
    """Its slot is the next one's: what is read there would be saved under its name."""
    session = owner.begin(idle_timeout=5.0)
    owner.ask(session, ONE)
    owner.now = 6.0
    assert owner.engine.expire(owner.now) == 1
    other = owner.open("counter")
    assert other.slot == session.slot
    assert session.durable is not None
    for change in (session.durable.changed, session.durable.went_back, session.durable.make_sure):
        change(owner.now)
        assert [type(error) for error in heard(session)] == [SessionNotFoundError]
        assert owner.take() == []
        assert owner.engine.ledger.lag(owner.now) == 0.0
    attack("store", "waiting for a session's checkpoint while it expires", "NOT_FOUND; nothing of it is saved any more")


def test_a_checkpoint_is_checked(owner: Owner) -> None:
    snapshot = Snapshot.of(Standing.beginning(owner.engine.model("counter"), {})).encode()
    with pytest.raises(SnapshotInvalidError):
        handover.adopt(owner.engine, Checkpoint("a", 1, 1, 99, 60.0, snapshot), 0.0)
    with pytest.raises(SnapshotInvalidError):
        handover.adopt(owner.engine, Checkpoint("a", 1, 1, 2, 60.0, snapshot[:-1]), 0.0)
    assert owner.engine.model("counter").slots.in_use == 0
