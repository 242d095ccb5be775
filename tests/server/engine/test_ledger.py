"""What goes to the store next, of all sessions."""

import numpy as np
import pytest
from recurra_server.engine.accounts import Quota
from recurra_server.engine.durability import Durability
from recurra_server.engine.errors import StoreUnavailableError
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support.owner import Owner, heard, step_of

ONE = np.ones((1, 1))


@pytest.fixture
def owner(runtimes: dict[str, OnnxRuntime]) -> Owner:
    return Owner(runtimes)


def test_a_batch_has_a_bound_and_the_longest_wait_goes_first(owner: Owner) -> None:
    sessions = [owner.begin(session_id=str(number)) for number in range(5)]
    for now, session in enumerate(sessions):
        owner.now = float(now)
        owner.ask(session, ONE)
    assert owner.engine.ledger.lag(10.0) == 10.0
    batch = owner.take(most=2)
    assert [save.checkpoint.store_key for save in batch] == ["0", "1"]
    assert owner.engine.ledger.lag(10.0) == 10.0, "it has not arrived"
    for save in batch:
        save.durable.saved(save, owner.now)
    assert owner.engine.ledger.lag(10.0) == 8.0


def test_a_batch_has_a_bound_in_bytes_and_takes_one_at_least(owner: Owner) -> None:
    sessions = [owner.begin(session_id=str(number)) for number in range(5)]
    for session in sessions:
        owner.ask(session, ONE)
    (save,) = owner.take(size=1)
    assert save.checkpoint.store_key == "0"
    assert len(owner.take(size=2 * sessions[0].nbytes)) == 2
    assert len(owner.take()) == 2


def test_what_failed_waits_apart_and_is_among_the_others_again_when_it_is_saved(owner: Owner) -> None:
    a, b = owner.begin(), owner.begin(session_id="b")
    for session in (a, b):
        owner.ask(session, ONE)
    told = heard(b)
    for save, at_fault in zip(owner.take(), (True, False), strict=True):  # b is hurried, and so the first
        save.durable.failed(save, owner.now, at_fault=at_fault)
    assert told == [], "it is tried again at once"
    assert [save.checkpoint.store_key for save in owner.take()] == ["a"]
    assert owner.fail_alone() == "b"
    assert [type(error) for error in told] == [StoreUnavailableError]
    owner.now += 0.99
    assert owner.engine.ledger.next_alone(owner.now) is None, "it is not its time yet"
    owner.now += 0.01
    assert owner.take() == []
    change = owner.engine.ledger.next_alone(owner.now)
    assert change is not None
    change.durable.saved(change.durable.take(b""), owner.now)
    assert step_of(b) == 1
    owner.ask(b, ONE)
    assert [save.checkpoint.store_key for save in owner.take()] == ["b"]


def test_who_fails_alone_lets_all_others_be_tried_first(owner: Owner) -> None:
    """Those of other callers, and of his own what has only failed with others: there the smallest first."""
    noisy, quiet = (owner.engine.accounts.of(name, Quota()) for name in ("noisy", "quiet"))
    sessions = [owner.begin(session_id=str(number), caller=noisy) for number in range(4)]
    sessions += [owner.begin(session_id=str(number), caller=quiet) for number in range(4)]
    for number, session in enumerate(sessions):
        owner.ask(session, np.ones((300 if number == 0 else 1, 1)), number=1)
    for save in owner.take():
        save.durable.failed(save, owner.now, at_fault=True)
    order = [owner.fail_alone() for _ in sessions]
    assert order == ["noisy/1", "quiet/0", "noisy/2", "quiet/1", "noisy/3", "quiet/2", "noisy/0", "quiet/3"]
    assert owner.fail_alone() is None, "each was tried once"
    owner.now += 1.0
    fresh = owner.begin(session_id="fresh", caller=noisy)
    owner.ask(fresh, ONE)
    (save,) = owner.take()
    save.durable.failed(save, owner.now, at_fault=True)
    again = [owner.fail_alone() for _ in range(9)]
    assert again[:5] == ["noisy/fresh", "quiet/0", "noisy/1", "quiet/1", "noisy/2"]


@pytest.mark.parametrize("bound", [{"most": 2}, {"size": 1}], ids=["sessions", "bytes"])
def test_callers_for_whom_something_is_hurried_take_turns(owner: Owner, bound: dict[str, int]) -> None:
    noisy, quiet = (owner.engine.accounts.of(name, Quota()) for name in ("noisy", "quiet"))
    for number in range(20):
        owner.submit(owner.begin(Durability.SYNC, str(number), caller=noisy), ONE)
    owner.run()
    owner.submit(owner.begin(Durability.SYNC, caller=quiet), ONE)
    owner.run()
    first = [save.checkpoint.store_key for _ in range(2) for save in owner.take(hurried_only=True, **bound)]
    assert first[:2] == ["noisy/0", "quiet/a"]
    assert first[2:] in ([], ["noisy/1", "noisy/2"])


@pytest.mark.parametrize("room", [0, 1, 3], ids=["fills a batch", "leaves a place", "leaves some places"])
def test_what_is_large_and_hurried_takes_no_more_than_its_turns(owner: Owner, room: int) -> None:
    noisy, quiet = (owner.engine.accounts.of(name, Quota()) for name in ("noisy", "quiet"))
    large = [owner.begin(session_id=str(number), caller=noisy) for number in range(4)]
    small = [owner.begin(session_id=str(number), caller=quiet) for number in range(20)]
    for session in large:
        owner.ask(session, np.ones((300, 1)), number=1)  # its reply is kept
    for session in small:
        owner.ask(session, ONE)
    for session in large + small:
        heard(session)
    size = large[0].nbytes + room * small[0].nbytes
    batches = []
    while batch := owner.take(hurried_only=True, size=size):
        batches.append([save.checkpoint.store_key for save in batch])
    assert batches[0][0] == "noisy/0"
    assert len(batches[0]) == 1 + room
    assert batches[1] == [f"quiet/{number}" for number in range(room, 20)]
    assert batches[2:] == [["noisy/1"], ["noisy/2"], ["noisy/3"]]


def test_what_is_large_and_hurried_has_its_turn_beside_small_ones_that_never_end(owner: Owner) -> None:
    noisy, quiet = (owner.engine.accounts.of(name, Quota()) for name in ("noisy", "quiet"))
    sessions = [owner.begin(session_id=str(number), caller=noisy) for number in range(600)]
    large, behind = (owner.begin(session_id=session_id, caller=quiet) for session_id in ("large", "behind"))
    owner.ask(large, np.ones((300, 1)), number=1)  # its reply is kept
    owner.ask(behind, ONE)
    batches = []
    for _ in range(3):
        for session in sessions:
            owner.ask(session, ONE)
        for session in (*sessions, large, behind):
            heard(session)
        batch = owner.take(hurried_only=True, most=1000, size=large.nbytes)
        batches.append({save.checkpoint.store_key for save in batch if save.durable.session.owner is quiet})
        for save in batch:
            save.durable.saved(save, owner.now)
    assert batches == [set(), {"quiet/large"}, {"quiet/behind"}], "of one caller, who waits longer is first"


def test_what_fails_keeps_its_place(owner: Owner) -> None:
    sessions = [owner.begin(session_id=str(number)) for number in range(3)]
    for now, session in enumerate(sessions):
        owner.now = float(now)
        owner.ask(session, ONE)
    batch = owner.take(most=2)
    owner.now = 3.0
    for session in reversed(sessions):
        owner.ask(session, ONE)
    for save in batch:
        save.durable.failed(save, owner.now)
    assert owner.engine.ledger.lag(10.0) == 10.0
    assert [checkpoint.store_key for checkpoint in owner.save()] == ["0", "1", "2"]
    assert owner.engine.ledger.lag(10.0) == 0.0


def test_what_changed_under_way_is_as_old_as_that(owner: Owner) -> None:
    early, late = owner.begin(), owner.begin(session_id="b")
    owner.ask(early, ONE)
    (save,) = owner.take()
    for now, session in ((1.0, late), (2.0, early)):
        owner.now = now
        owner.ask(session, ONE)
    save.durable.saved(save, owner.now)
    assert owner.engine.ledger.lag(10.0) == 9.0
    assert [checkpoint.store_key for checkpoint in owner.save()] == ["b", "a"]


def test_what_is_closed_is_deleted_and_what_expires_is_left_to_the_store(owner: Owner) -> None:
    owner.engine.close(owner.begin(idle_timeout=5.0))
    assert [(name, deletion.epoch) for name, deletion in owner.engine.ledger.deletions.items()] == [("a", 7)]
    owner.begin(session_id="b", idle_timeout=5.0)
    owner.now = 6.0
    assert owner.engine.expire(owner.now) == 1
    assert list(owner.engine.ledger.deletions) == ["a"]
