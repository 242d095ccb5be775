"""Opening, numbering, cancelling, expiring and ending sessions. No test waits: time is an argument."""

import numpy as np
import pytest
from recurra_server.engine import errors
from recurra_server.engine.limits import Limits
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support.harness import Array, Harness, outputs_of, walk_away

Runtimes = dict[str, OnnxRuntime]
ONE = np.ones((1, 1))


def test_a_retried_step_is_answered_again_and_not_applied_twice(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    harness.ask(session, ONE, number=1)
    again = harness.submit(session, ONE, number=1)
    assert again.replayed
    assert outputs_of(again).tolist() == [[1.0]]
    assert again.last_number == 1
    assert harness.ask(session, ONE, number=2).tolist() == [[2.0]]


def test_a_retry_of_a_step_still_in_flight_waits_for_its_answer(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    first, retry = harness.submit(session, ONE, number=1), harness.submit(session, ONE, number=1)
    harness.run()
    assert (first.replayed, retry.replayed) == (False, True)
    assert session.applied == 1


def test_a_retried_chunk_is_answered_whole(runtimes: Runtimes) -> None:
    harness = Harness(runtimes, Limits(max_piece_steps=2))
    session = harness.open("counter")
    harness.ask(session, ONE, number=1)
    harness.ask(session, np.ones((5, 1)), number=2)
    assert harness.ask(session, np.ones((5, 1)), number=2).ravel().tolist() == [2, 3, 4, 5, 6]
    assert session.applied == 6


def test_a_gap_is_refused_with_the_step_expected(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    with pytest.raises(errors.StepGapError) as caught:
        harness.ask(session, ONE, number=3)
    assert caught.value.metadata["expected_step"] == "1"
    assert harness.ask(session, ONE, number=1).tolist() == [[1.0]]


def test_only_the_last_reply_is_kept(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    for number in (1, 2):
        harness.ask(session, ONE, number=number)
    with pytest.raises(errors.StepNotHeldError) as caught:
        harness.ask(session, ONE, number=1)
    assert caught.value.metadata["expected_step"] == "3"


def test_a_number_sent_again_with_another_chunk_length_is_no_retry(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    harness.ask(session, np.ones((3, 1)), number=1)
    with pytest.raises(errors.StepNotHeldError):
        harness.ask(session, ONE, number=1)


def test_after_a_failed_step_the_ones_sent_behind_it_are_a_gap(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    steps = [harness.submit(session, x, number=n) for n, x in ((1, ONE), (2, ONE * np.nan), (3, ONE))]
    harness.run()
    reasons = [step.error.reason if step.error else "ok" for step in steps]
    assert reasons == ["ok", "INPUT_NOT_FINITE", "STEP_GAP"]


def test_a_cancelled_step_is_not_run(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    first, second = harness.submit(session, ONE), harness.submit(session, ONE)
    walk_away(first)
    harness.run()
    assert harness.answered == [second]
    assert outputs_of(second).tolist() == [[1.0]]
    assert session.model.turns.depth == 0


def test_a_cancelled_chunk_stops_between_its_pieces_and_leaves_no_trace(runtimes: Runtimes) -> None:
    harness = Harness(runtimes, Limits(max_piece_steps=1))
    session = harness.open("counter")
    chunk = harness.submit(session, np.ones((10, 1)))
    harness.run_batch()
    walk_away(chunk)
    harness.run()
    assert session.applied == 0
    assert harness.ask(session, ONE).tolist() == [[1.0]]


def test_a_step_whose_deadline_has_passed_is_not_run(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    late, open_ended = harness.submit(session, ONE, deadline=5.0), harness.submit(session, ONE)
    harness.now = 6.0
    harness.run()
    assert isinstance(late.error, errors.DeadlineError)
    assert outputs_of(open_ended).tolist() == [[1.0]]


def test_a_session_expires_when_it_goes_unused(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter", session_id="a", idle_timeout=10.0)
    harness.now = 9.0
    harness.ask(session, ONE)
    harness.now = 18.0
    harness.engine.expire(harness.now)
    assert harness.engine.session("a", harness.now) is session
    harness.now = 19.0
    with pytest.raises(errors.SessionExpiredError) as caught:
        harness.engine.session("a", harness.now)
    harness.now = 21.5
    with pytest.raises(errors.SessionExpiredError) as caught:
        harness.engine.session("a", harness.now)
    assert caught.value.metadata == {
        "session_id": "a",
        "idle_timeout_seconds": "10",
        "expired_seconds_ago": "2.500",
    }


@pytest.mark.parametrize(
    ("x", "number"),
    [(ONE, 1), (ONE * np.nan, 2), (ONE, 9), (np.ones((100, 1)), 2)],
    ids=["retry", "nan", "gap", "chunk"],
)
def test_whatever_is_sent_to_a_session_counts_as_use(runtimes: Runtimes, x: Array, number: int) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter", session_id="a", idle_timeout=10.0)
    harness.ask(session, ONE, number=1)
    harness.now = 9.0
    harness.submit(session, x, number=number)
    harness.run()
    assert harness.engine.session("a", 18.0) is session
    with pytest.raises(errors.SessionExpiredError):
        harness.engine.session("a", 19.0)


def test_a_step_that_was_cancelled_counts_as_use(runtimes: Runtimes) -> None:
    """Its caller will try again."""
    harness = Harness(runtimes)
    session = harness.open("counter", session_id="a", idle_timeout=10.0)
    harness.now = 9.0
    walk_away(harness.submit(session, ONE))
    harness.run()
    assert harness.engine.session("a", 18.0) is session


def test_the_sweep_ends_only_what_is_due_and_frees_its_memory(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    short = [harness.open("counter", idle_timeout=1.0) for _ in range(100)]
    long = harness.open("counter", idle_timeout=100.0)
    harness.now = 50.0
    assert harness.engine.expire(harness.now) == 100
    assert all(session.closed for session in short)
    assert not long.closed
    assert long.model.sessions == 1
    for _ in range(100):
        harness.open("counter")
    assert long.model.slots.nbytes == 101 * 4, "the slots were not used again"


def test_a_session_does_not_expire_while_a_step_waits(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter", session_id="a", idle_timeout=1.0)
    step = harness.submit(session, ONE)
    harness.now = 5.0
    assert harness.engine.expire(harness.now) == 0
    assert harness.engine.session("a", harness.now) is session
    harness.run()
    assert outputs_of(step).tolist() == [[1.0]]
    assert harness.engine.session("a", 5.9) is session


def test_tombstones_are_forgotten_in_time_and_bounded(runtimes: Runtimes) -> None:
    harness = Harness(runtimes, Limits(tombstone_seconds=60.0, max_tombstones=2))
    for name in "abc":
        harness.open("counter", session_id=name, idle_timeout=1.0)
    harness.engine.expire(2.0)
    with pytest.raises(errors.SessionNotFoundError):
        harness.engine.session("a", 2.0)
    with pytest.raises(errors.SessionExpiredError):
        harness.engine.session("c", 2.0)
    with pytest.raises(errors.SessionNotFoundError):
        harness.engine.session("c", 100.0)
    assert not harness.open("counter", session_id="b").closed, "an expired id can be opened anew"


def test_a_closed_session_fails_what_waits(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter", session_id="a")
    steps = [harness.submit(session, ONE) for _ in range(2)]
    harness.engine.close(session)
    assert [type(step.error) for step in steps] == [errors.SessionNotFoundError] * 2
    assert harness.run_batch() == 0
    assert session.model.turns.depth == 0
    with pytest.raises(errors.SessionNotFoundError):
        harness.submit(session, ONE)
    with pytest.raises(errors.SessionNotFoundError):
        harness.engine.session("a", 0.0)


def test_a_late_result_does_not_reach_the_slots_next_owner(runtimes: Runtimes) -> None:
    """The batch is still being run when its session is closed and another one is opened."""
    harness = Harness(runtimes)
    gone = harness.open("counter")
    step = harness.submit(gone, np.full((1, 1), 99.0))
    model = gone.model
    batch = model.next_batch(0.0)
    assert batch is not None
    harness.engine.close(gone)
    following = harness.open("counter")
    batch.run()
    model.commit(batch, 0.0, 0.0)
    assert isinstance(step.error, errors.SessionNotFoundError)
    assert len(harness.answered) == 1
    assert harness.ask(following, ONE).tolist() == [[1.0]]
    assert harness.ask(harness.open("counter"), ONE).tolist() == [[1.0]]


def test_reset_begins_anew(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    harness.ask(session, ONE, number=1)
    harness.engine.reset(session, 0.0)
    assert session.applied == 0
    assert harness.ask(session, ONE, number=1).tolist() == [[1.0]]


def test_a_fork_goes_its_own_way(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    harness.ask(session, np.ones((3, 1)))
    fork = harness.fork(session, session_id="fork")
    assert harness.ask(fork, np.full((1, 1), 10.0)).tolist() == [[13.0]]
    assert harness.ask(session, ONE).tolist() == [[4.0]]
    assert (fork.applied, session.applied) == (4, 4)


def test_an_action_waits_until_the_session_is_at_rest(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    seen: list[int] = []
    harness.submit(session, ONE)
    session.model.turns.at_rest(session, lambda: seen.append(session.applied))
    harness.submit(session, ONE)
    assert seen == []
    harness.run()
    assert seen == [1]
    assert session.applied == 2


def test_initial_states_are_used(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter", initial_states={"s_in": np.array([40.0], np.float32)})
    assert harness.ask(session, np.full((1, 1), 2.0)).tolist() == [[42.0]]


def test_bounds(runtimes: Runtimes) -> None:
    limits = Limits(max_sessions=2, max_queue_per_session=2, max_queue=4, max_idle_timeout=100.0)
    harness = Harness(runtimes, limits)
    first, second = harness.open("counter"), harness.open("counter")
    with pytest.raises(errors.CapacityError) as caught:
        harness.open("counter")
    assert caught.value.metadata["bound"] == "max_sessions"
    assert caught.value.retry_after is not None
    for _ in range(3):  # one in flight, two waiting
        harness.submit(first, ONE)
    with pytest.raises(errors.CapacityError, match="wait already") as caught:
        harness.submit(first, ONE)
    assert caught.value.metadata["bound"] == "max_queue_per_session"
    harness.submit(second, ONE)
    with pytest.raises(errors.CapacityError) as caught:
        harness.submit(second, ONE)
    assert caught.value.metadata["bound"] == "max_queue"
    harness.run()
    assert harness.ask(first, ONE).tolist() == [[4.0]]
    harness.engine.close(second)
    assert harness.open("counter")
    with pytest.raises(errors.InvalidRequestError):
        Harness(runtimes, limits).open("counter", idle_timeout=101.0)


def test_sessions_that_one_call_borrows_count_too(runtimes: Runtimes) -> None:
    harness = Harness(runtimes, Limits(max_sessions=2))
    model = harness.engine.model("counter")
    harness.open("counter")
    with harness.engine.borrow(model, 0.0), pytest.raises(errors.CapacityError):
        harness.open("counter")
    harness.open("counter")
    with pytest.raises(errors.CapacityError), harness.engine.borrow(model, 0.0):
        pass
    assert model.slots.in_use == 2


def test_what_waits_for_rest_is_bounded_too(runtimes: Runtimes) -> None:
    harness = Harness(runtimes, Limits(max_queue_per_session=2))
    session = harness.open("counter")
    harness.submit(session, ONE)
    turns = session.model.turns
    for _ in range(2):
        turns.at_rest(session, lambda: None)
    with pytest.raises(errors.CapacityError) as caught:
        turns.at_rest(session, lambda: None)
    assert caught.value.metadata["limit"] == "2"


def test_an_id_whose_session_is_due_to_expire_can_be_opened_anew(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    old = harness.open("counter", session_id="a", idle_timeout=1.0)
    harness.ask(old, ONE)
    harness.now = 1.5
    new = harness.open("counter", session_id="a")
    assert old.closed
    assert harness.ask(new, ONE).tolist() == [[1.0]]


def test_long_texts_of_callers_are_cut_in_errors(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    for fail in (
        lambda: harness.engine.session("x" * 10**6, 0.0),
        lambda: harness.engine.model("x" * 10**6),
        lambda: harness.engine.model("counter", "x" * 10**6),
        lambda: harness.open("counter", session_id="x" * 10**6),
    ):
        with pytest.raises(errors.EngineError) as caught:
            fail()
        assert len(caught.value.message) + sum(map(len, caught.value.metadata.values())) < 500


def test_ids(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    harness.open("counter", session_id="call-7:left.1")
    with pytest.raises(errors.SessionExistsError):
        harness.open("counter", session_id="call-7:left.1")
    for wrong in ("x" * 129, "a b", "ü", "a/b", "a\n"):
        with pytest.raises(errors.SessionIdError):
            harness.open("counter", session_id=wrong)
    made = {harness.open("counter").id for _ in range(100)}
    assert len(made) == 100
    assert all(name and len(name) == 22 for name in made), "128 random bits"


def test_draining_opens_nothing_new_and_finishes_the_rest(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    harness.engine.draining = True
    with pytest.raises(errors.DrainingError):
        harness.open("counter")
    assert harness.ask(session, ONE).tolist() == [[1.0]]


def test_unknown_models_are_told_what_there_is(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    with pytest.raises(errors.ModelNotFoundError, match="counter"):
        harness.engine.model("nothing")
    with pytest.raises(errors.ModelNotFoundError, match="version '7'; served are: 1"):
        harness.engine.model("counter", "7")
