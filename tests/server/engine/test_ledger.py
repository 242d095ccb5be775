"""What goes to the store next, of all sessions."""

import numpy as np
import pytest
from recurra_server.engine import handover
from recurra_server.engine.accounts import Quota
from recurra_server.engine.durability import Durability
from recurra_server.engine.errors import StoreUnavailableError
from recurra_server.engine.ledger import BatchBound
from recurra_server.engine.sessions import Session
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
    for number in range(5):
        owner.ask(owner.begin(session_id=str(number)), ONE)
    (save,) = owner.take(size=1)
    assert save.checkpoint.store_key == "0"
    assert len(owner.take(size=2 * len(save.checkpoint.snapshot))) == 2
    assert len(owner.take()) == 2


def test_what_cannot_be_encoded_leaves_the_others_as_they_were_and_waits_apart(owner: Owner) -> None:
    sessions = [owner.begin(session_id=session_id) for session_id in ("a", "b", "c")]
    for session in sessions:
        owner.ask(session, ONE)
    told = heard(sessions[1])

    def encode(session: Session) -> bytes | None:
        return None if session.id == "b" else handover.encode(session)

    bound = BatchBound(100, 1 << 20)
    batch = owner.engine.ledger.next_batch(encode, bound, owner.now)
    assert [save.checkpoint.store_key for save in batch] == ["a", "c"]
    assert told == [], "it is tried again at once"
    assert owner.take() == []
    assert owner.engine.ledger.next_batch(encode, bound, owner.now, apart=True) == []
    assert [type(error) for error in told] == [StoreUnavailableError]
    owner.now += 0.99
    assert owner.engine.ledger.next_batch(encode, bound, owner.now, apart=True) == [], "it is not its time yet"
    owner.now += 0.01
    assert owner.take() == []
    (save,) = owner.engine.ledger.next_batch(handover.encode, bound, owner.now, apart=True)
    save.durable.saved(save, owner.now)
    assert step_of(sessions[1]) == 1
    owner.ask(sessions[1], ONE)
    assert [save.checkpoint.store_key for save in owner.take()] == ["b"], "among the others again"


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
