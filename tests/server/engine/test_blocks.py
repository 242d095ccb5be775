"""Steps that come as rows of one message: as if each had come by itself."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recurra_server.engine.errors import SessionNotFoundError
from recurra_server.engine.limits import Limits
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.server.engine.test_promises import TOLERANCE, sequence
from tests.support import models
from tests.support.harness import BlockAsker, Harness, load, outputs_of, rows_of, whole

ONE = np.ones((1, 1))
Runtimes = dict[str, OnnxRuntime]


@settings(max_examples=60)
@given(
    data=st.data(),
    model=st.sampled_from(["counter", "lstm", "gru", "rnn"]),
    sessions=st.integers(1, 5),
    parts=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=6),
)
def test_blocks_between_steps_give_what_the_whole_sequence_gives(
    runtimes: Runtimes, data: st.DataObject, model: str, sessions: int, parts: list[int]
) -> None:
    harness = Harness(runtimes)
    opened = [harness.open(model) for _ in range(sessions)]
    sequences = np.stack([sequence(model, seed, sum(parts)) for seed in range(sessions)])
    answers: list[list[np.ndarray]] = [[] for _ in opened]
    begin = 0
    for steps in parts:
        x = sequences[:, begin : begin + steps]
        begin += steps
        if data.draw(st.booleans()):
            block = harness.submit_block(opened, x, numbered=data.draw(st.booleans()))
            harness.run()
            assert not block.errors
            assert block.last_numbers == [begin] * sessions
            rows = rows_of(block)
        else:
            sent = [harness.submit(session, part) for session, part in zip(opened, x, strict=True)]
            harness.run()
            rows = np.stack([outputs_of(step) for step in sent])
        for answer, row in zip(answers, rows, strict=True):
            answer.append(row)
    for answer, x in zip(answers, sequences, strict=True):
        np.testing.assert_allclose(np.concatenate(answer), whole(runtimes[model], x), atol=TOLERANCE, rtol=0)


def test_only_what_is_next_of_sessions_at_rest_is_taken(runtimes: Runtimes) -> None:
    harness = Harness(runtimes, Limits(max_queue=4))
    one, other = harness.open("counter"), harness.open("counter")
    blocks = one.model.blocks
    assert blocks.takes([one, other], [1, 1])
    assert blocks.takes([one, other], [])
    assert not blocks.takes([one, other], [1, 2]), "a gap"
    assert not blocks.takes([one, one], []), "two steps of a session"
    harness.submit(other, ONE)
    assert not blocks.takes([one, other], []), "a step is in flight"
    harness.run()
    assert not blocks.takes([one, other], [1, 1]), "a retry"
    assert not blocks.takes([harness.open("counter") for _ in range(5)], []), "too many"
    harness.engine.close(one)
    assert not blocks.takes([one, other], []), "one has ended"


def test_a_row_that_the_model_refuses_fails_alone(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    opened = [harness.open("letters") for _ in range(3)]
    block = harness.submit_block(opened, np.array([[1], [99], [2]]), numbered=True)
    harness.run()
    assert {row: error.reason for row, error in block.errors.items()} == {1: "INPUT_REFUSED"}
    assert block.last_numbers == [1, 0, 1]
    expected = [whole(runtimes["letters"], np.array([token])) for token in (1, 2)]
    np.testing.assert_allclose(rows_of(block)[[0, 2]], expected, atol=TOLERANCE, rtol=0)
    assert not rows_of(block)[1].any()
    assert [session.applied for session in opened] == [1, 0, 1]
    assert harness.engine.model("letters").turns.depth == 0
    again = harness.submit(opened[2], np.array([2]), number=1)
    harness.run()
    assert again.replayed


def test_a_row_that_would_poison_its_memory_is_not_applied(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    opened = [harness.open("counter") for _ in range(2)]
    huge = np.array([[[3e38]], [[1.0]]])
    harness.submit_block(opened, huge)
    harness.run()
    block = harness.submit_block(opened, huge)
    harness.run()
    assert {row: error.reason for row, error in block.errors.items()} == {0: "STATE_NOT_FINITE"}
    assert rows_of(block).ravel().tolist() == [0.0, 2.0]
    assert [session.applied for session in opened] == [1, 2]


def test_time_steps_are_counted_of_the_rows_that_were_applied(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    opened = [harness.open("letters") for _ in range(3)]
    harness.submit_block(opened, np.array([[1, 1], [2, 2], [3, 3]]))
    harness.run()
    assert opened[0].model.applied_steps == 6
    harness.submit_block(opened, np.array([[1, 1], [99, 99], [3, 3]]))  # the second is refused, the others run alone
    harness.run()
    assert opened[0].model.applied_steps == 10
    counters = [harness.open("counter") for _ in range(2)]
    harness.submit_block(counters, np.array([[[np.nan]], [[1.0]]]))
    harness.run()
    assert counters[0].model.applied_steps == 1


def test_a_numbered_row_is_kept_for_a_retry(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    opened = [harness.open("counter") for _ in range(3)]
    harness.submit_block(opened, np.arange(6.0).reshape(3, 2, 1), numbered=True)
    harness.run()
    again = harness.submit(opened[1], np.zeros((2, 1)), number=1)
    assert again.replayed
    assert outputs_of(again).ravel().tolist() == [2.0, 5.0]


def test_what_nobody_waits_for_is_not_run(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    opened = [harness.open("counter") for _ in range(2)]
    late = harness.submit_block(opened, np.ones((2, 1, 1)), deadline=1.0)
    harness.now = 1.0
    harness.run()
    assert {error.reason for error in late.errors.values()} == {"DEADLINE"}
    assert late.last_numbers == [0, 0]
    gone = harness.submit_block(opened, np.ones((2, 1, 1)))
    waiting = harness.submit(opened[0], ONE)
    assert isinstance(gone.waiter, BlockAsker)
    gone.waiter.gone = True
    harness.run()
    assert outputs_of(waiting).ravel().tolist() == [1.0], "it had its turn, and the block was not applied"
    assert opened[0].model.turns.outcomes == {"deadline": 2, "cancelled": 2, "ok": 1}
    assert opened[0].model.turns.depth == 0


@pytest.mark.parametrize("running", [False, True])
def test_a_session_that_ends_gives_its_slot_back_when_its_block_is_over(runtimes: Runtimes, running: bool) -> None:
    harness = Harness(runtimes)
    opened = [harness.open("counter") for _ in range(2)]
    model = opened[0].model
    block = harness.submit_block(opened, np.full((2, 1, 1), 9.0))
    batch = model.next_batch(0.0) if running else None
    harness.engine.close(opened[0])
    following = harness.open("counter")
    assert following.slot not in [session.slot for session in opened]
    if batch is not None:
        batch.run()
        model.commit(batch, 0.0, 0.0)
    harness.run()
    assert isinstance(block.errors[0], SessionNotFoundError)
    assert rows_of(block).ravel().tolist() == [0.0, 9.0]
    assert harness.ask(following, ONE).tolist() == [[1.0]]
    assert model.slots.in_use == 2


def test_a_model_that_answers_another_shape_fails_the_rows_at_fault(tmp_path: Path) -> None:
    harness = Harness({"sieve": load(tmp_path, models.sieve())})
    opened = [harness.open("sieve") for _ in range(3)]
    ended = harness.submit_block(opened, np.array([[[0.0]], [[1.0]], [[2.0]]]))
    batch = opened[0].model.next_batch(0.0)
    assert batch is not None
    harness.engine.close(opened[1])
    with pytest.raises(Exception) as refused:  # noqa: PT011 - ONNX Runtime's own
        batch.run()
    opened[0].model.fail(batch, refused.value, 0.0)
    harness.run()
    assert {row: error.reason for row, error in ended.errors.items()} == {0: "INPUT_REFUSED", 1: "SESSION_NOT_FOUND"}
    assert rows_of(ended).ravel().tolist() == [0.0, 0.0, 2.0]
    assert opened[0].model.turns.depth == 0


def test_what_waits_behind_a_row_that_has_failed_gets_its_turn(tmp_path: Path) -> None:
    """Also where the model refuses the block, so that its other rows are run one by one."""
    harness = Harness({"sieve": load(tmp_path, models.sieve())})
    opened = [harness.open("sieve") for _ in range(2)]
    block = harness.submit_block(opened, np.array([[[0.0]], [[np.nan]]]))
    waiting = [harness.submit(session, ONE) for session in opened]
    harness.run()
    assert [block.errors[row].reason for row in (0, 1)] == ["INPUT_REFUSED", "INPUT_NOT_FINITE"]
    assert [outputs_of(step).tolist() for step in waiting] == [[[1.0]], [[1.0]]]


def test_many_are_found_at_once_if_all_are_open_and_of_one_model(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    for name in ("a", "b"):
        harness.open("counter", session_id=name, idle_timeout=5.0)
    harness.open("lstm", session_id="other")
    engine = harness.engine
    found = engine.find(["b", "a"], 4.9)
    assert found is not None
    assert [session.id for session in found] == ["b", "a"]
    assert engine.find(["a", "nobody"], 0.0) is None
    assert engine.find(["nobody", "a"], 0.0) is None
    assert engine.find(["a", "other"], 0.0) is None
    assert engine.find(["a", "b"], 5.0) is None, "they have expired"


def test_blocks_and_steps_take_turns(runtimes: Runtimes) -> None:
    harness = Harness(runtimes, Limits(max_batch_size=2))
    opened = [harness.open("counter") for _ in range(8)]
    blocks = [harness.submit_block(opened[2 * i : 2 * i + 2], np.ones((2, 1, 1))) for i in range(2)]
    steps = [harness.submit(session, ONE) for session in opened[4:]]
    done = []
    while harness.run_batch():
        answered = sum(len(block) for block in blocks if rows_answered(block))
        done.append((answered, len([step for step in steps if step in harness.answered])))
    assert done == [(2, 0), (2, 2), (4, 2), (4, 4)]


def rows_answered(block: object) -> bool:
    waiter = block.waiter  # type: ignore[attr-defined]
    return bool(waiter.answers)


def test_rows_that_are_run_again_one_by_one_keep_their_deadline(tmp_path: Path) -> None:
    harness = Harness({"sieve": load(tmp_path, models.sieve())})
    opened = [harness.open("sieve") for _ in range(2)]
    block = harness.submit_block(opened, np.array([[[0.0]], [[1.0]]]), deadline=5.0)
    harness.run_batch()  # the model refuses it
    harness.now = 6.0
    harness.run()
    assert {row: error.reason for row, error in block.errors.items()} == {0: "DEADLINE", 1: "DEADLINE"}
    assert [session.applied for session in opened] == [0, 0]


def test_a_block_that_cannot_be_committed_gives_no_slot_back_twice(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(runtimes)
    opened = [harness.open("counter") for _ in range(2)]
    model = opened[0].model
    harness.submit_block(opened, np.ones((2, 1, 1)))
    batch = model.next_batch(0.0)
    assert batch is not None
    harness.engine.close(opened[0])
    batch.run()
    with monkeypatch.context() as patch:
        patch.setattr(model.slots, "scatter", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            model.commit(batch, 0.0, 0.0)
    model.abandon(batch, 0.0)
    one, other = harness.open("counter"), harness.open("counter")
    assert len({opened[1].slot, one.slot, other.slot}) == 3
