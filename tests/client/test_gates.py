"""The gates of an LSTM, kept and drawn as they come."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from recurra.v1 import models_pb2
from recurra_client.cli.gates import GATES, GateTrack, order, units_of
from recurra_client.cli.gates_view import gates_view, heat_map
from recurra_client.cli.usererror import UserError
from rich.console import Console

LAYERS, HIDDEN = 2, 3


def answers(steps: int) -> dict[str, NDArray[np.float32]]:
    """Gates that say which they are, of which step and unit."""
    unit = np.arange(LAYERS * HIDDEN, dtype=np.float32).reshape(LAYERS, HIDDEN) / 10
    step = np.arange(steps, dtype=np.float32)[:, None, None] / 100
    return {gate.name: (number + step + unit).astype(np.float32) for number, gate in enumerate(GATES)}


def test_steps_and_chunks_are_kept_in_order() -> None:
    track = GateTrack(LAYERS * HIDDEN)
    whole = answers(5)
    track.add({name: values[0] for name, values in whole.items()}, 1)  # a step comes as [layers, hidden]
    track.add({name: values[1:] for name, values in whole.items()}, 4)  # a chunk as [T, layers, hidden]
    for gate in GATES:
        np.testing.assert_array_equal(track.values(gate.name), whole[gate.name].reshape(5, -1))
        np.testing.assert_array_equal(track.values(gate.name, last=2), whole[gate.name].reshape(5, -1)[-2:])
        assert len(track.values(gate.name, last=99)) == 5
    assert order(track).tolist() == [5, 4, 3, 2, 1, 0], "those that forget least stand first"


def test_a_model_without_gates_is_refused_with_what_to_do() -> None:
    model = models_pb2.Model(name="plain", outputs=[models_pb2.TensorSpec(name="y", dims=[2])])
    with pytest.raises(UserError, match=r"model plain has no output 'f': .* `recurra export --gates`"):
        units_of(model)
    model.outputs.extend(models_pb2.TensorSpec(name=gate.name, dims=[LAYERS, HIDDEN]) for gate in GATES)
    assert units_of(model) == LAYERS * HIDDEN


def test_a_column_is_a_step_and_two_units_share_a_line() -> None:
    values = np.array([[0, 1], [1, 0], [1, 1]], np.float32)
    text = heat_map(values, 2, signed=False)
    assert text.plain == "▀▀▀"
    shades = [str(span.style).split(" on ") for span in text.spans]
    dark, light = shades[0]
    assert dark != light
    assert shades == [[dark, light], [light, dark], [light, light]]


def test_what_is_positive_and_what_is_negative_differ_in_colour() -> None:
    text = heat_map(np.array([[1.0, -1.0], [0.5, -0.5]], np.float32), 2, signed=True)
    (positive, negative), (paler, _) = (str(span.style).split(" on ") for span in text.spans)
    assert len({positive, negative, paler}) == 3


@pytest.mark.parametrize(("steps", "height"), [(0, 20), (1, 20), (300, 20), (300, 11), (300, 17), (300, 99)])
def test_all_gates_are_shown_in_the_room_there_is(steps: int, height: int) -> None:
    track = GateTrack(LAYERS * HIDDEN)
    if steps:
        track.add(answers(steps), steps)
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(gates_view(track, 60, height))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 60
    assert len(lines) <= height
    shown = "\n".join(lines)
    if steps:
        assert all(gate.title in shown for gate in GATES)
        assert shown.count("▀" * min(steps, 60)) >= len(GATES)
    else:
        assert "no step yet" in shown
