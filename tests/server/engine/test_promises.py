"""The engine's promises, for random interleavings of sessions, cuts and batches."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import EngineError, InputRefusedError
from recurra_server.engine.limits import Limits
from recurra_server.engine.sessions import Session
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support import models
from tests.support.harness import Array, Harness, load, outputs_of, whole

# One tolerance for all: ONNX Runtime may sum in another order for another batch size.
TOLERANCE = 1e-5

recurrent = st.sampled_from(["counter", "lstm", "gru", "rnn"])
limits = st.builds(Limits, max_batch_size=st.integers(1, 5), max_piece_steps=st.sampled_from([1, 2, 8, 64]))


def sequence(model: str, seed: int, steps: int) -> Array:
    """A sequence `[T, *dims]` for a model."""
    rng = np.random.default_rng(seed)
    if model == "counter":
        return rng.integers(-9, 10, (steps, 1)).astype(np.float32)
    return rng.normal(size=(steps, 4)).astype(np.float32)


def chunks_of(x: Array, data: st.DataObject) -> list[Array]:
    """Cut a sequence at random places."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(x) - 1), max_size=6))) if len(x) > 1 else []
    return np.split(x, cuts)


@settings(max_examples=150)
@given(data=st.data(), model=recurrent, limits=limits, lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_alone_together_in_chunks_and_whole_are_the_same(
    runtimes: dict[str, OnnxRuntime], data: st.DataObject, model: str, limits: Limits, lengths: list[int]
) -> None:
    harness = Harness(runtimes, limits)
    sequences = [sequence(model, seed, steps) for seed, steps in enumerate(lengths)]
    sessions = [harness.open(model) for _ in sequences]
    to_send = [chunks_of(x, data) for x in sequences]
    sent: list[list[Array]] = [[] for _ in sequences]
    steps = [[] for _ in sequences]  # type: ignore[var-annotated]
    while any(to_send):
        if data.draw(st.booleans()):
            harness.run_batch()
        which = data.draw(st.sampled_from([row for row, chunks in enumerate(to_send) if chunks]))
        chunk = to_send[which].pop(0)
        sent[which].append(chunk)
        steps[which].append(harness.submit(sessions[which], chunk))
    harness.run()
    for x, answers in zip(sequences, steps, strict=True):
        together = np.concatenate([outputs_of(step) for step in answers])
        np.testing.assert_allclose(together, whole(runtimes[model], x), atol=TOLERANCE, rtol=0)


@settings(max_examples=100)
@given(data=st.data(), model=st.sampled_from(["counter", "lstm"]), limits=limits, sessions=st.integers(2, 5))
def test_a_failing_row_changes_nothing_and_hurts_no_batch_mate(
    runtimes: dict[str, OnnxRuntime], data: st.DataObject, model: str, limits: Limits, sessions: int
) -> None:
    harness = Harness(runtimes, limits)
    opened = [harness.open(model) for _ in range(sessions)]
    good: list[list[Array]] = [[] for _ in opened]
    answers = []
    for turn in range(data.draw(st.integers(1, 8))):
        for row, session in enumerate(opened):
            chunk = sequence(model, 100 * turn + row, data.draw(st.integers(1, 10)))
            if broken := data.draw(st.booleans()):
                chunk[data.draw(st.integers(0, len(chunk) - 1))] = data.draw(st.sampled_from([np.nan, np.inf]))
            else:
                good[row].append(chunk)
            answers.append((row, broken, harness.submit(session, chunk)))
        harness.run()
    outputs: list[list[Array]] = [[] for _ in opened]
    for row, broken, step in answers:
        if broken:
            assert step.error is not None
            assert step.error.reason == "INPUT_NOT_FINITE"
        else:
            outputs[row].append(outputs_of(step))
    for row, session in enumerate(opened):
        assert session.applied == sum(map(len, good[row]))
        if good[row]:
            expected = whole(runtimes[model], np.concatenate(good[row]))
            np.testing.assert_allclose(np.concatenate(outputs[row]), expected, atol=TOLERANCE, rtol=0)


@settings(max_examples=60)
@given(data=st.data(), sessions=st.integers(2, 9), length=st.integers(1, 20))
def test_a_row_that_the_model_refuses_hurts_no_batch_mate(
    runtimes: dict[str, OnnxRuntime], data: st.DataObject, sessions: int, length: int
) -> None:
    """ONNX Runtime fails the whole call for one bad class index; only that row may feel it, whoever sent the others."""
    harness = Harness(runtimes, Limits(max_piece_steps=4))
    callers = st.sampled_from([Account(name) for name in ("ann", "bob", "eve")])
    before = [harness.open("letters") for _ in range(10)]  # leave their states behind in the slots
    for session in before:
        harness.ask(session, np.arange(5))
        harness.engine.close(session)
    opened = [harness.open("letters", caller=data.draw(callers)) for _ in range(sessions)]
    tokens = [np.array(data.draw(st.lists(st.integers(0, 5), min_size=length, max_size=length))) for _ in opened]
    steps = []
    for session, row in zip(opened, tokens, strict=True):
        steps.append(harness.submit(session, row))
        if data.draw(st.booleans()):
            harness.run_batch()
    harness.run()
    assert sorted(map(id, harness.answered[10:])) == sorted(map(id, steps)), "each is answered once"
    for row, step, session in zip(tokens, steps, opened, strict=True):
        if 5 in row:  # the model knows 0 to 4
            assert step.error is not None
            assert step.error.reason == "INPUT_REFUSED"
            assert session.applied == 0
            known = np.minimum(row, 4)
            answer = harness.ask(session, known)  # its states were left alone
        else:
            known = row
            answer = outputs_of(step)
        np.testing.assert_allclose(answer, whole(runtimes["letters"], known), atol=TOLERANCE, rtol=0)
    assert opened[0].model.slots.in_use == sessions, "a slot was not given back"


def test_a_step_that_would_poison_the_memory_is_not_applied(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness(runtimes)
    mate, session = harness.open("counter"), harness.open("counter")
    largest = np.full((1, 1), np.finfo(np.float32).max)
    harness.ask(session, largest)
    overflow, fine = harness.submit(session, largest), harness.submit(mate, np.ones((1, 1)))
    harness.run()
    assert overflow.error is not None
    assert overflow.error.reason == "STATE_NOT_FINITE"
    assert session.applied == 1
    assert outputs_of(fine).tolist() == [[1.0]]
    assert harness.ask(session, -largest).tolist() == [[0.0]]


def test_feed_forward_models_need_no_states(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness(runtimes)
    x = sequence("feed_forward", 0, 9)
    first, second = harness.open("feed_forward"), harness.open("feed_forward")
    steps = [harness.submit(first, x[:4]), harness.submit(second, x), harness.submit(first, x[4:])]
    harness.run()
    alone = whole(runtimes["feed_forward"], x)
    np.testing.assert_allclose(outputs_of(steps[1]), alone, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(
        np.concatenate([outputs_of(steps[0]), outputs_of(steps[2])]), alone, atol=TOLERANCE, rtol=0
    )


def test_one_step_of_a_session_is_in_flight_at_a_time(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    steps = [harness.submit(session, np.ones((1, 1))) for _ in range(3)]
    sizes = [harness.run_batch() for _ in range(4)]
    assert sizes == [1, 1, 1, 0]
    assert [step.last_number for step in steps] == [1, 2, 3]


def test_a_long_chunk_lets_single_steps_through(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness(runtimes, Limits(max_piece_steps=8))
    slow, quick = harness.open("counter"), harness.open("counter")
    long = harness.submit(slow, np.ones((800, 1)))
    harness.run_batch()
    short = harness.submit(quick, np.ones((1, 1)))
    batches = 0
    while short not in harness.answered:
        batches += 1
        harness.run_batch()
    assert batches <= 2
    assert long not in harness.answered
    harness.run()
    assert outputs_of(long)[-1] == 800


def test_single_steps_do_not_starve_a_chunk(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness(runtimes, Limits(max_piece_steps=8))
    slow, quick = harness.open("counter"), harness.open("counter")
    long = harness.submit(slow, np.ones((80, 1)))
    for _ in range(25):
        harness.submit(quick, np.ones((1, 1)))
        harness.run_batch()
    assert long in harness.answered


def test_chunks_and_single_steps_of_many_callers_share_calls_by_turns(runtimes: dict[str, OnnxRuntime]) -> None:
    """Whoever's turn it is: else each kind would wait until all callers have had theirs with the other."""
    harness = Harness(runtimes, Limits(max_piece_steps=8))
    callers = [Account(str(number)) for number in range(10)]
    slow, quick = ([harness.open("counter", caller=caller) for caller in callers] for _ in range(2))
    long = [harness.submit(session, np.ones((80, 1))) for session in slow]
    for _ in range(10):
        short = [harness.submit(session, np.ones((1, 1))) for session in quick]
        assert [harness.run_batch(), harness.run_batch()] == [10, 10]
        assert all(step in harness.answered for step in short)
    assert [outputs_of(step)[-1].item() for step in long] == [80.0] * 10


@pytest.mark.parametrize("chunks", [10, 1])
def test_what_shares_a_call_is_one_turn_of_all(runtimes: dict[str, OnnxRuntime], chunks: int) -> None:
    """A step waits for one call of all chunks, and a chunk for one of all steps, not for each caller's."""
    harness = Harness(runtimes, Limits(max_piece_steps=8))
    sessions = [harness.open("counter", caller=Account(str(number))) for number in range(11)]
    slow, quick = sessions[:chunks], sessions[chunks:]
    long = [harness.submit(session, np.ones((80, 1))) for session in slow]
    for _ in range(10):
        short = [harness.submit(session, np.ones((1, 1))) for session in quick]
        assert [harness.run_batch(), harness.run_batch()] == [len(slow), len(quick)]
        assert all(step in harness.answered for step in short)
    assert all(step in harness.answered for step in long)


def test_who_is_taken_along_with_others_all_the_time_has_a_turn_for_what_is_left(
    runtimes: dict[str, OnnxRuntime],
) -> None:
    harness = Harness(runtimes, Limits(max_piece_steps=8))
    callers = [Account(str(number)) for number in range(4)]
    quick = [harness.open("counter", caller=caller) for caller in callers]
    long = harness.submit(harness.open("counter", caller=callers[-1]), np.ones((80, 1)))
    for _ in range(20):
        short = [harness.submit(session, np.ones((1, 1))) for session in quick]
        while not all(step in harness.answered for step in short):
            harness.run_batch()
    assert long in harness.answered


def test_a_row_for_which_the_model_answers_another_shape_fails_alone(tmp_path: Path) -> None:
    harness = Harness({"sieve": load(tmp_path, models.sieve())})
    good, bad = harness.open("sieve"), harness.open("sieve")
    steps = [harness.submit(bad, np.zeros((1, 1))), harness.submit(good, np.ones((1, 1)))]
    harness.run()
    assert isinstance(steps[0].error, InputRefusedError)
    assert outputs_of(steps[1]).tolist() == [[1.0]]
    assert harness.ask(bad, np.full((2, 1), 7.0)).tolist() == [[7.0], [7.0]]


def test_one_batch_of_a_model_is_in_flight_at_a_time(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness(runtimes)
    first, second = harness.open("counter"), harness.open("counter")
    harness.submit(first, np.ones((1, 1)))
    batch = first.model.next_batch(0.0)
    assert batch is not None
    harness.submit(second, np.ones((1, 1)))
    assert first.model.next_batch(0.0) is None
    batch.run()
    first.model.commit(batch, 0.0, 0.0)
    assert harness.run_batch() == 1


def test_a_chunk_that_fails_late_leaves_no_trace(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness(runtimes, Limits(max_piece_steps=4))
    session = harness.open("counter")
    harness.ask(session, np.full((3, 1), 5.0))
    chunk = np.ones((20, 1))
    chunk[18] = np.nan
    with pytest.raises(EngineError, match="NaN"):
        harness.ask(session, chunk)
    assert session.applied == 3
    assert harness.ask(session, np.ones((1, 1))).tolist() == [[16.0]]


def test_sessions_do_not_share_what_a_slot_held(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness(runtimes)
    first = harness.open("counter")
    harness.ask(first, np.full((1, 1), 7.0))
    slot = first.slot
    harness.engine.close(first)
    second: Session = harness.open("counter")
    assert second.slot == slot
    assert harness.ask(second, np.ones((1, 1))).tolist() == [[1.0]]


def test_nothing_is_moved_though_all_sessions_are_within_a_chunk(runtimes: dict[str, OnnxRuntime]) -> None:
    """A chunk of several pieces works on a slot of its own: there is one for each that may wait."""
    limits = Limits(max_sessions=8, max_batch_size=2, max_piece_steps=2, max_queue=8)
    harness = Harness({"counter": runtimes["counter"]}, limits)
    slots = harness.models[0].slots
    room = slots.capacity
    steps = [harness.submit(harness.open("counter"), np.ones((6, 1))) for _ in range(limits.max_sessions)]
    for _ in range(limits.max_sessions // limits.max_batch_size):
        harness.run_batch()
    assert all(0 < step.position < step.count for step in steps)
    assert slots.in_use == 2 * limits.max_sessions
    assert slots.capacity == room
    harness.run()
    assert [outputs_of(step)[-1].tolist() for step in steps] == [[6.0]] * limits.max_sessions
