"""The engine's parts: slots, scheduling, signatures, sampling."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from recurra_server.engine.errors import InvalidRequestError
from recurra_server.engine.feedback import Sampling
from recurra_server.engine.shelf import version_key
from recurra_server.engine.signature import (
    ConstantSpec,
    Feedback,
    Kept,
    Signature,
    SignatureError,
    StateSpec,
    TensorSpec,
)
from recurra_server.engine.slots import SlotTable, rows_of
from recurra_server.engine.workspace import Workspaces

Array = NDArray[Any]

dims = st.lists(st.integers(1, 3), max_size=3).map(tuple)


class Mirror:
    """A runtime that answers what it is given.

    Attributes:
        last: The last input of each call that was bound.
        seen: What it held in each call that was run.
    """

    def __init__(self) -> None:
        self.last: list[Array] = []
        self.seen: list[Array] = []

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array], *, in_full: bool = False) -> Callable[[], None]:
        """Copy."""
        self.last.append(inputs[-1])

        def run() -> None:
            self.seen.append(inputs[-1].copy())
            for source, target in zip(inputs, outputs, strict=False):  # constants are not answered
                target[...] = source

        return run


@given(dims=dims, batch=st.integers(1, 4), steps=st.integers(1, 4), data=st.data())
def test_what_is_stacked_and_unstacked_comes_back(
    dims: tuple[int, ...], batch: int, steps: int, data: st.DataObject
) -> None:
    """For every place of the axes, in every order of calls: alike inputs, states and outputs."""
    batch_axis, time_axis = data.draw(st.permutations(range(len(dims) + 2)))[:2]
    has_time = data.draw(st.booleans())
    x = TensorSpec("x", "float32", dims, batch_axis if has_time else min(batch_axis, len(dims)), time_axis)
    if not has_time:
        x, steps = replace(x, time_axis=None), 1
    state_axis = data.draw(st.integers(0, len(dims)))
    state = StateSpec("h", "h2", "float32", dims, batch_axis=state_axis)
    signature = Signature((x,), (replace(x, name="y"),), (state,))
    workspaces = Workspaces(signature, Mirror())
    table: SlotTable[None] = SlotTable(signature.kept, 4)
    slots = rows_of([table.allocate() for _ in range(batch)])
    rng = np.random.default_rng(0)
    for size in (batch, batch + 1, batch):  # the one between moves the memory of the others
        workspaces.get(size, steps)
    workspace = workspaces.get(batch, steps)
    rows = rng.normal(size=(batch, steps, *dims)).astype(np.float32)
    states = rng.normal(size=(batch, *dims)).astype(np.float32)
    table.scatter(slots, [states])
    workspace.inputs[0].put(rows.tobytes())
    table.gather(slots, [tensor.rows for tensor in workspace.kept])
    np.testing.assert_array_equal(np.moveaxis(workspace.kept[0].graph, state_axis, 0), states)
    expected = np.moveaxis(rows, (0, 1), (batch_axis, time_axis)) if has_time else None
    if expected is not None:
        np.testing.assert_array_equal(workspace.inputs[0].graph, expected)
    workspace.run()
    assert workspace.outputs[0].split() == [row.tobytes() for row in rows]
    table.scatter(slots, [np.zeros_like(states)])
    table.scatter(slots, [tensor.rows for tensor in workspace.next])
    np.testing.assert_array_equal([table.read(slot)["h"] for slot in range(batch)], states)


@pytest.mark.parametrize("batch_axis", [None, 0, 1, 2])
def test_calls_of_all_shapes_have_a_constant_in_the_same_memory(batch_axis: int | None) -> None:
    """One for each shape would be some two thousand, which any caller can ask for, and kept for ever."""
    gain = ConstantSpec("gain", "float32", (2, 3), [[1, 2, 3], [4, 5, 6]], batch_axis=batch_axis)
    x = TensorSpec("x", "float32", ())
    mirror = Mirror()
    workspaces = Workspaces(Signature((x,), (replace(x, name="y"),), constants=(gain,)), mirror)
    rng = np.random.default_rng(0)
    for batch, steps in [(16, 4), *rng.integers(1, 16, (50, 2)).clip(max=(16, 4)).tolist()]:
        workspaces.get(batch, steps).run()
        np.testing.assert_array_equal(mirror.seen[-1], gain.filled(batch))
    assert len(mirror.last) > 20
    assert all(np.shares_memory(mirror.last[0], other) for other in mirror.last)


def test_calls_of_two_shapes_by_turns_are_bound_once() -> None:
    """Of one the inputs are larger, of the other the states: what either needs stays, or all calls are bound anew."""
    mirror, x = Mirror(), TensorSpec("x", "float32", ())
    workspaces = Workspaces(Signature((x,), (replace(x, name="y"),), (StateSpec("h", "h2", "float32", (3,)),)), mirror)
    for shape in [(256, 1), (64, 64)] * 2:  # by then there is room for both
        workspaces.get(*shape)
    bound = len(mirror.last)
    for shape in [(256, 1), (64, 64)] * 2:
        workspaces.get(*shape).run()
    assert len(mirror.last) == bound


def test_slots_keep_their_states_when_the_table_grows() -> None:
    zero = np.zeros(())
    table: SlotTable[None] = SlotTable([Kept("h", "float32", (3,), zero), Kept("n", "int64", (), zero)], capacity=2)
    slots = []
    for value in range(40):
        slot = table.allocate()
        table.begin(slot, {"h": np.full(3, value, np.float32), "n": np.array(value)})
        slots.append(slot)
    assert len(set(slots)) == 40
    for value, slot in enumerate(slots):
        kept = table.read(slot)
        assert kept["h"].tolist() == [value] * 3
        assert kept["n"] == value


def test_slots_begin_with_what_can_be_had() -> None:
    """A few for a state so large that there is no room for all."""
    table: SlotTable[None] = SlotTable([Kept("h", "float32", (2**20,), np.zeros(()))], capacity=2**40)
    assert 0 < table.capacity < 2**40
    table.begin(table.allocate(), {"h": np.ones(2**20, np.float32)})
    assert table.nbytes == 2**22


def signature(**changes: object) -> Signature:
    """A valid signature with changes."""
    fields: dict[str, object] = {
        "inputs": (TensorSpec("x", "float32", (2,)),),
        "outputs": (TensorSpec("y", "float32", (2,)),),
        "states": (StateSpec("h", "h2", "float32", (3,)),),
    }
    return Signature(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "at least one input"),
        ({"inputs": (TensorSpec("h", "float32", (2,)),)}, "'h' stands twice"),
        ({"outputs": (TensorSpec("y", "float32", (0,)),)}, "must all be above 0"),
        ({"outputs": (TensorSpec("y", "float32", (2,), 0, 0),)}, "must be different axes from 0 to 2"),
        ({"outputs": (TensorSpec("y", "float32", (2,), labels=("a",)),)}, "1 labels for 2 entries"),
        ({"outputs": (TensorSpec("y", "float32", (2,), units=("a", "b", "c")),)}, "3 units for 2 entries"),
        ({"states": (StateSpec("h", "h2", "float32", (3,), batch_axis=2),)}, "h: batch_axis must be"),
        ({"feedback": Feedback("y", "z")}, "feedback must name"),
        ({"feedback": Feedback("y", "x", sampled=True)}, "integer input"),
        (
            {
                "inputs": (TensorSpec("x", "uint8", ()),),
                "outputs": (TensorSpec("y", "float32", (300,)),),
                "feedback": Feedback("y", "x", sampled=True),
            },
            "cannot number 300",
        ),
    ],
)
def test_a_signature_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    assert signature().state_bytes == 12
    with pytest.raises(SignatureError, match=message):
        signature(**changes)


def test_versions_sort_as_numbers() -> None:
    versions = ["10", "9", "2024-01-02", "1.2", "1.10", "v2", "v10", "latest"]
    assert sorted(versions, key=version_key) == ["latest", "v2", "v10", "1.2", "1.10", "9", "10", "2024-01-02"]


def test_sampling_draws_what_softmax_says() -> None:
    logits = np.log([0.5, 0.3, 0.2])
    rng = np.random.default_rng(0)
    counts = np.bincount([Sampling(1.0).draw(logits, rng) for _ in range(20_000)], minlength=3) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.02)
    assert {Sampling(1.0, top_k=2).draw(logits, rng) for _ in range(500)} == {0, 1}
    assert Sampling().draw(logits, rng) == 0
    with pytest.raises(InvalidRequestError):
        Sampling(float("nan"))
