"""Outputs that are asked for by name: answered in that order, and not computed where nobody asks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recurra_server.engine import snapshots
from recurra_server.engine.batch import Batch
from recurra_server.engine.errors import InvalidRequestError
from recurra_server.engine.limits import Limits
from recurra_server.engine.signature import SignatureError
from recurra_server.engine.steps import Step
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.probe import probe

from tests.support import models
from tests.support.harness import Array, Harness, load

OUTPUTS = ("double", "y", "entry")
limits = st.builds(Limits, max_batch_size=st.integers(1, 5), max_piece_steps=st.sampled_from([1, 2, 8]))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntime:
    return load(tmp_path_factory.mktemp("watched"), models.watched())


@pytest.fixture
def harness(runtime: OnnxRuntime) -> Harness:
    return Harness({"watched": runtime})


def column(*values: float) -> Array:
    return np.array(values, np.float32)[:, None]


def answers(step: Step) -> dict[str, list[float]]:
    """What a step was answered with, by name."""
    if step.error is not None:
        raise step.error
    found = zip(step.specs, step.outputs, strict=True)
    return {spec.name: np.frombuffer(data, spec.np_dtype).tolist() for spec, data in found}


def expected(total: Array, names: Sequence[str]) -> dict[str, list[float]]:
    every = {"double": 2 * total, "y": total, "entry": 100 + total}
    return {name: every[name].tolist() for name in names or ("y",)}


@settings(max_examples=100)
@given(data=st.data(), limits=limits, sessions=st.integers(1, 5))
def test_everybody_gets_what_he_asks_for_whoever_shares_the_batch(
    runtime: OnnxRuntime, data: st.DataObject, limits: Limits, sessions: int
) -> None:
    harness = Harness({"watched": runtime}, limits)
    opened = [harness.open("watched") for _ in range(sessions)]
    totals = np.zeros(sessions)
    sent = []
    for _ in range(data.draw(st.integers(1, 12))):
        row = data.draw(st.integers(0, sessions - 1))
        names = data.draw(st.lists(st.sampled_from(OUTPUTS), unique=True))
        chunk = np.zeros(data.draw(st.integers(1, 9)), np.float32)
        chunk[0] = data.draw(st.sampled_from([0, 1])) if totals[row] < 9 else 0
        sent.append((harness.submit(opened[row], chunk[:, None], outputs=names), totals[row] + chunk.cumsum(), names))
        totals[row] += chunk.sum()
        if data.draw(st.booleans()):
            harness.run_batch()
    harness.run()
    for step, total, names in sent:
        assert answers(step) == expected(total, names)
        assert list(answers(step)) == (names or ["y"]), "in the order asked for"


def test_what_nobody_asks_for_is_not_computed(harness: Harness) -> None:
    """The table ends at 9: whoever looks up 20 fails, and those who come with him do not."""
    first, second, asker = (harness.open("watched") for _ in range(3))
    plain = [harness.submit(session, column(20)) for session in (first, second)]
    asking = harness.submit(asker, column(20), outputs=["y", "entry"])
    harness.run()
    assert [answers(step) for step in plain] == [{"y": [20]}] * 2
    assert asking.error is not None
    assert asking.error.reason == "INPUT_REFUSED"
    assert asker.applied == 0
    unasked = harness.submit(asker, column(20))
    harness.run()
    assert answers(unasked) == {"y": [20]}


def test_default_outputs_can_be_asked_for_by_name_without_computing_the_others(harness: Harness) -> None:
    step = harness.submit(harness.open("watched"), column(20, 1), outputs=["y"])
    harness.run()
    assert answers(step) == {"y": [20, 21]}


def test_those_who_ask_share_a_call_and_those_who_do_not_share_another(harness: Harness) -> None:
    model = harness.engine.model("watched")
    for names in ([], ["y"], ["entry"], ["double", "y"]):
        harness.submit(harness.open("watched"), column(1), outputs=names)
    batches = []
    while (batch := model.next_batch(0.0)) is not None:
        assert isinstance(batch, Batch)
        batches.append((len(batch), [tensor.name for tensor in batch.workspace.outputs]))
        batch.run()
        model.commit(batch, 0.0, 0.0)
    assert batches == [(2, ["y"]), (2, ["double", "y", "entry"])]


@pytest.mark.parametrize("count", [1, 3])
def test_a_retry_that_asks_for_the_same_is_answered_again(harness: Harness, count: int) -> None:
    session = harness.open("watched")
    x = column(*range(count))
    first = harness.submit(session, x, number=1, outputs=["entry", "y"])
    harness.run()
    again = harness.submit(session, x, number=1, outputs=["entry", "y"])
    assert (again.replayed, answers(again)) == (True, answers(first))
    other = harness.submit(session, x, number=1)
    assert other.error is not None
    assert other.error.reason == "STEP_NOT_HELD"
    assert session.applied == count


def test_rows_of_a_block_are_answered_with_what_the_block_asks_for(harness: Harness) -> None:
    sessions = [harness.open("watched") for _ in range(3)]
    rows = np.array([[[1]], [[2]], [[3]]], np.float32)
    block = harness.submit_block(sessions, rows, numbered=True, outputs=["entry", "y"])
    harness.run()
    assert [np.frombuffer(data, np.float32).tolist() for data in block.outputs] == [[101, 102, 103], [1, 2, 3]]
    again = harness.submit(sessions[1], rows[1], number=1, outputs=["entry", "y"])
    assert answers(again) == {"entry": [102], "y": [2]}


def test_one_row_that_fails_by_what_is_asked_for_leaves_the_others(harness: Harness) -> None:
    sessions = [harness.open("watched") for _ in range(3)]
    rows = np.array([[[1]], [[20]], [[3]]], np.float32)
    block = harness.submit_block(sessions, rows, outputs=["entry"])
    harness.run()
    assert {row: error.reason for row, error in block.errors.items()} == {1: "INPUT_REFUSED"}
    assert np.frombuffer(block.outputs[0], np.float32).tolist() == [101, 0, 103]
    assert [session.applied for session in sessions] == [1, 0, 1]


def test_a_snapshot_keeps_what_the_last_reply_was_asked_for(harness: Harness) -> None:
    session = harness.open("watched")
    harness.submit(session, column(4), number=1, outputs=["entry", "double"])
    harness.run()
    copy = harness.restore(snapshots.take(session, 0.0))
    again = harness.submit(copy, column(4), number=1, outputs=["entry", "double"])
    assert (again.replayed, answers(again)) == (True, {"entry": [104], "double": [8]})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["z"], "the model has no output 'z'; it has double, y, entry"),
        (["y", "z" * 1000], "the model has no output"),
        (["y", "entry", "y"], "asked for twice"),
        (["y"] * 100_000, "asked for twice"),
    ],
)
def test_names_that_make_no_sense_are_refused_with_those_that_do(
    harness: Harness, names: list[str], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as refused:
        harness.engine.model("watched").choose(names)
    assert refused.value.metadata["field"] == "outputs"
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"outputs": [{"name": "y", "dtype": "float32", "dims": [1], "optional": True}]},
            "at least one output must not",
        ),
        (
            {"inputs": [{"name": "x", "dtype": "float32", "dims": [1], "optional": True}]},
            "only an output can be optional",
        ),
    ],
)
def test_a_signature_must_leave_something_to_answer(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        load(tmp_path, models.counter(**fields))


def test_weights_in_other_files_stay_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = models.with_double(models.lstm(4, 8, 2))
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=64)
    runtime = OnnxRuntime(path)
    probe(runtime, 2)
    harness = Harness({"lstm": runtime})
    x = np.ones((2, 4), np.float32)
    plain, doubled = (harness.submit(harness.open("lstm"), x, outputs=names) for names in ([], ["double", "y"]))
    harness.run()
    assert answers(plain)["y"] == answers(doubled)["y"]
    assert np.any(answers(plain)["y"])
